//! The guest's code: one page, of pieces that do one thing each and end in `HVC #0`, and EL1 vectors that end in `HVC #1`.
//!
//! The hypervisor sets the registers, enters at a piece, and looks at the registers afterwards. So a vCPU is told step by
//! step what to do, and its TLB keeps what it has seen from one step to the next.

use core::{arch::global_asm, sync::atomic::AtomicU64};

/// Where the guest's code is, as IPA.
pub(crate) const CODE: u64 = 0x8000_0000;
/// Where its vectors are, from there.
pub(crate) const VECTORS: u64 = 0x800;
/// The bytes of one piece.
const PIECE: u64 = 64;
/// The bytes of the code.
const BYTES: usize = 0x1000;

/// A piece of guest code. The address is in x0 throughout, what is loaded or stored in x1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Piece {
    /// A doubleword.
    Load,
    Store,
    /// Calls code there.
    Call,
    /// Two doublewords: without syndrome.
    LoadPair,
    StoreByte,
    StoreZeroHalfword,
    /// A signed byte, to 32 bits.
    LoadSignedByteToWord,
    /// A signed halfword, to 64 bits.
    LoadSignedHalfword,
    /// A word, to x5.
    LoadWordTo5,
    /// Counts up there until the doubleword at x1 is not zero.
    Count,
    /// Adds up x2 doublewords, x1 bytes apart, in x3.
    Sum,
    /// Stores to the first doublewords of x2 pages from there on, in a random order: the first doubleword at x1, a round, with the
    /// number of the store above it. The second at x1 is what was stored last, the third how often to store, the fourth the order's
    /// seed, and the fifth the number before that of the first store.
    Rounds,
    /// Adds x2 (FEAT_LSE).
    AtomicAdd,
    /// Stores x2 if x1 was there (FEAT_LSE).
    CompareAndSwap,
    /// Adds 1, with exclusive access.
    ExclusiveAdd,
    /// AT S1E1R; x1 is PAR_EL1 then.
    Translate,
    /// DC CIVAC.
    CleanLine,
    /// DC IVAC.
    InvalidateLine,
}

impl Piece {
    /// Where it begins, as IPA.
    pub(crate) const fn entry(self) -> u64 {
        CODE + self as u64 * PIECE
    }
}

global_asm!(
    ".macro piece code:vararg",
    ".balign {piece}",
    "\\code",
    "hvc #0",
    ".endm",
    ".pushsection .rodata.guest, \"a\"",
    ".balign 4096",
    "claims_guest:",
    "piece ldr x1, [x0]",
    "piece str x1, [x0]",
    "piece blr x0",
    "piece ldp x1, x2, [x0]",
    "piece strb w1, [x0]",
    "piece strh wzr, [x0]",
    "piece ldrsb w1, [x0]",
    "piece ldrsh x1, [x0]",
    "piece ldr w5, [x0]",
    ".balign {piece}",
    "1: ldr x2, [x0]",
    "add x2, x2, #1",
    "str x2, [x0]",
    "ldr x3, [x1]",
    "cbz x3, 1b",
    "hvc #0",
    ".balign {piece}",
    "mov x3, #0",
    "1: ldr x4, [x0]",
    "add x3, x3, x4",
    "add x0, x0, x1",
    "subs x2, x2, #1",
    "b.ne 1b",
    "hvc #0",
    ".balign {piece}",
    "ldr x7, [x1, #16]",
    "ldp x3, x6, [x1, #24]",
    "1: ldr x4, [x1]",
    "eor x3, x3, x3, lsl #13",
    "eor x3, x3, x3, lsr #7",
    "eor x3, x3, x3, lsl #17",
    "umulh x5, x3, x2",
    "add x5, x0, x5, lsl #12",
    "add x6, x6, #1",
    "orr x4, x4, x6, lsl #32",
    "str x4, [x5]",
    "dmb ish",
    "str x4, [x1, #8]",
    "subs x7, x7, #1",
    "b.ne 1b",
    "hvc #0",
    ".arch_extension lse",
    "piece ldadd x2, x1, [x0]",
    "piece cas x1, x2, [x0]",
    ".arch_extension nolse",
    ".balign {piece}",
    "1: ldxr x1, [x0]",
    "add x1, x1, #1",
    "stxr w3, x1, [x0]",
    "cbnz w3, 1b",
    "hvc #0",
    ".balign {piece}",
    "at s1e1r, x0",
    "isb",
    "mrs x1, par_el1",
    "hvc #0",
    "piece dc civac, x0",
    "piece dc ivac, x0",
    ".balign {vectors}",
    ".rept 16",
    ".balign 128",
    "hvc #1",
    ".endr",
    ".balign 4096",
    ".popsection",
    ".purgem piece",
    piece = const PIECE,
    vectors = const VECTORS,
);

unsafe extern "C" {
    static claims_guest: [u64; BYTES / 8];
}

/// Copies the code to the front of a page.
pub(crate) fn copy_to(page: &[AtomicU64]) {
    // SAFETY: a constant of the image, of this length.
    let code = unsafe { &claims_guest };
    for (from, to) in code.iter().zip(page) {
        to.store(*from, core::sync::atomic::Ordering::Relaxed);
    }
}

/// Code for [`Piece::Call`]: `MOV X1, #value; RET`.
pub(crate) const fn code_returning(value: u16) -> u64 {
    const MOVZ_X1: u64 = 0xd280_0001;
    const RET: u64 = 0xd65f_03c0;
    RET << 32 | MOVZ_X1 | (value as u64) << 5
}
