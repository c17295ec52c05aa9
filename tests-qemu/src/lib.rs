//! What the bare-metal binaries share: the library, set up on QEMU's `virt` machine.
//!
//! - `machine`: the CPUs' features, table memory and the `Mmu` over it;
//! - `tables`: table memory that a tracer knows;
//! - `memory`: RAM as slices of atomic words;
//! - `frames`: page frames in scrambled order;
//! - `say`: errors in words.
//!
//! On any other target this crate is empty.

#![no_std]
#![cfg(all(target_arch = "aarch64", target_os = "none"))]

extern crate alloc;

pub mod frames;
pub mod machine;
pub mod memory;
pub mod say;
pub mod tables;
