//! The machine's CPUs, and running a closure on several of them.
//!
//! [`scope`] hands each CPU a pointer to a `Work` on the caller's stack and returns only when every CPU is done
//! with it; so the closure may borrow from the caller. A secondary CPU is started at its first work; without work it is
//! parked, that is powered off (see `power`).
//!
//! Orders: the pointer is stored with release and taken with acquire (it carries the `Work`); `pending` is counted
//! down with release and read with acquire (it carries what the closures wrote). A CPU does not touch the `Work`
//! after counting down.

use core::{
    arch::asm,
    cell::UnsafeCell,
    ops::Range,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
};

use aarch64_rt::Stack;
use smccc::Smc;
use spin::Once;

pub use crate::power::{park, unpark};
use crate::{boot, ram::Machine, sysreg};

/// The most CPUs this platform can use: one for each stack slot.
pub const MAX_CPUS: usize = 8;

/// The affinity fields of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// The number of a CPU, counted from the boot CPU's 0 in the order of the device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuIndex(u8);

impl defmt::Format for CpuIndex {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "CPU {=u8}", self.0);
    }
}

impl CpuIndex {
    /// The CPU that runs the binary's main function.
    pub const BOOT: Self = Self(0);

    /// The CPU with this number, if the platform can use so many.
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CPUS { Some(Self(index as u8)) } else { None }
    }

    /// The number, less than [`MAX_CPUS`].
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// The CPUs with the first `count` numbers.
    pub fn first(count: usize) -> impl Iterator<Item = Self> {
        (0..count.min(MAX_CPUS)).map(|index| Self(index as u8))
    }
}

static MACHINE: Once<&'static Machine> = Once::new();

pub(crate) fn init(machine: &'static Machine) {
    MACHINE.call_once(|| machine);
}

fn affinities() -> &'static [u64] {
    MACHINE.get().map_or(&[], |machine| machine.affinities())
}

/// The CPU that executes this.
pub fn current() -> CpuIndex {
    // `init_cpu` wrote a CpuIndex before any Rust code could ask.
    CpuIndex(sysreg::read!("tpidr_el2") as u8)
}

/// The memory of the slot that this CPU's stack is in.
pub fn own_stack() -> Range<u64> {
    let here = 0u8;
    let start = (&raw const here) as u64 & !(STACK_SLOT.size - 1);
    start..start + STACK_SLOT.size
}

/// Lets another CPU go on that this one shares a core with; or, where QEMU runs all CPUs by turns, its turn.
#[inline]
pub fn yield_now() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// How many CPUs the machine has, at most [`MAX_CPUS`].
pub fn count() -> usize {
    affinities().len()
}

/// The affinity fields of `cpu`'s MPIDR, if there is such a CPU.
pub fn affinity(cpu: CpuIndex) -> Option<u64> {
    affinities().get(cpu.get()).copied()
}

/// The CPU with the affinity fields of `mpidr`; no other bit may be set.
pub fn by_affinity(mpidr: u64) -> Option<CpuIndex> {
    let index = affinities().iter().position(|&affinity| affinity == mpidr)?;
    CpuIndex::new(index)
}

/// The affinity fields of an MPIDR_EL1 value.
pub(crate) const fn affinity_fields(mpidr: u64) -> u64 {
    mpidr & AFFINITY
}

/// How a stack slot is divided; `map` leaves the guard pages out, `vectors` finds the fault stack.
pub(crate) struct StackLayout {
    /// Size and alignment of a slot.
    pub(crate) size: u64,
    /// Where the stack for faults ends and the stack's guard page starts.
    pub(crate) fault_stack_end: u64,
}

pub(crate) const STACK_SLOT: StackLayout =
    StackLayout { size: size_of::<StackSlot>() as u64, fault_stack_end: 8 * 4096 };

