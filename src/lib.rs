#![no_std]
#![doc = include_str!("../README.md")]
//!
//! # The protocol on one page
//!
//! A *table* is a page of descriptors that the hardware walks. Beside it, never inside, stands its metadata: a lock, the count of
//! occupied entries, owner, level and base. Metadata outlives its table.
//!
//! - **Look**: within a read section (between two quiescent states of the CPU's [`Reader`]) descend from the root, one load
//!   a level. No lock, no store. What is seen was true at some instant of the section.
//! - **Change**: descend likewise, remembering address and value of the entry that led to the table; lock the table;
//!   re-read that entry; if it changed, unlock and start over. If not, the table is linked and stays so until unlocked.
//! - **Remove a mapping**: turn the entry into a marker; flush (`Gather`, DSB, TLBI, DSB, ...); then clear it. A fault that meets a
//!   marker waits, a scan that meets one reads the truth.
//! - **Remove a table**: lock parent and child, see that the child is empty, clear the parent's entry; flush; wait
//!   until no reader can be in it (a grace period); give it back.
//!
//! Everything rests on two facts. A table's entry is cleared only with *both* locks held, so whoever holds the child's lock
//! and finds the parent unchanged has a linked table. And no table seen in a read section is freed before the section's
//! end, so an unchanged parent means the same table. `docs/locking.md` has the states, the order and every barrier.
//!
//! # Modules
//!
//! Dependencies point one way: [`addr`], [`geometry`], `sync` → [`descriptor`] → [`quiescence`] → [`memory`], [`arch`] → [`mmu`] →
//! walk → tlb → [`stage2`](mod@stage2) → [`fault`], [`dirty`], [`aging`], [`reclaim`].
//!
//! # Features
//! - `defmt`: `defmt::Format` for every public type that is a value. Shared state ([`Stage2`], [`Mmu`], `CpuSlot`, table memory
//!   and metadata) and the rights to it ([`Reader`], `Loaded`, `Frozen`, `DirtyLog`) are not: what atomics and locks hold is read
//!   through their own methods.
//! - `model`: the modelled machine, for tests on a host.

#[cfg(any(test, loom, feature = "model"))]
extern crate std;

#[cfg(all(shuttle, not(feature = "model")))]
compile_error!("under cfg(shuttle) the words are watched: build with the feature `model`");

pub mod addr;
pub mod aging;
pub mod arch;
mod changes;
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
pub mod vmid;
mod walk;

pub use addr::{Ipa, IpaRange, Level, Pa};
pub use mmu::Mmu;
pub use quiescence::Reader;
pub use stage2::Stage2;
