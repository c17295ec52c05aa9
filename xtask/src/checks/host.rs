//! Checks that need only the host.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::runner::Tally;
use super::{Context, libtest};
use crate::cargo::cargo;
use crate::process;

/// Runs a command that passes by exiting with 0.
pub(super) fn must_succeed(command: &mut Command, log: &Path) -> Result<Tally> {
    let (status, _) = process::log_to(command, log)?;
    ensure!(status.success(), "`{}` failed", process::describe(command));
    Ok(Tally::passed())
}

/// Rustfmt has nothing to change.
pub(super) fn format(context: &Context<'_>, log: &Path) -> Result<Tally> {
    must_succeed(cargo(context.workspace).args(["fmt", "--all", "--check"]), log)
}

/// Clippy has nothing to say about any host build, tests and all features included.
pub(super) fn lints(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let mut command = cargo(context.workspace);
    command.args(["clippy", "--workspace", "--all-targets", "--all-features"]);
    must_succeed(command.args(["--", "-D", "warnings"]), log)
}

/// Unit, property, compile-fail and documentation tests.
pub(super) fn tests(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let mut command = cargo(context.workspace);
    // Not all features: with `defmt` a host program does not link.
    command.args(["test", "--workspace", "--features", "stage2/model", "--no-fail-fast"]);
    libtest::run(&mut command, log)
}
