//! Counting the instructions of a piece of work, and nothing else.

use alloc::{format, string::String};
use core::arch::asm;

use stage2_platform::pmu::InstructionCounter;

/// Counts instructions of this CPU.
pub(crate) struct Meter {
    counter: InstructionCounter,
    /// What it counts of itself.
    own: u32,
}

impl Meter {
    /// The meter of this CPU, which counts to the instruction: that is tried first.
    pub(crate) fn new() -> Result<Self, String> {
        let mut meter = Self { counter: InstructionCounter::start(), own: 0 };
        ((), meter.own) = meter.count(|| ());
        match meter.count(thousand_nops) {
            ((), 1000) => Ok(meter),
            ((), other) => Err(format!("1000 instructions count as {other}: the machine needs -icount shift=0")),
        }
    }

    /// Does `work`, and says how many instructions that took.
    #[inline(always)]
    pub(crate) fn count<T>(&self, work: impl FnOnce() -> T) -> (T, u32) {
        let before = self.counter.read();
        let result = work();
        let after = self.counter.read();
        (result, after.wrapping_sub(before).wrapping_sub(self.own))
    }
}

#[inline(always)]
fn thousand_nops() {
    // SAFETY: nothing is done.
    unsafe { asm!(".rept 1000", "nop", ".endr", options(nomem, nostack, preserves_flags)) };
}
