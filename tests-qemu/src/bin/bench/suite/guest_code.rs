//! The guest's code: one page, with vectors, that runs at EL1 with its MMU off.
//!
//! A *round trip* is what lies between the instruction before one that traps and the one after: the guest reads the event counter itself on
//! both sides. What is left in between of its own instructions is the same in each program, so that a program that does not trap
//! says how many those are.

use core::{
    arch::global_asm,
    sync::atomic::{AtomicU64, Ordering},
};

use stage2_platform::trace::{MARK_HINT, WINDOW_CLOSES, WINDOW_OPENS};
use stage2_tests_qemu::memory::PAGE_WORDS;

/// Where it is, as IPA.
pub(crate) const CODE: u64 = 0x8000_0000;
/// Where its vectors are.
pub(crate) const VECTORS: u64 = CODE + VECTORS_OFFSET;
const VECTORS_OFFSET: u64 = 0x800;

/// HVC's immediate by which a program says that it is through.
pub(crate) const THROUGH: u64 = 1;

// The programs of round trips: x9 is an address, x10 counts down, x11 is added to the address each time. x19 is the operation's number, x20
// the sum of what was counted, x21 the program, x22 the vectors. x0 to x2 make marks.
global_asm!(
    ".pushsection .rodata.guest, \"a\"",
    ".balign 4096",
    ".global bench_guest",
    "bench_guest:",
    // Stores x1 to x3 doublewords from x0 on, x2 bytes apart.
    "1: str x1, [x0]",
    "add x0, x0, x2",
    "subs x3, x3, #1",
    "b.ne 1b",
    "hvc #{through}",
    ".global bench_guest_begin",
    "bench_guest_begin:",
    "msr vbar_el1, x22",
    "isb",
    "br x21",
    ".macro round_trip name, instruction:vararg",
    ".global bench_guest_\\name",
    "bench_guest_\\name:",
    "mov x0, #{opens}",
    "mov x1, x19",
    "mov x2, xzr",
    "isb",
    "mrs x12, pmevcntr0_el0",
    "hint #{mark}",
    "\\instruction",
    "mov x0, #{closes}",
    "hint #{mark}",
    "isb",
    "mrs x13, pmevcntr0_el0",
    "b bench_guest_next",
    ".endm",
    "round_trip store, str x10, [x9]",
    "round_trip load, ldr x14, [x9]",
    "round_trip call, hvc #0",
    ".purgem round_trip",
    "bench_guest_next:",
    "sub w13, w13, w12",
    "add x20, x20, x13",
    "add x9, x9, x11",
    "subs x10, x10, #1",
    "b.eq 2f",
    "br x21",
    "2: hvc #{through}",
    // A synchronous exception of EL1's own: the end of a round trip, too. The NOP stands for the instruction that was not executed.
    ".org bench_guest + {vectors} + 0x200",
    "nop",
    "mov x0, #{closes}",
    "hint #{mark}",
    "isb",
    "mrs x13, pmevcntr0_el0",
    "b bench_guest_next",
    ".balign 4096",
    ".popsection",
    through = const THROUGH,
    opens = const WINDOW_OPENS,
    closes = const WINDOW_CLOSES,
    mark = const MARK_HINT,
    vectors = const VECTORS_OFFSET,
);

unsafe extern "C" {
    static bench_guest: [u64; PAGE_WORDS];
    static bench_guest_begin: u32;
    static bench_guest_store: u32;
    static bench_guest_load: u32;
    static bench_guest_call: u32;
}

/// The instruction of a round trip.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Store,
    Load,
    Call,
}

impl Program {
    /// Where it is, as IPA.
    pub(crate) fn address(self) -> u64 {
        offset(match self {
            Self::Store => &raw const bench_guest_store,
            Self::Load => &raw const bench_guest_load,
            Self::Call => &raw const bench_guest_call,
        })
    }

    /// Where programs are entered.
    pub(crate) fn entry() -> u64 {
        offset(&raw const bench_guest_begin)
    }
}

fn offset(instruction: *const u32) -> u64 {
    CODE + (instruction.addr() - (&raw const bench_guest).addr()) as u64
}

/// Copies the code to a page, which is to be mapped at [`CODE`].
pub(crate) fn copy(page: &[AtomicU64]) {
    // SAFETY: a constant of the image, of this length.
    let code = unsafe { &bench_guest };
    for (from, to) in code.iter().zip(page) {
        to.store(*from, Ordering::Relaxed);
    }
}
