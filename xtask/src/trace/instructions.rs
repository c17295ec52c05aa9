//! From executed instructions to the checker's events.
//!
//! A register is written by an instruction of its own, but what they stand for is told together: so each CPU's VTCR_EL2, VTTBR_EL2 and
//! HCR_EL2 are kept. HCR_EL2.VM says whether the CPU may walk from the root it has; while it is clear, VTTBR_EL2 only says
//! which VMID invalidations are for.

use stage2::arch::{Dsb, Scope, Stage2Registers};
use stage2::model::checker::{Event, Instruction as Operation, Invalidate};
use stage2_trace_events::instruction::{
    self, Barrier, Barriers, Domain, Instruction, Kind, Register, TlbiOperation, decode,
};

const HCR_VM: u64 = 1 << 0;
const HCR_FWB: u64 = 1 << 46;

/// A CPU's registers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cpu {
    vtcr: u64,
    vttbr: u64,
    hcr: u64,
}

impl Cpu {
    /// What the instruction means, if anything. Its effect on registers is kept.
    pub(super) fn execute(&mut self, opcode: u32, operand: u64) -> Option<Event> {
        match decode(opcode)? {
            Instruction::Barrier(barrier) => told(barrier),
            Instruction::Isb => Some(Event::Isb),
            Instruction::Tlbi(tlbi, _) => Some(Event::Tlbi(invalidate(tlbi, operand))),
            Instruction::Msr(register, _) => self.write(register, operand),
            Instruction::Eret | Instruction::Mark => None,
        }
    }

    fn write(&mut self, register: Register, value: u64) -> Option<Event> {
        let before = *self;
        match register {
            Register::Vtcr => self.vtcr = value,
            Register::Vttbr => self.vttbr = value,
            Register::Hcr => self.hcr = value,
        }
        let (walked, walks) = (before.hcr & HCR_VM != 0, self.hcr & HCR_VM != 0);
        let told = match register {
            // Together with the VTTBR_EL2 that follows.
            Register::Vtcr => false,
            Register::Vttbr => true,
            Register::Hcr => (before.hcr ^ value) & (HCR_VM | HCR_FWB) != 0,
        };
        let mut registers = Stage2Registers { vtcr: self.vtcr, vttbr: self.vttbr, fwb: self.hcr & HCR_FWB != 0 };
        if walked && !walks {
            // It walks from nowhere any more.
            registers.vttbr = 0;
        }
        told.then_some(Event::Registers { registers, walks: walks || walked })
    }
}

fn told(barrier: Barrier) -> Option<Event> {
    let everywhere = barrier.domain >= Domain::InnerShareable;
    match (barrier.kind, barrier.what) {
        (Kind::Dsb, Barriers::All) => Some(Event::Dsb(if everywhere { Dsb::Ish } else { Dsb::Nsh })),
        (Kind::Dsb, Barriers::Stores) => Some(Event::Dsb(if everywhere { Dsb::Ishst } else { Dsb::Nshst })),
        (Kind::Dmb, Barriers::All) if everywhere => Some(Event::Fence),
        // Weaker than anything the checker knows.
        (Kind::Dsb | Kind::Dmb, _) => None,
    }
}

fn invalidate(tlbi: instruction::Tlbi, operand: u64) -> Invalidate {
    let instruction = match tlbi.operation {
        TlbiOperation::Ipas2e1 => Operation::Ipas2e1,
        TlbiOperation::Ipas2le1 => Operation::Ipas2le1,
        TlbiOperation::Ripas2e1 => Operation::Ripas2e1,
        TlbiOperation::Ripas2le1 => Operation::Ripas2le1,
        TlbiOperation::Vmalle1 => Operation::Vmalle1,
        TlbiOperation::Vmalls12e1 => Operation::Vmalls12e1,
        TlbiOperation::Alle1 => Operation::Alle1,
    };
    let scope = match tlbi.scope {
        instruction::Scope::Local => Scope::Local,
        // All CPUs are in one Inner Shareable domain, and that in the Outer Shareable one.
        instruction::Scope::InnerShareable | instruction::Scope::OuterShareable => Scope::InnerShareable,
    };
    Invalidate { instruction, operand, scope }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSR_VTCR_X0: u32 = 0xd51c_2140;
    const MSR_VTTBR_X0: u32 = 0xd51c_2100;
    const MSR_HCR_X0: u32 = 0xd51c_1100;
    const VTTBR: u64 = 7 << 48 | 0x4100_0000;

    #[test]
    fn a_tree_that_is_loaded_is_walked_from_and_one_that_is_unloaded_is_not() {
        let mut cpu = Cpu::default();
        let registers = Stage2Registers { vtcr: 5, vttbr: VTTBR, fwb: true };
        assert_eq!(cpu.execute(MSR_VTCR_X0, 5), None);
        let early = Stage2Registers { fwb: false, ..registers };
        assert_eq!(cpu.execute(MSR_VTTBR_X0, VTTBR), Some(Event::Registers { registers: early, walks: false }));
        assert_eq!(cpu.execute(MSR_HCR_X0, HCR_VM | HCR_FWB), Some(Event::Registers { registers, walks: true }));
        assert_eq!(cpu.execute(MSR_HCR_X0, HCR_VM | HCR_FWB | 1 << 27), None, "TGE is nothing to the walks");
        let nowhere = Stage2Registers { vttbr: 0, ..registers };
        assert_eq!(cpu.execute(MSR_HCR_X0, HCR_FWB), Some(Event::Registers { registers: nowhere, walks: true }));
        assert_eq!(cpu.execute(MSR_VTTBR_X0, VTTBR), Some(Event::Registers { registers, walks: false }));
    }

    #[test]
    fn barriers_are_what_they_are_at_least() {
        let mut cpu = Cpu::default();
        let mut barrier = |opcode| cpu.execute(opcode, 0);
        assert_eq!(barrier(0xd503_3a9f), Some(Event::Dsb(Dsb::Ishst)));
        assert_eq!(barrier(0xd503_3f9f), Some(Event::Dsb(Dsb::Ish)), "DSB SY");
        assert_eq!(barrier(0xd503_379f), Some(Event::Dsb(Dsb::Nsh)));
        assert_eq!(barrier(0xd503_399f), None, "DSB ISHLD");
        assert_eq!(barrier(0xd503_3bbf), Some(Event::Fence), "DMB ISH");
        assert_eq!(barrier(0xd503_3abf), None, "DMB ISHST");
    }
}
