//! Guests: what can be booted, and what the host makes for it and reads from it.

pub(crate) mod console;
mod initrd;
mod kind;

pub(crate) use initrd::{Workload, debian_initrd};
pub(crate) use kind::Guest;
