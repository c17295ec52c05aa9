//! Counting instructions. Exact under QEMU's `-icount`; without it the count stays 0.

use core::{arch::asm, cell::Cell};

use aarch64_cpu::asm::barrier;
use stage2_trace_events::{
    instruction::MARK_HINT,
    mark::{WINDOW_CLOSES, WINDOW_OPENS},
};

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

    /// A window of `operation` opens: [`Self::read`] into `start`, with a mark before it for a plugin that counts, too. What is done
    /// after this is in the window. It keeps nothing in a register meanwhile: an empty window costs what any costs.
    #[inline(always)]
    pub fn open(&self, operation: u64, start: &Cell<u64>) {
        // SAFETY: a hint without a meaning is a NOP, the counter is only read, and `start` is ours to write. Memory is said to be
        // touched, so that no access moves across it.
        unsafe {
            asm!("hint #{hint}", "isb", "mrs {count}, pmevcntr0_el0", "str {count}, [{start}]", hint = const MARK_HINT,
                 count = out(reg) _, start = in(reg) start.as_ptr(), in("x0") WINDOW_OPENS, in("x1") operation,
                 in("x2") 0, options(nostack, preserves_flags));
        }
    }

    /// It closes: what was done before this was in the window.
    #[inline(always)]
    pub fn close(&self) -> u32 {
        let count: u64;
        // SAFETY: as in `open`.
        unsafe {
            asm!("isb", "mrs {count}, pmevcntr0_el0", "mov x0, #{closes}", "mov x1, xzr", "mov x2, xzr", "hint #{hint}",
                 hint = const MARK_HINT, closes = const WINDOW_CLOSES, count = out(reg) count,
                 out("x0") _, out("x1") _, out("x2") _, options(nostack, preserves_flags));
        }
        count as u32
    }
}
