//! ThreadSanitizer over real threads: the stress of `tests/host/threads.rs`, where plain memory stands for frames and
//! table pages. The library must have no data race, and a frame that is used too early must be one: otherwise nothing
//! was looked at.
//!
//! The standard library is the compiled one, so its own reference counts look like races; what of it is left out is
//! listed in `tests/host/threads.supp`, and nothing of the library under test.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::Context;
use super::runner::Tally;
use crate::prerequisites::{NO_NIGHTLY, Nightly};
use crate::process;
use crate::workspace::Workspace;

const GOOD: &str = "threads::four_cpus_at_once_lose_no_frame_no_write_and_no_table";
const BAD: &str = "threads::a_frame_that_is_used_before_its_grace_period_is_over_is_a_data_race";

const FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";
const SUPPRESSIONS: &str = "tests/host/threads.supp";
/// The test takes this many seconds instead of its own two.
const SECONDS: &str = "STAGE2_STRESS_SECONDS";

/// Both tests.
pub(super) fn stress(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let Some(nightly) = Nightly::find() else {
        return Ok(Tally { note: format!("ThreadSanitizer not run: {NO_NIGHTLY}"), ..Tally::default() });
    };
    let mut tally = Tally::default();
    for (test, must_race) in [(GOOD, false), (BAD, true)] {
        let (_, output) = process::log_to(&mut command(context.workspace, &nightly, test), log)?;
        let found = races(&output)?;
        let as_expected = (found != 0) == must_race;
        *(if as_expected { &mut tally.passed } else { &mut tally.failed }) += 1;
        if !as_expected {
            tally.note = format!("{test}: {found} data races");
        }
    }
    Ok(tally)
}

/// How many data races were reported by a test that ran to its end and had nothing to complain of itself.
fn races(output: &str) -> Result<usize> {
    ensure!(output.contains("test result: ok. 1 passed; "), "the test did not build, or failed");
    Ok(output.lines().filter(|line| line.starts_with("WARNING: ThreadSanitizer: ")).count())
}

/// One test, built for ThreadSanitizer; optimized, for without that the threads hardly get to meet.
fn command(workspace: &Workspace, nightly: &Nightly, test: &str) -> Command {
    let mut command = nightly.cargo(workspace, "sanitizer");
    command.args(["test", "--package", "stage2", "--features", "model", "--test", "host", "--target", &nightly.host]);
    command.args(["--config", "profile.dev.package.stage2.opt-level=2"]);
    command.args(["--", "--exact", test, "--include-ignored", "--nocapture"]);
    command.env("RUSTFLAGS", FLAGS);
    let suppressions = workspace.root.join(SUPPRESSIONS);
    command.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
    command.env_remove(SECONDS);
    command
}

/// How many data races the library has in so many seconds.
pub(crate) fn races_in(workspace: &Workspace, nightly: &Nightly, seconds: u64, log: &Path) -> Result<usize> {
    let mut command = command(workspace, nightly, GOOD);
    let (_, output) = process::log_to(command.env(SECONDS, seconds.to_string()), log)?;
    races(&output)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "test result: ok. 1 passed; 0 failed; 0 ignored\n";

    #[test]
    fn races_are_counted_only_of_a_test_that_passed() {
        let race = "WARNING: ThreadSanitizer: data race (pid=7)\n  Write of size 8\n";
        assert_eq!(races(PASSED).unwrap(), 0);
        assert_eq!(races(&format!("{race}{race}{PASSED}")).unwrap(), 2);
        assert!(races(&format!("{race}test result: FAILED. 0 passed; 1 failed\n")).is_err());
        assert!(races("test result: ok. 0 passed; 0 failed; 0 ignored\n").is_err());
        assert!(races("error: could not compile").is_err());
    }
}
