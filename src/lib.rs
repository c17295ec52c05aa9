#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
//! stage2
#[cfg(any(test, loom, feature = "model"))]
extern crate std;
pub mod addr;
pub mod arch;
pub mod cpu;
pub mod descriptor;
pub mod dirty;
pub mod error;
pub mod fault;
pub mod geometry;
pub mod memory;
pub mod mmu;
#[cfg(any(test, loom, feature = "model"))]
pub mod model;
pub mod quiescence;
pub mod reclaim;
pub mod stage2;
mod sync;
mod tlb;
mod tree;
mod twin;
pub mod vmid;
mod walk;
