//! What a machine with only rustup's Rust and git lacks: QEMU, the target's standard library, a
//! guest kernel, SPIN. Each is looked for first; what is missing is installed with the package manager,
//! saying what and why, or fails with one line.

mod apt;
mod cargo_fuzz;
pub(crate) mod debian_guest;
mod nightly;
pub(crate) mod qemu;
pub(crate) mod qemu_plugins;
mod spin;
pub(crate) mod target_std;

pub(crate) use cargo_fuzz::ensure_cargo_fuzz;
pub(crate) use debian_guest::DebianGuest;
pub(crate) use nightly::{NO_NIGHTLY, Nightly};
pub(crate) use qemu::Qemu;
pub(crate) use qemu_plugins::qemu_with_plugins;
pub(crate) use spin::ensure_spin;
pub(crate) use target_std::TargetStd;
