//! A machine on a host, for tests of this library and of what is built on it (feature `model`).
//!
//! [`ModelArch`] stands in for the instructions and remembers which were issued; [`ModelMemory`] for table memory, with
//! failures to order and freed pages poisoned. Both are instances: a test can have many.

mod arch;

pub use crate::memory::model::{ModelMemory, POISON};
pub use arch::{Event, ModelArch};
