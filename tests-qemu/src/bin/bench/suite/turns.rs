//! Two CPUs at work at once, one of which is measured.
//!
//! Under `-icount` QEMU's CPUs take turns, and there is one count of instructions for all: another CPU's turn is in it. So the
//! measured CPU gives the turn away itself, wherever the library asks for a table, which every step of a walk does. The other one
//! loses it again at an instruction that is left to chance, and stays there while the measured CPU does its next step: if
//! it holds a lock there, that step waits. How much was counted meanwhile is known. A CPU that has nobody beside it does all the
//! same but for the giving; what remains is comparable to the instruction, and to nothing else.

use core::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use stage2::{
    Pa,
    memory::{OutOfTables, TableMemory, TablePage},
};
use stage2_platform::{
    cpus::{self, CpuIndex},
    pmu::InstructionCounter,
    timer,
};

/// The shortest turn: so long that it begins before it ends.
const SHORTEST: u32 = 100;
/// How much longer one may be, and what differs from one to the next: all lengths have their turn.
const SPREAD: u32 = 1009;
const STRIDE: u32 = 367;

/// Table memory where turns are given away. The boot CPU is the measured one.
pub(crate) struct Turns<M> {
    memory: M,
    /// The measured CPU's.
    counter: InstructionCounter,
    /// Whether the other CPU is at work.
    beside: AtomicBool,
    /// The turns that were given.
    given: AtomicU32,
    /// Instructions that were counted meanwhile.
    elsewhere: AtomicU32,
    /// The other CPU's steps.
    steps: AtomicU32,
    /// Those before the first turn that was given.
    began: AtomicU32,
    /// Those after the last turn that was given.
    expected: AtomicU32,
    /// How often there were more when the next turn was given.
    unasked: AtomicU32,
}

impl<M> Turns<M> {
    /// On the boot CPU.
    pub(crate) fn new(memory: M) -> Self {
        Self {
            memory,
            counter: InstructionCounter::start(),
            beside: AtomicBool::new(false),
            given: AtomicU32::new(0),
            elsewhere: AtomicU32::new(0),
            steps: AtomicU32::new(0),
            began: AtomicU32::new(0),
            expected: AtomicU32::new(0),
            unasked: AtomicU32::new(0),
        }
    }

    /// Turns are given away from here on, if the other CPU is at work.
    pub(crate) fn begin(&self, beside: bool) {
        self.unasked.store(0, Ordering::Relaxed);
        let steps = self.steps.load(Ordering::Relaxed);
        self.began.store(steps, Ordering::Relaxed);
        self.expected.store(steps, Ordering::Relaxed);
        self.beside.store(beside, Ordering::Relaxed);
    }

    /// No more are. Whether the other CPU had only turns that it was given: others are in the measured CPU's count.
    pub(crate) fn end(&self) -> bool {
        self.beside.store(false, Ordering::Relaxed);
        self.unasked.load(Ordering::Relaxed) == 0
    }

    /// Steps that the other CPU has made since turns are given.
    pub(crate) fn steps(&self) -> u32 {
        self.steps.load(Ordering::Relaxed).wrapping_sub(self.began.load(Ordering::Relaxed))
    }

    /// Instructions that were counted and are not the measured CPU's.
    pub(crate) fn elsewhere(&self) -> u32 {
        self.elsewhere.load(Ordering::Relaxed)
    }

    /// A step of a walk.
    #[inline(never)]
    fn step(&self) {
        if cpus::current() == CpuIndex::BOOT {
            self.give_away();
        } else {
            add(&self.steps, 1);
        }
    }

    fn give_away(&self) {
        let before = self.counter.read();
        if self.beside.load(Ordering::Relaxed) {
            if self.steps.load(Ordering::Relaxed) != self.expected.load(Ordering::Relaxed) {
                add(&self.unasked, 1);
            }
            let more = self.given.load(Ordering::Relaxed).wrapping_mul(STRIDE) % SPREAD;
            timer::yield_for(Duration::from_nanos(u64::from(SHORTEST + more)));
            add(&self.given, 1);
            self.expected.store(self.steps.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        add(&self.elsewhere, self.counter.read().wrapping_sub(before));
    }
}

/// Adds to what one CPU alone writes.
fn add(number: &AtomicU32, more: u32) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

// SAFETY: every promise is the memory's.
unsafe impl<M: TableMemory> TableMemory for Turns<M> {
    type Granule = M::Granule;

    fn alloc(&self) -> Result<Pa, OutOfTables> {
        self.memory.alloc()
    }

    fn alloc_root(&self, order: u32) -> Result<Pa, OutOfTables> {
        self.memory.alloc_root(order)
    }

    unsafe fn free(&self, table: Pa, order: u32) {
        // SAFETY: the caller's own promise.
        unsafe { self.memory.free(table, order) }
    }

    #[inline(always)]
    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>> {
        self.step();
        // SAFETY: the caller's own promise.
        unsafe { self.memory.table(table) }
    }
}
