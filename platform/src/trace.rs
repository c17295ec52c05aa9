//! Marks for a tracer: the image says what no instruction shows (`trace-plugin`, `cargo xtask trace`).
//!
//! A mark is a hint that no CPU knows, and so a NOP. It is in every image: what is traced is what runs.

use core::arch::asm;

pub use stage2_trace_events::{
    instruction::MARK_HINT,
    mark::{Lessened, Mark, Pool, WINDOW_CLOSES, WINDOW_OPENS},
};

/// Makes a mark. It stands in the trace between what this CPU did before and what it does after.
#[inline]
pub fn mark(mark: Mark) {
    let [number, first, second] = mark.to_registers();
    // SAFETY: a hint without a meaning is a NOP. It is said to touch memory, so that no store moves across it.
    unsafe {
        asm!("hint #{hint}", hint = const MARK_HINT, in("x0") number, in("x1") first, in("x2") second,
             options(nostack, preserves_flags));
    }
}
