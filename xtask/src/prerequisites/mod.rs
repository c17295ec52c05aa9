//! What a machine with only rustup's Rust and git lacks: QEMU, the target's standard library, a
//! guest kernel. Each is looked for first; what is missing is installed with the package manager,
//! saying what and why, or fails with one line.

mod apt;
pub(crate) mod debian_guest;
pub(crate) mod qemu;
pub(crate) mod qemu_plugins;
pub(crate) mod target_std;

pub(crate) use debian_guest::DebianGuest;
pub(crate) use qemu::Qemu;
pub(crate) use qemu_plugins::qemu_with_plugins;
pub(crate) use target_std::TargetStd;
