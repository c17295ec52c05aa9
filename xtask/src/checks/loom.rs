//! The concurrent protocol under loom, which tries every interleaving: the real one must pass,
//! and each twin with one protection removed must fail.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::runner::Tally;
use super::{Context, libtest};
use crate::cargo::cargo;
use crate::process;

/// The test program that holds the protocol.
const PROTOCOL: &str = "loom_protocol";

/// The library with one protection taken out by a `cfg`.
pub(super) struct Twin {
    pub(super) removed: &'static str,
    cfg: &'static str,
}

/// Every protection that a loom test must miss when it alone is removed.
pub(super) const TWINS: [Twin; 3] = [
    Twin { removed: "recheck removed", cfg: "twin_no_recheck" },
    Twin { removed: "grace period removed", cfg: "twin_no_grace" },
    Twin { removed: "parent cleared without the child's lock", cfg: "twin_no_child_lock" },
];

/// All loom tests of the library as it is.
pub(super) fn protocol(context: &Context<'_>, log: &Path) -> Result<Tally> {
    libtest::run(test(context, None).args(["--test", "loom*"]), log)
}

/// A twin must build and then fail in a test: what does not compile shows nothing.
pub(super) fn twin_must_fail(context: &Context<'_>, log: &Path, twin: &Twin) -> Result<Tally> {
    let command = || {
        let mut command = test(context, Some(twin));
        command.args(["--test", PROTOCOL]);
        command
    };
    let (status, _) = process::log_to(command().arg("--no-run"), log)?;
    ensure!(status.success(), "the twin does not build");
    let (status, output) = process::log_to(&mut command(), log)?;
    ensure!(!status.success(), "no test fails with the {}", twin.removed);
    ensure!(found_violation(&output), "the twin ended without a violation found by loom");
    Ok(Tally::passed())
}

/// A test that ran and failed, and not because loom gave up at one of its own limits.
fn found_violation(output: &str) -> bool {
    output.contains("test result: FAILED")
        && output.contains("panicked at")
        && !output.contains("exceeded maximum number of")
}

/// `cargo test` with loom in place of the real atomics; release, for it is slow, and in a target
/// folder of its own, for its flags concern every crate.
fn test(context: &Context<'_>, twin: Option<&Twin>) -> Command {
    let mut flags = "--cfg loom".to_owned();
    if let Some(twin) = twin {
        flags += &format!(" --cfg {}", twin.cfg);
    }
    let mut command = cargo(context.workspace);
    command.args(["test", "--package", "stage2", "--release", "--no-fail-fast"]);
    command.env("RUSTFLAGS", flags);
    // The stacks of loom's threads have no room for one: a test that fails would overflow them.
    command.env("RUST_BACKTRACE", "0");
    command.env("CARGO_TARGET_DIR", context.workspace.target.join("loom"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_test_is_a_violation() {
        let failed = "thread 'a' panicked at tests/loom_protocol.rs:7:\ntest result: FAILED. 0 passed";
        assert!(found_violation(failed));
        assert!(!found_violation("error: could not compile `stage2`"));
        let limit = "panicked at: Model exceeded maximum number of branches.\ntest result: FAILED.";
        assert!(!found_violation(limit));
    }
}
