//! What the library's operations cost, in instructions, on the machine itself: the real instructions, on real tables.
//!
//! To be run under QEMU's `-icount shift=0`, where the count of instructions is exact; without it the image refuses. A *group* of
//! operations is a module with a function that sets its scenes, measures and reports ([`suite`]); the host knows what is to be
//! made of the figures.
//!
//! Arguments: `group=NAME`. The CPUs that a group takes are in [`suite`]'s list.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod suite;

#[cfg(target_os = "none")]
stage2_platform::main!(suite::run);

#[cfg(not(target_os = "none"))]
fn main() {}
