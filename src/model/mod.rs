//! A machine on a host, for tests of this library and of what is built on it (feature `model`).
//!
//! - [`ModelMmu`] is a machine whose MMUs do the worst that the architecture allows, watched by a [`checker`]: guests run on it, and
//!   what must never happen ends the test.
//! - [`ModelArch`] stands in for the instructions and remembers which were issued, for tests of exact sequences.
//! - [`ModelMemory`] is table memory, with failures to order and freed pages poisoned.
//!
//! All are instances: a test can have many.

mod arch;
#[cfg(all(feature = "model", not(loom)))]
pub mod checker;
#[cfg(all(feature = "model", not(loom)))]
mod frames;
#[cfg(all(feature = "model", not(loom)))]
mod guest;
#[cfg(all(feature = "model", not(loom)))]
mod mmu;

pub use crate::memory::model::{ModelMemory, POISON};
#[cfg(all(feature = "model", not(loom)))]
pub use crate::sync::probe::Seat;
pub use arch::{Event, ModelArch};
#[cfg(all(feature = "model", not(loom)))]
pub use checker::Access;
#[cfg(all(feature = "model", not(loom)))]
pub use frames::Through;
#[cfg(all(feature = "model", not(loom)))]
pub use mmu::ModelMmu;
