//! Counting instructions. Exact under QEMU's `-icount`; without it the count stays 0.

use aarch64_cpu::asm::barrier;

use crate::sysreg;

/// A running count of the instructions this CPU executes, at all of EL0, EL1 and EL2. Uses event counter 0.
pub struct InstructionCounter(());

impl InstructionCounter {
    /// Starts counting on this CPU.
    pub fn start() -> Self {
        const INST_RETIRED: u64 = 0x08;
        const COUNT_EL2: u64 = 1 << 27;
        const ENABLE: u64 = 1;
        // SAFETY: the performance counters affect nothing but their own values.
        unsafe { sysreg::write!("pmevtyper0_el0", INST_RETIRED | COUNT_EL2) };
        // SAFETY: as above.
        unsafe { sysreg::write!("pmcntenset_el0", 1_u64) };
        let control = sysreg::read!("pmcr_el0");
        // SAFETY: as above.
        unsafe { sysreg::write!("pmcr_el0", control | ENABLE) };
        Self(())
    }

    /// The count so far: 32 bits of it, enough for a difference.
    pub fn read(&self) -> u32 {
        barrier::isb(barrier::SY);
        sysreg::read!("pmevcntr0_el0") as u32
    }
}
