//! `cargo xtask trace`: what the images do to tables and TLBs, recorded and checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::job;
use crate::prerequisites::{TargetStd, qemu_with_plugins};
use crate::report;
use crate::trace::{BARRIERS, Expected, Recorder, Traced};
use crate::workspace::Workspace;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What to trace
    #[arg(long, value_enum, default_value_t = What::All)]
    what: What,
    /// How long Debian works
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Where to write the report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What can be traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// All of these
    All,
    /// The on-target tests
    Claims,
    /// One of them without each kind of barrier, which has to be noticed
    Twins,
    /// The main job with Debian
    Debian,
}

/// All traces.
#[derive(Debug, Default, Serialize)]
struct TraceReport {
    trace_events: u64,
    violations: u64,
    /// What was wrong, a line each.
    wrong: Vec<String>,
    jobs: BTreeMap<String, Traced>,
}

/// Traces; an error unless nothing was found where nothing is wrong, and something where something was taken away.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    arguments.report.as_deref().map_or(Ok(()), report::check_place)?;
    let qemu = qemu_with_plugins(workspace)?;
    job::build_images(workspace, &TargetStd::ensure(workspace)?)?;
    let recorder = Recorder::prepare(workspace, &qemu, None)?;
    let wants = |what| arguments.what == What::All || arguments.what == what;
    let mut report = TraceReport::default();
    if wants(What::Claims) {
        report.add("claims", recorder.claims()?, Expected::Whole);
    }
    if wants(What::Twins) {
        for barrier in BARRIERS {
            report.add(&format!("without {barrier}"), recorder.claim_without(barrier)?, Expected::FoundOut);
        }
    }
    if wants(What::Debian) {
        report.add("debian", recorder.debian(arguments.seconds)?, Expected::Whole);
    }
    if let Some(path) = &arguments.report {
        report::write(path, &report)?;
    }
    match report.wrong.split_first() {
        None => Ok(()),
        Some((first, [])) => bail!("{first}"),
        Some((first, rest)) => {
            eprintln!("error: {first}");
            rest.iter().for_each(|wrong| eprintln!("error: {wrong}"));
            bail!("{} things went wrong", report.wrong.len())
        }
    }
}

impl TraceReport {
    fn add(&mut self, name: &str, traced: Traced, expected: Expected) {
        let findings = &traced.findings;
        println!(
            "{name}: {} events of {} pools, {} violations, {} of {} twins found out, {:.1} s",
            findings.events,
            findings.pools,
            findings.violations.len(),
            findings.twins_caught,
            findings.twins,
            traced.seconds
        );
        self.trace_events += findings.events;
        self.violations += findings.violations.len() as u64;
        self.wrong.extend(traced.wrong(expected).into_iter().map(|wrong| format!("{name}: {wrong}")));
        self.jobs.insert(name.to_owned(), traced);
    }
}
