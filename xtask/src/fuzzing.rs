//! Fuzz targets: built by cargo-fuzz, then run side by side for as long as is wanted.
//!
//! An input of a target is a whole sequence of operations, so a process says in a file how many it has done
//! (`fuzz/targets/tally.rs`). It is ended from outside; one that ends by itself has found something.
//!
//! New inputs go to the target folder. `fuzz/corpus`, where each run begins, changes only on demand ([`Build::keep`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::prerequisites::{Nightly, ensure_cargo_fuzz};
use crate::process;
use crate::workspace::Workspace;

/// The targets, the one that takes longest to be through with first.
pub(crate) const TARGETS: [&str; 3] = ["operations", "syndrome", "report"];

/// Where a process puts its tally: a variable it reads.
const TALLY: &str = "STAGE2_FUZZ_TALLY";
/// Longest input, in bytes: a thousand operations.
const LONGEST: &str = "-max_len=4096";
const INTERVAL: Duration = Duration::from_millis(100);

/// When it is enough.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    Elapsed(Duration),
    Done(u64),
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Fuzzed {
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
    /// Inputs that went wrong, as files.
    pub(crate) found: Vec<PathBuf>,
}

/// Targets that were built.
pub(crate) struct Build<'a> {
    workspace: &'a Workspace,
    programs: PathBuf,
}

impl<'a> Build<'a> {
    /// Builds all targets; what Cargo says is at the end of `log`.
    pub(crate) fn new(workspace: &'a Workspace, nightly: &Nightly, log: &Path) -> Result<Self> {
        ensure_cargo_fuzz(workspace, nightly)?;
        let mut command = nightly.cargo(workspace, "fuzz");
        // No sanitizer: the code is safe but for table memory, which Miri looks at; and without one it is faster. Nor are comparisons
        // traced, of which the modelled machine makes most.
        command.args(["fuzz", "build", "--sanitizer", "none", "--no-trace-compares", "--target", &nightly.host]);
        let (status, _) = process::log_to(&mut command, log)?;
        ensure!(status.success(), "the fuzz targets do not build (see {})", log.display());
        let programs = workspace.target.join("fuzz").join(&nightly.host).join("release");
        Ok(Self { workspace, programs })
    }

    /// Runs `target` in so many processes.
    pub(crate) fn run(&self, target: &str, processes: u32, until: Until) -> Result<Fuzzed> {
        let folder = self.folder(target);
        let (corpus, artifacts) = (folder.join("corpus"), folder.join("found"));
        if artifacts.exists() {
            fs::remove_dir_all(&artifacts)?;
        }
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&artifacts)?;
        let started = Instant::now();
        let mut running = Vec::new();
        for number in 0..processes.max(1) {
            running.push(self.start(target, &folder, number)?);
        }
        let tally = |running: &[Process]| running.iter().map(Process::operations).sum::<u64>();
        let over = |running: &[Process]| match until {
            Until::Elapsed(time) => started.elapsed() >= time,
            Until::Done(operations) => tally(running) >= operations,
        };
        while !over(&running) && running.iter_mut().all(Process::is_running) {
            thread::sleep(INTERVAL);
        }
        let mut ended = false;
        for process in &mut running {
            ended |= process.stop();
        }
        let mut found: Vec<PathBuf> =
            fs::read_dir(&artifacts)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        found.sort();
        ensure!(!ended || !found.is_empty(), "{target} ended by itself (see {})", folder.display());
        Ok(Fuzzed { operations: tally(&running), seconds: started.elapsed().as_secs_f64(), found })
    }

    fn start(&self, target: &str, folder: &Path, number: u32) -> Result<Process> {
        let log = fs::File::create(folder.join(format!("{number}.log")))?;
        let tally = folder.join(format!("{number}.tally"));
        fs::write(&tally, "0")?;
        let mut command = self.command(target);
        command.arg(LONGEST).arg(format!("-artifact_prefix={}/", folder.join("found").display()));
        command.arg(folder.join("corpus")).arg(self.kept(target));
        command.env(TALLY, &tally);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {target}"))?;
        Ok(Process { child, tally })
    }

    /// Adds to `fuzz/corpus` what runs have found to go to a place of the code where nothing goes that is there. It is
    /// replayed in every test run, so it must be short.
    pub(crate) fn keep(&self, target: &str) -> Result<()> {
        let mut command = self.command(target);
        let longest = if target == TARGETS[0] { "-max_len=120" } else { "-max_len=400" };
        command
            .args(["-merge=1", "-use_counters=0", longest])
            .arg(self.kept(target))
            .arg(self.folder(target).join("corpus"));
        process::read(&mut command).map(drop)
    }

    fn command(&self, target: &str) -> std::process::Command {
        std::process::Command::new(self.programs.join(target))
    }

    fn folder(&self, target: &str) -> PathBuf {
        self.workspace.target.join("stage2-fuzz").join(target)
    }

    fn kept(&self, target: &str) -> PathBuf {
        self.workspace.root.join("fuzz/corpus").join(target)
    }
}

/// One fuzzer; ended when it is dropped.
struct Process {
    child: Child,
    tally: PathBuf,
}

impl Process {
    /// What it has said of itself so far.
    fn operations(&self) -> u64 {
        fs::read_to_string(&self.tally).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it; whether it had ended by itself.
    fn stop(&mut self) -> bool {
        let ended = !self.is_running();
        // An error says that it has ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
        ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_counted_while_it_runs_and_ended_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let tally = folder.path().join("tally");
        let mut process = Process { child: Command::new("sleep").arg("60").spawn().unwrap(), tally: tally.clone() };
        assert_eq!(process.operations(), 0);
        fs::write(&tally, "16384").unwrap();
        assert_eq!(process.operations(), 16384);
        assert!(process.is_running() && !process.stop() && process.stop());
    }

    #[test]
    fn a_tally_that_is_being_written_counts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tally = folder.path().join("tally");
        fs::write(&tally, "").unwrap();
        let process = Process { child: Command::new("true").spawn().unwrap(), tally };
        assert_eq!(process.operations(), 0);
    }
}
