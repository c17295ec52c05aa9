//! Whole machines on the modelled MMU under shuttle, which samples schedules where loom would have too many.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::runner::Tally;
use super::{Context, libtest};
use crate::cargo::cargo;
use crate::workspace::Workspace;

/// How many schedules each test tries, of each kind: a variable the tests read.
pub(crate) const SCHEDULES: &str = "STAGE2_SCHEDULES";

/// A bounded slice.
pub(super) fn schedules(context: &Context<'_>, log: &Path) -> Result<Tally> {
    libtest::run(test(context.workspace).env(SCHEDULES, "2000"), log)
}

/// `cargo test` with shuttle in place of the real atomics, in a target folder of its own: its flags concern every crate.
pub(crate) fn test(workspace: &Workspace) -> Command {
    let mut command = cargo(workspace);
    command.args(["test", "--package", "stage2", "--features", "model", "--release", "--no-fail-fast"]);
    command.args(["--test", "shuttle"]);
    command.env("RUSTFLAGS", "--cfg shuttle");
    command.env("CARGO_TARGET_DIR", workspace.target.join("shuttle"));
    command
}
