//! Counting the instructions of a piece of work, and nothing else.
//!
//! What is counted together is an *operation*, which has a number. Each piece of it is done in a *window* that is marked, so that a plugin
//! of QEMU's can count in the same window what the PMU cannot: what kind of instructions they are, and which lines they write.

use alloc::{format, string::String};
use core::{arch::asm, cell::Cell};

use stage2_platform::{
    cpus,
    pmu::InstructionCounter,
    trace::{self, Mark},
};

use super::lab::SLOTS;

/// Counts instructions of this CPU.
pub(crate) struct Meter {
    counter: InstructionCounter,
    /// What it counts of itself.
    own: u32,
    /// The number of the next operation.
    next: Cell<u64>,
}

/// What was counted of an operation.
pub(crate) struct Sum<'m> {
    meter: &'m Meter,
    /// Its number.
    pub(crate) operation: u64,
    pub(crate) instructions: u64,
    /// How many windows were opened and closed by EL2, whose own instructions a plugin counts, too.
    pub(crate) windows: u64,
    start: Cell<u64>,
}

impl Meter {
    /// The meter of this CPU, which counts to the instruction: that is tried first. Operation 0 is an empty window.
    pub(crate) fn new() -> Result<Self, String> {
        let stack = cpus::own_stack();
        trace::mark(Mark::Private { start: stack.start, bytes: stack.end - stack.start });
        let slot = &raw const SLOTS[cpus::current().get()];
        trace::mark(Mark::Private { start: slot as u64, bytes: size_of_val(&SLOTS[0]) as u64 });
        let mut meter = Self { counter: InstructionCounter::start(), own: 0, next: Cell::new(0) };
        meter.own = meter.count(|| ()).1.instructions as u32;
        match meter.count(thousand_nops).1.instructions {
            1000 => Ok(meter),
            other => Err(format!("1000 instructions count as {other}: the machine needs -icount shift=0")),
        }
    }

    /// A new operation, of which nothing is counted yet.
    pub(crate) fn sum(&self) -> Sum<'_> {
        let operation = self.next.get();
        self.next.set(operation + 1);
        Sum { meter: self, operation, instructions: 0, windows: 0, start: Cell::new(0) }
    }

    /// Does `work`, an operation by itself.
    #[inline(always)]
    pub(crate) fn count<T>(&self, work: impl FnOnce() -> T) -> (T, Sum<'_>) {
        let mut sum = self.sum();
        let result = sum.count(work);
        (result, sum)
    }
}

impl Sum<'_> {
    /// Does `work`, and adds what it takes.
    #[inline(always)]
    pub(crate) fn count<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.meter.counter.open(self.operation, &self.start);
        let result = work();
        let end = self.meter.counter.close();
        let counted = end.wrapping_sub(self.start.get() as u32).wrapping_sub(self.meter.own);
        self.instructions += u64::from(counted);
        self.windows += 1;
        result
    }

    /// Does `work` in the midst of a window that a guest has opened, as if it were not done.
    #[inline(always)]
    pub(crate) fn leave_out<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let from = self.meter.counter.close();
        let result = work();
        self.meter.counter.open(self.operation, &self.start);
        let left_out = (self.start.get() as u32).wrapping_sub(from).wrapping_add(self.meter.own);
        self.instructions = self.instructions.wrapping_sub(u64::from(left_out));
        self.windows += 1;
        result
    }

    /// Adds what a guest has counted itself.
    pub(crate) fn add(&mut self, instructions: u64) {
        self.instructions = self.instructions.wrapping_add(instructions);
    }
}

#[inline(always)]
fn thousand_nops() {
    // SAFETY: nothing is done.
    unsafe { asm!(".rept 1000", "nop", ".endr", options(nomem, nostack, preserves_flags)) };
}
