//! `cargo xtask soak`: the Debian run over and over, on each CPU model in turn.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::checks::CPUS;
use crate::job::{self, Finished, Job};
use crate::prerequisites::{Qemu, TargetStd};
use crate::report;
use crate::workspace::Workspace;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long; every CPU model has at least one run
    #[arg(long, value_name = "N")]
    minutes: u64,
    /// Where to write the accumulated report as JSON
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// The first run's seed; each run takes the next
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// All runs so far.
#[derive(Debug, Default, Serialize)]
struct SoakReport {
    runs: Vec<Value>,
    /// Clean runs of each CPU model.
    clean: BTreeMap<String, u64>,
    violations: u64,
}

/// Runs until the time is up; an error at the first run that is not clean, whose logs stay.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    report::check_place(&arguments.report)?;
    let started = Instant::now();
    let time = Duration::from_secs(60 * arguments.minutes);
    let qemu = Qemu::ensure()?;
    let target = TargetStd::ensure(workspace)?;
    job::build_images(workspace, &target)?;

    let mut soak = SoakReport::default();
    for (number, (cpu, seed)) in CPUS.into_iter().cycle().zip(arguments.seed..).enumerate() {
        if number >= CPUS.len() && started.elapsed() >= time {
            break;
        }
        let job = Job::debian(&format!("soak-{cpu}"), cpu, seed);
        let finished = job.execute(workspace, &qemu)?;
        soak.add(cpu, seed, &finished);
        // Written after each run: an interrupted soak leaves what it has seen.
        report::write(&arguments.report, &soak)?;
        if let Some(failure) = finished.failures.first() {
            bail!("{cpu}, seed {seed}: {failure} (logs: {})", finished.folder.display());
        }
        println!("run {}: {cpu}, seed {seed}: clean", number + 1);
    }
    println!("{} runs, all clean", soak.runs.len());
    Ok(())
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
    }
}
