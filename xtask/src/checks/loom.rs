//! The concurrent protocol under loom, which tries every interleaving. What each test would miss is the matter of the mutants.

use std::path::Path;

use anyhow::Result;

use super::runner::Tally;
use super::{Context, libtest};
use crate::cargo::cargo;

/// All loom tests: `cargo test` with loom in place of the real atomics; release, for it is slow, and in a target folder of its
/// own, for its flags concern every crate.
pub(super) fn protocol(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let mut command = cargo(context.workspace);
    command.args(["test", "--package", "stage2", "--release", "--no-fail-fast", "--test", "loom*"]);
    command.env("RUSTFLAGS", "--cfg loom");
    // The stacks of loom's threads have no room for one: a test that fails would overflow them.
    command.env("RUST_BACKTRACE", "0");
    command.env("CARGO_TARGET_DIR", context.workspace.target.join("loom"));
    libtest::run(&mut command, log)
}
