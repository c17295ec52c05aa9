//! `cargo xtask soak`: the long forms of what `cargo xtask test` runs a slice of, sharing the time: the Debian run over and over,
//! on each CPU model in turn; traces of the images; schedules; fuzzing; real threads under ThreadSanitizer.
//!
//! A stage is given a time by which it should end, and adds what it has done to the report; whatever it does at least
//! once it does also if that takes longer. The report is written after every piece of work, so that an interrupted soak leaves
//! what it has seen.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::checks::{CPUS, sanitizer, shuttle};
use crate::fuzzing::{Build, TARGETS, Until};
use crate::job::{self, Finished, Job};
use crate::prerequisites::{NO_NIGHTLY, Nightly, Qemu, TargetStd, qemu_with_plugins};
use crate::report;
use crate::trace::{Expected, Recorder};
use crate::workspace::Workspace;

/// How long Debian works in each trace.
const TRACED_SECONDS: u64 = 20;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long; every stage and every CPU model has at least one run
    #[arg(long, value_name = "N")]
    minutes: u64,
    /// Where to write the accumulated report as JSON
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// The first run's seed; each run takes the next
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// Everything so far.
#[derive(Debug, Default, Serialize)]
struct SoakReport {
    runs: Vec<Value>,
    /// Clean runs of each CPU model.
    clean: BTreeMap<String, u64>,
    /// What the images did to tables and TLBs, checked by the model.
    trace_events: u64,
    /// Schedules of whole machines on the modelled MMU.
    schedules: u64,
    /// Operations and inputs that fuzzers tried.
    operations: u64,
    /// Seconds of real threads under ThreadSanitizer.
    sanitized_seconds: u64,
    violations: u64,
    /// Stages that could not be run, and why.
    skipped: Vec<String>,
}

/// A stage and its share of the time.
struct Stage {
    name: &'static str,
    percent: u32,
    run: fn(&mut Soak<'_>, Instant) -> Result<()>,
}

const STAGES: [Stage; 5] = [
    Stage { name: "Debian", percent: 35, run: |soak, until| soak.debian(until) },
    Stage { name: "traces", percent: 15, run: |soak, until| soak.trace(until) },
    Stage { name: "schedules", percent: 20, run: |soak, until| soak.schedules(until) },
    Stage { name: "fuzzing", percent: 25, run: |soak, until| soak.fuzz(until) },
    Stage { name: "ThreadSanitizer", percent: 5, run: |soak, until| soak.sanitize(until) },
];

/// What the stages share.
struct Soak<'a> {
    workspace: &'a Workspace,
    arguments: &'a Arguments,
    report: SoakReport,
}

/// Runs until the time is up; an error at the first thing that is not clean, whose logs stay.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    report::check_place(&arguments.report)?;
    let time = Duration::from_secs(60 * arguments.minutes);
    let mut soak = Soak { workspace, arguments, report: SoakReport::default() };
    std::fs::create_dir_all(workspace.test_folder())?;
    for Stage { name, percent, run } in STAGES {
        println!("{name}: {percent} % of the time");
        run(&mut soak, Instant::now() + time * percent / 100)?;
    }
    soak.save()?;
    let SoakReport { runs, trace_events, schedules, operations, skipped, .. } = &soak.report;
    let runs = runs.len();
    println!("{runs} runs, {trace_events} traced events, {schedules} schedules, {operations} operations, all clean");
    skipped.iter().for_each(|skipped| println!("not run: {skipped}"));
    Ok(())
}

