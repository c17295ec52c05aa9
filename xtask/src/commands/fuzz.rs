//! `cargo xtask fuzz`: the fuzz targets, for as long as is wanted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::fuzzing::{Build, Fuzzed, TARGETS, Until};
use crate::prerequisites::{NO_NIGHTLY, Nightly};
use crate::report;
use crate::workspace::Workspace;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One of the targets [default: each in turn]
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long, for each target
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Until so many operations were done instead, by each target
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    operations: Option<u64>,
    /// Processes at once [default: as many as there are CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    processes: Option<u32>,
    /// Add what goes elsewhere than all before to fuzz/corpus
    #[arg(long)]
    keep: bool,
    /// Where to write the report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// All targets' work.
#[derive(Debug, Default, Serialize)]
struct FuzzReport {
    operations: u64,
    violations: u64,
    targets: BTreeMap<String, Fuzzed>,
}

/// Fuzzes; an error at the first target that found something, whose inputs stay.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    arguments.report.as_deref().map_or(Ok(()), report::check_place)?;
    let nightly = Nightly::find().context(NO_NIGHTLY)?;
    std::fs::create_dir_all(workspace.test_folder())?;
    let build = Build::new(workspace, &nightly, &workspace.test_folder().join("fuzz.log"))?;
    let cpus = || thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
    let processes = arguments.processes.unwrap_or_else(cpus);
    let until = arguments.operations.map_or(Until::Elapsed(Duration::from_secs(arguments.seconds)), Until::Done);

    let mut report = FuzzReport::default();
    for target in TARGETS.into_iter().filter(|target| arguments.target.as_deref().is_none_or(|only| only == *target)) {
        println!("{target}: {processes} processes");
        let fuzzed = build.run(target, processes, until)?;
        println!("{target}: {} operations in {:.0} s", fuzzed.operations, fuzzed.seconds);
        report.operations += fuzzed.operations;
        report.violations += fuzzed.found.len() as u64;
        let found = fuzzed.found.first().cloned();
        report.targets.insert(target.to_owned(), fuzzed);
        if let Some(path) = &arguments.report {
            report::write(path, &report)?;
        }
        if let Some(input) = found {
            bail!("{target} went wrong with {} (its log is beside the folder it is in)", input.display());
        }
        if arguments.keep {
            build.keep(target)?;
        }
    }
    ensure!(report.operations != 0, "nothing was done");
    Ok(())
}
