//! Whole machines on the modelled MMU under shuttle, which samples schedules where loom would have too many.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::runner::Tally;
use super::{Context, libtest};
use crate::cargo::cargo;
use crate::process;
use crate::workspace::Workspace;

/// How many schedules each test tries, of each kind: a variable the tests read.
pub(crate) const SCHEDULES: &str = "STAGE2_SCHEDULES";

/// A bounded slice.
pub(super) fn schedules(context: &Context<'_>, log: &Path) -> Result<Tally> {
    libtest::run(test(context.workspace).env(SCHEDULES, "2000"), log)
}

/// All tests with so many schedules each, of each kind: how many that were, or which test failed.
pub(crate) fn explore(workspace: &Workspace, per_test: u64, log: &Path) -> Result<Result<u64, String>> {
    let mut command = test(workspace);
    command.env(SCHEDULES, per_test.to_string()).args(["--", "--show-output"]);
    let (status, output) = process::log_to(&mut command, log)?;
    if let Some(failed) = output.lines().find(|line| line.starts_with("test ") && line.ends_with(" ... FAILED")) {
        return Ok(Err(failed.to_owned()));
    }
    ensure!(status.success(), "the schedules do not build, or crashed (log: {})", log.display());
    Ok(Ok(count(&output)))
}

/// Adds up the lines `4000 schedules`.
fn count(output: &str) -> u64 {
    output.lines().filter_map(|line| line.strip_suffix(" schedules")?.parse::<u64>().ok()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedules_of_all_tests_are_added() {
        let output = "---- a stdout ----\n4000 schedules\n\n---- b stdout ----\n4000 schedules\nmany schedules\n";
        assert_eq!(count(output), 8000);
    }
}