impl Soak<'_> {
    fn save(&self) -> Result<()> {
        report::write(&self.arguments.report, &self.report)
    }

    /// Something was found: it is counted, the report written, and the soak is over.
    fn fail(&mut self, violations: u64, what: String) -> Result<()> {
        self.report.violations += violations;
        self.save()?;
        bail!(what)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.workspace.test_folder().join(name)
    }

    fn debian(&mut self, until: Instant) -> Result<()> {
        let qemu = Qemu::ensure()?;
        job::build_images(self.workspace, &TargetStd::ensure(self.workspace)?)?;
        for (number, (cpu, seed)) in CPUS.into_iter().cycle().zip(self.arguments.seed..).enumerate() {
            if number >= CPUS.len() && Instant::now() >= until {
                break;
            }
            let job = Job::debian(&format!("soak-{cpu}"), cpu, seed);
            let finished = job.execute(self.workspace, &qemu)?;
            self.report.add(cpu, seed, &finished);
            self.save()?;
            if let Some(failure) = finished.failures.first() {
                bail!("{cpu}, seed {seed}: {failure} (logs: {})", finished.folder.display());
            }
            println!("run {}: {cpu}, seed {seed}: clean", number + 1);
        }
        Ok(())
    }

    fn trace(&mut self, until: Instant) -> Result<()> {
        let qemu = match qemu_with_plugins(self.workspace) {
            Ok(qemu) => qemu,
            Err(error) => {
                self.report.skipped.push(format!("traces: {error:#}"));
                return Ok(());
            }
        };
        let recorder = Recorder::prepare(self.workspace, &qemu, Some(&self.log("soak-trace.log")))?;
        let mut traced = recorder.claims()?;
        loop {
            self.report.trace_events += traced.findings.events;
            let wrong = traced.wrong(Expected::Whole);
            if let Some(first) = wrong.first() {
                return self.fail(traced.findings.violations.len() as u64, format!("traced: {first}"));
            }
            self.save()?;
            if Instant::now() >= until {
                return Ok(());
            }
            traced = recorder.debian(TRACED_SECONDS)?;
        }
    }

    fn schedules(&mut self, until: Instant) -> Result<()> {
        let log = self.log("soak-schedules.log");
        // A round of some minutes, so that the report is never long out of date.
        let mut per_test = 1000;
        loop {
            let started = Instant::now();
            match shuttle::explore(self.workspace, per_test, &log)? {
                Ok(schedules) => self.report.schedules += schedules,
                Err(failed) => return self.fail(1, format!("{failed} (log: {})", log.display())),
            }
            self.save()?;
            let (took, left) = (started.elapsed(), until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(());
            }
            per_test = next_round(per_test, took, left.min(Duration::from_secs(180)));
        }
    }

    fn fuzz(&mut self, until: Instant) -> Result<()> {
        let Some(nightly) = Nightly::find() else {
            self.report.skipped.push(format!("fuzzing: {NO_NIGHTLY}"));
            return Ok(());
        };
        let build = Build::new(self.workspace, &nightly, &self.log("soak-fuzz.log"))?;
        let processes = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        // Most of it is for the sequences of operations, which have the most places to go to.
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(30));
        for (target, percent) in TARGETS.into_iter().zip([80, 10, 10]) {
            let fuzzed = build.run(target, processes, Until::Elapsed(left * percent / 100))?;
            self.report.operations += fuzzed.operations;
            self.save()?;
            if let Some(input) = fuzzed.found.first() {
                return self.fail(fuzzed.found.len() as u64, format!("{target} went wrong with {}", input.display()));
            }
        }
        Ok(())
    }

    fn sanitize(&mut self, until: Instant) -> Result<()> {
        let Some(nightly) = Nightly::find() else {
            self.report.skipped.push(format!("ThreadSanitizer: {NO_NIGHTLY}"));
            return Ok(());
        };
        let seconds = until.saturating_duration_since(Instant::now()).as_secs().max(10);
        let log = self.log("soak-sanitizer.log");
        let races = sanitizer::races_in(self.workspace, &nightly, seconds, &log)?;
        if races != 0 {
            return self.fail(races as u64, format!("{races} data races (log: {})", log.display()));
        }
        self.report.sanitized_seconds += seconds;
        self.save()
    }
}

/// How many schedules a test should try so that a round takes `time`, if `per_test` of them took so long.
fn next_round(per_test: u64, took: Duration, time: Duration) -> u64 {
    let scaled = per_test as f64 * time.as_secs_f64() / took.as_secs_f64().max(0.1);
    (scaled as u64).clamp(100, 100 * per_test)
}

impl SoakReport {
    fn add(&mut self, cpu: &str, seed: u64, finished: &Finished) {
        let clean = self.clean.entry(cpu.to_owned()).or_default();
        *clean += u64::from(finished.failures.is_empty());
        self.violations += finished.report.get(&["violations"]).and_then(Value::as_u64).unwrap_or_default();
        let mut run = finished.report.to_value();
        run["cpu"] = cpu.into();
        run["seed"] = seed.into();
        self.runs.push(run);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::machine::Ending;
    use crate::report::Report;
    use crate::verdict::Failure;

    fn finished(violations: u64, failures: Vec<Failure>) -> Finished {
        let Value::Object(fields) = json!({"outcome": "powered-off", "violations": violations}) else { unreachable!() };
        Finished { report: Report::new(Some(fields), Ending::Exited(0)), failures, folder: PathBuf::new() }
    }

    #[test]
    fn runs_are_counted_by_cpu_and_kept() {
        let mut soak = SoakReport::default();
        soak.add("max", 1, &finished(0, Vec::new()));
        soak.add("max", 2, &finished(2, vec![Failure::Violations(2)]));
        let value = serde_json::to_value(&soak).unwrap();
        assert_eq!(value["clean"], json!({"max": 1}));
        assert_eq!(value["violations"], 2);
        assert_eq!(value["runs"][1]["seed"], 2);
        assert_eq!(value["runs"][1]["outcome"], "powered-off");
        assert_eq!(value["schedules"], 0);
    }

    #[test]
    fn the_stages_share_all_of_the_time() {
        assert_eq!(STAGES.iter().map(|stage| stage.percent).sum::<u32>(), 100);
    }

    #[test]
    fn a_round_of_schedules_fits_the_time_that_is_left() {
        let seconds = Duration::from_secs;
        assert_eq!(next_round(1000, seconds(10), seconds(180)), 18_000);
        assert_eq!(next_round(1000, seconds(10), seconds(5)), 500);
        assert_eq!(next_round(1000, seconds(100), seconds(1)), 100, "never nothing");
        assert_eq!(next_round(100, Duration::ZERO, seconds(180)), 10_000, "never far more than was measured");
    }
}
