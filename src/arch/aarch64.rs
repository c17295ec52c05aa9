//! The instructions, for EL2 of an AArch64 CPU.
//!
//! Everything here runs at EL2; that, and that RAM is mapped where [`Aarch64`] was told, is what its constructor asks the
//! embedder to vouch for. The register accesses are `aarch64-cpu`'s where it has the register; VTCR_EL2, PAR_EL1 and the
//! TLB, AT and cache instructions are written out.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{DAIF, HCR_EL2, PAR_EL1, ReadWriteable, Readable, VTTBR_EL2, Writeable};

use super::{Arch, Dsb, SavedContext, Scope, Stage1Access, Stage2Registers, Tlbi, tlbi};
use crate::addr::Pa;
use crate::geometry::Features;

/// The CPUs this runs on: one value serves them all.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Aarch64 {
    /// What to add to a physical address to have the address it is mapped at.
    offset: u64,
    /// Bytes of the smallest line of any CPU's data caches, and of its instruction caches.
    data_line: u64,
    instruction_line: u64,
    /// Instruction caches are PIPT: to invalidate by one address is to invalidate by all.
    physically_tagged: bool,
    /// EL2 runs with HCR_EL2.E2H set, and so may have TGE set.
    host_extensions: bool,
}

impl Aarch64 {
    /// The machine, whose RAM EL2 has mapped at its physical address plus `offset` (modulo 2^64). `features` are what all of
    /// its CPUs have in common.
    ///
    /// # Safety
    /// - It is only used at EL2, non-secure, with EL2's own translation on.
    /// - All memory that is given to a guest or used for tables is mapped Normal Write-Back at `offset`, on every CPU.
    /// - Nothing else changes VTCR_EL2, VTTBR_EL2 or HCR_EL2.{VM,FWB}.
    /// - It is made once, for the one [`Mmu`](crate::Mmu) of the machine: VMIDs are given out by that alone.
    /// - A CPU's [`Reader`](crate::Reader) is claimed and used on that CPU.
    pub unsafe fn new(offset: u64, features: &Features) -> Self {
        const PIPT: u64 = 0b11;
        let ctr: u64;
        // SAFETY: reading CTR_EL0 has no side effect and is allowed at EL2.
        unsafe { asm!("mrs {}, CTR_EL0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
        Self {
            offset,
            data_line: u64::from(features.data_line_bytes()),
            instruction_line: u64::from(features.instruction_line_bytes()),
            physically_tagged: ctr >> 14 & 0b11 == PIPT,
            host_extensions: HCR_EL2.get() & HCR_E2H != 0,
        }
    }

    #[inline(always)]
    fn for_each_line(&self, start: Pa, bytes: u64, line: u64, maintain: impl Fn(u64)) {
        let first = start.raw().wrapping_add(self.offset) & !(line - 1);
        let end = start.raw().wrapping_add(self.offset).wrapping_add(bytes);
        let mut at = first;
        while at < end {
            maintain(at);
            at = at.wrapping_add(line);
        }
    }
}

/// One TLBI or cache instruction with a register operand.
macro_rules! operate {
    ($instruction:literal, $operand:expr) => {
        // SAFETY: invalidating TLB entries, and cleaning (and invalidating) caches of mapped memory, change no value
        // that software may rely on; that this is EL2 the constructor of `Aarch64` was told.
        unsafe { asm!(concat!($instruction, ", {}"), in(reg) $operand, options(nostack, preserves_flags)) }
    };
    ($instruction:literal) => {
        // SAFETY: as above.
        unsafe { asm!($instruction, options(nostack, preserves_flags)) }
    };
}

impl Arch for Aarch64 {
    #[inline(always)]
    fn dsb(&self, barrier: Dsb) {
        match barrier {
            Dsb::Ishst => barrier::dsb(barrier::ISHST),
            Dsb::Ish => barrier::dsb(barrier::ISH),
            Dsb::Nshst => barrier::dsb(barrier::NSHST),
            Dsb::Nsh => barrier::dsb(barrier::NSH),
        }
    }

    #[inline(always)]
    fn isb(&self) {
        barrier::isb(barrier::SY);
    }

    #[inline(always)]
    fn tlbi(&self, operation: Tlbi) {
        match operation {
            Tlbi::Ipa { ipa, ttl, scope: Scope::Local } => operate!("tlbi ipas2e1", tlbi::ipa_operand(ipa, ttl)),
            Tlbi::Ipa { ipa, ttl, scope: Scope::InnerShareable } => {
                operate!("tlbi ipas2e1is", tlbi::ipa_operand(ipa, ttl));
            }
            // FEAT_TLBIRANGE: the names need a newer baseline, the encodings do not.
            Tlbi::IpaRange { operand, scope: Scope::Local } => operate!("sys #4, c8, c4, #2", operand.raw()),
            Tlbi::IpaRange { operand, scope: Scope::InnerShareable } => operate!("sys #4, c8, c0, #2", operand.raw()),
            Tlbi::Vmalle1 { scope: Scope::Local } => operate!("tlbi vmalle1"),
            Tlbi::Vmalle1 { scope: Scope::InnerShareable } => operate!("tlbi vmalle1is"),
            Tlbi::Vmalls12e1 { scope: Scope::Local } => operate!("tlbi vmalls12e1"),
            Tlbi::Vmalls12e1 { scope: Scope::InnerShareable } => operate!("tlbi vmalls12e1is"),
            Tlbi::Alle1 { scope: Scope::Local } => operate!("tlbi alle1"),
            Tlbi::Alle1 { scope: Scope::InnerShareable } => operate!("tlbi alle1is"),
        }
    }

    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext {
        let saved = SavedContext { registers: current_registers(), hcr: HCR_EL2.get(), daif: DAIF.get() };
        // An interrupt handler must not run in the guest's context.
        DAIF.modify(DAIF::D::Masked + DAIF::A::Masked + DAIF::I::Masked + DAIF::F::Masked);
        if saved.registers != registers {
            write_registers(registers);
        }
        HCR_EL2.set(saved.hcr & !HCR_TGE);
        self.isb();
        saved
    }

    fn leave_vmid(&self, saved: SavedContext) {
        write_registers(saved.registers);
        HCR_EL2.set(saved.hcr);
        self.isb();
        DAIF.set(saved.daif);
    }

    fn load(&self, registers: Stage2Registers) {
        write_registers(registers);
        let fwb = if registers.fwb { HCR_FWB } else { 0 };
        HCR_EL2.set(HCR_EL2.get() & !HCR_FWB | fwb | HCR_VM);
        self.isb();
    }

    fn unload(&self) {
        HCR_EL2.set(HCR_EL2.get() & !HCR_VM);
        self.isb();
        VTTBR_EL2.set(0);
        self.isb();
    }

    #[inline(always)]
    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        if !self.host_extensions {
            return f();
        }
        let hcr = HCR_EL2.get();
        HCR_EL2.set(hcr & !HCR_TGE);
        self.isb();
        let result = f();
        HCR_EL2.set(hcr);
        self.isb();
        result
    }

    #[inline(always)]
    fn is_loaded(&self, registers: Stage2Registers) -> bool {
        // The root and the VMID tell trees apart; each is loaded together with its VTCR_EL2.
        VTTBR_EL2.get() == registers.vttbr
    }

    fn translate_stage1(&self, address: u64, access: Stage1Access) -> u64 {
        let guests = PAR_EL1.get();
        match access {
            Stage1Access::Read => operate!("at s1e1r", address),
            Stage1Access::Write => operate!("at s1e1w", address),
        }
        self.isb();
        let result = PAR_EL1.get();
        write_par(guests);
        result
    }

    fn clean_invalidate_to_poc(&self, start: Pa, bytes: u64) {
        self.for_each_line(start, bytes, self.data_line, |line| operate!("dc civac", line));
    }

    fn synchronize_instructions(&self, start: Pa, bytes: u64, clean: bool, invalidate: bool) {
        if clean {
            self.for_each_line(start, bytes, self.data_line, |line| operate!("dc cvau", line));
            self.dsb(Dsb::Ish);
        }
        if invalidate && self.physically_tagged {
            self.for_each_line(start, bytes, self.instruction_line, |line| operate!("ic ivau", line));
        } else if invalidate {
            // The guest may have fetched it at an address of another colour.
            operate!("ic ialluis");
        }
    }
}

const HCR_VM: u64 = 1 << 0;
const HCR_TGE: u64 = 1 << 27;
const HCR_E2H: u64 = 1 << 34;
const HCR_FWB: u64 = 1 << 46;

#[inline(always)]
fn current_registers() -> Stage2Registers {
    let vtcr: u64;
    // SAFETY: reading VTCR_EL2 at EL2 has no side effect.
    unsafe { asm!("mrs {}, VTCR_EL2", out(reg) vtcr, options(nomem, nostack, preserves_flags)) };
    Stage2Registers { vtcr, vttbr: VTTBR_EL2.get(), fwb: HCR_EL2.get() & HCR_FWB != 0 }
}

#[inline(always)]
fn write_registers(registers: Stage2Registers) {
    // SAFETY: VTCR_EL2 configures the guest's translation only, and `registers` come from a tree that outlives its
    // being loaded (`Loaded`, and the check in teardown).
    unsafe { asm!("msr VTCR_EL2, {}", in(reg) registers.vtcr, options(nostack, preserves_flags)) };
    VTTBR_EL2.set(registers.vttbr);
}

#[inline(always)]
fn write_par(value: u64) {
    // SAFETY: PAR_EL1 is the guest's; this puts its value back.
    unsafe { asm!("msr PAR_EL1, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}