/// The stack of a secondary CPU. The boot CPU's is made by `linker.ld` in the same shape.
#[repr(C, align(0x40000))]
struct StackSlot {
    _guard: [u8; 4096],
    _fault_stack: UnsafeCell<[u8; 7 * 4096]>,
    _stack_guard: [u8; 4096],
    stack: UnsafeCell<Stack<55>>,
}

// SAFETY: a shared reference gives only the address; the memory is accessed by the one CPU whose stack it is.
unsafe impl Sync for StackSlot {}

#[unsafe(link_section = ".stack.secondary")]
static STACKS: [StackSlot; MAX_CPUS - 1] = [const {
    StackSlot {
        _guard: [0; 4096],
        _fault_stack: UnsafeCell::new([0; 7 * 4096]),
        _stack_guard: [0; 4096],
        stack: UnsafeCell::new(Stack::new()),
    }
}; MAX_CPUS - 1];

/// One call of [`scope`], on its caller's stack.
struct Work<'scope> {
    run: &'scope (dyn Fn(CpuIndex) + Sync),
    /// How many CPUs still use this.
    pending: AtomicUsize,
    caller: CpuIndex,
}

struct Seat {
    work: AtomicPtr<Work<'static>>,
    started: AtomicBool,
}

static SEATS: [Seat; MAX_CPUS] =
    [const { Seat { work: AtomicPtr::new(ptr::null_mut()), started: AtomicBool::new(false) } }; MAX_CPUS];

/// Whether a scope is running: there is one at a time.
static IN_SCOPE: AtomicBool = AtomicBool::new(false);

/// Runs `run` on the first `cpus` CPUs at once, the boot CPU being the first, and returns when all have returned.
///
/// # Panics
///
/// When called on another CPU than the boot CPU, within another scope, with no CPUs or more than there are, or when a
/// CPU cannot be started.
pub fn scope<F: Fn(CpuIndex) + Sync>(cpus: usize, run: F) {
    assert!(current() == CpuIndex::BOOT, "a scope starts on the boot CPU");
    assert!((1..=count()).contains(&cpus), "no such number of CPUs");
    assert!(!IN_SCOPE.swap(true, Ordering::Acquire), "a scope within a scope");

    let work = Work { run: &run, pending: AtomicUsize::new(cpus - 1), caller: current() };
    for cpu in CpuIndex::first(cpus).skip(1) {
        let seat = &SEATS[cpu.get()];
        // The lifetime is erased here; this function outlives the use, as it waits for `pending` below and panics
        // abort.
        seat.work.store((&raw const work).cast_mut().cast(), Ordering::Release);
        if seat.started.swap(true, Ordering::Relaxed) {
            unpark(cpu);
        } else {
            start(cpu);
        }
    }
    run(current());
    while work.pending.load(Ordering::Acquire) != 0 {
        park();
    }
    IN_SCOPE.store(false, Ordering::Release);
}

fn start(cpu: CpuIndex) {
    let affinity = affinities()[cpu.get()];
    let stack = STACKS[cpu.get() - 1].stack.get();
    // SAFETY: the slot is this CPU's alone (`started` lets each start once), static, and mapped alike for all CPUs,
    // which share the tables.
    let started = unsafe { aarch64_rt::start_core::<Smc, _, 55>(affinity, stack, move || secondary(cpu)) };
    if let Err(error) = started {
        panic!("CPU {} does not start: {error}", cpu.get());
    }
}

/// The life of a secondary CPU.
fn secondary(cpu: CpuIndex) {
    boot::init_cpu(cpu);
    loop {
        let work = SEATS[cpu.get()].work.swap(ptr::null_mut(), Ordering::Acquire);
        // SAFETY: a pointer in the seat is to a `Work` whose scope waits until this CPU has counted down.
        let Some(work) = (unsafe { work.as_ref() }) else {
            park();
            continue;
        };
        let caller = work.caller;
        (work.run)(cpu);
        work.pending.fetch_sub(1, Ordering::Release);
        unpark(caller);
    }
}
