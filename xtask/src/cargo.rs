//! Cargo called from inside `cargo xtask`.
//!
//! What an outer build was told must not leak into an inner one: flags would change what is
//! checked and rebuild everything. `CARGO_TARGET_DIR` is respected; all flags are set here.

use std::env;
use std::process::Command;

use crate::workspace::Workspace;

/// The EL2 images' target: EL2 must not touch the FP/SIMD registers.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Variables of an outer build that would change an inner one.
const LEAKS: [&str; 7] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTDOCFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

/// The cargo that runs us, in the workspace, with no inherited flags.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    isolate(&mut command, workspace);
    command
}

/// The same isolation for a program that calls cargo itself.
pub(crate) fn isolate(command: &mut Command, workspace: &Workspace) {
    command.current_dir(&workspace.root);
    for name in LEAKS {
        command.env_remove(name);
    }
    command.env("CARGO_TARGET_DIR", &workspace.target);
}
