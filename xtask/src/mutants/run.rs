//! One run of a check, within a time limit, and what it says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::schemata::CHOICE;
use super::table::Checker;
use crate::process;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Passed,
    /// By an assertion, its own or the library's, or by what loom or the compiler found.
    Failed,
    /// Not within the limit.
    TimedOut,
    /// It failed, and has not found anything: loom came to one of its own limits, a program crashed, or there was no such test.
    Gave,
}

impl Ended {
    /// Whether the check has seen the mutant.
    pub(super) fn is_kill(self, may_hang: bool) -> bool {
        self == Self::Failed || may_hang && self == Self::TimedOut
    }
}

/// How long each check may take with a mutant: much longer than without.
#[derive(Debug, Default)]
pub(super) struct Limits(BTreeMap<Checker, Duration>);

impl Limits {
    pub(super) const WITHOUT_MUTANT: Duration = Duration::from_secs(300);
    const LEAST: Duration = Duration::from_secs(20);
    const TIMES: u32 = 10;

    pub(super) fn set(&mut self, checker: &Checker, without_mutant: Duration) {
        self.0.insert(checker.clone(), Self::LEAST + without_mutant * Self::TIMES);
    }

    pub(super) fn of(&self, checker: &Checker) -> Duration {
        self.0.get(checker).copied().unwrap_or(Self::WITHOUT_MUTANT)
    }
}

/// Runs one test of a test program, or all of them if `test` is empty, with a mutant or, if that is 0, with none.
pub(super) fn test(
    mut program: Command,
    test: &str,
    mutant: usize,
    limit: Duration,
    log: &Path,
) -> Result<(Ended, String)> {
    if !test.is_empty() {
        program.args(["--exact", test]);
    }
    program.env(CHOICE, mutant.to_string()).env("RUST_BACKTRACE", "0");
    let (ended, output) = within(&mut program, limit, log)?;
    let ended = match ended {
        Some(Ended::Passed) if output.contains("running 0 tests") => Ended::Gave,
        Some(ended) => ended,
        None => judge(&output),
    };
    Ok((ended, output))
}

/// The first test that failed, of a whole test program with this output; all of it if none is named.
pub(super) fn failed_test(program: &Checker, output: &str) -> Checker {
    let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
    match output.lines().find_map(failed) {
        Some(test) => Checker { name: format!("{}::{test}", program.name), test, ..program.clone() },
        None => program.clone(),
    }
}

/// Runs a command, its output in the file `log`. `None` if it failed, for whatever reason: that is to be read from the output.
pub(super) fn within(command: &mut Command, limit: Duration, log: &Path) -> Result<(Option<Ended>, String)> {
    fs::create_dir_all(log.parent().context("a log is in a folder")?)?;
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", process::describe(command)))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let ended = match status {
        None => Some(Ended::TimedOut),
        Some(status) if status.success() => Some(Ended::Passed),
        Some(_) => None,
    };
    Ok((ended, output))
}

/// What the output of a test program that failed shows.
fn judge(output: &str) -> Ended {
    if output.contains("panicked at") && !output.contains("exceeded maximum number of") {
        Ended::Failed
    } else {
        Ended::Gave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> Option<Ended> {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        within(&mut command, limit, &folder.path().join("new").join("log")).unwrap().0
    }

    #[test]
    fn what_does_not_end_is_ended_and_is_a_kill_only_where_the_table_says_so() {
        let ended = run("sleep 60", Duration::from_millis(50));
        assert_eq!(ended, Some(Ended::TimedOut));
        assert!(Ended::TimedOut.is_kill(true) && !Ended::TimedOut.is_kill(false));
        assert_eq!(run("true", Limits::LEAST), Some(Ended::Passed));
        assert_eq!(run("false", Limits::LEAST), None);
    }

    #[test]
    fn only_a_violation_is_a_failure() {
        let failed = "thread 'a' panicked at tests/loom_protocol.rs:7:\ntest result: FAILED. 0 passed";
        assert_eq!(judge(failed), Ended::Failed);
        assert_eq!(judge("error: could not compile `stage2`"), Ended::Gave);
        let limit = "panicked at: Model exceeded maximum number of branches.\ntest result: FAILED.";
        assert_eq!(judge(limit), Ended::Gave);
    }

    #[test]
    fn a_program_without_the_test_has_not_passed_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo running 0 tests"]);
        assert_eq!(test(command, "", 0, Limits::LEAST, &folder.path().join("log")).unwrap().0, Ended::Gave);
    }

    #[test]
    fn the_first_failed_test_of_a_program_is_named() {
        let output = "test a ... ok\ntest b::c ... FAILED\ntest d ... FAILED\n";
        let host = Checker::whole("host");
        assert_eq!(failed_test(&host, output), Checker::try_from("host::b::c".to_owned()).unwrap());
        assert_eq!(failed_test(&host, "aborted"), host);
    }
}
