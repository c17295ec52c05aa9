//! What the images really do: recorded by a plugin of QEMU's, checked by the library's own model of what MMUs may do.
//!
//! ```text
//! image (marks) -> QEMU -> trace-plugin -> socket -> stream -> instructions, shadow -> stage2::model::checker
//! ```
//! The image is the one that runs elsewhere. A plugin sees its instructions as the compiler made them: a barrier that is not there, or
//! a store in the wrong order, no test of the source can show.
//!
//! # What a trace does not say
//! What the hardware walks and caches (the checker assumes the worst), what CPUs read (each is taken to know of everything before: so
//! an order that only a missing acquire breaks is not noticed), and what the guest does.

mod findings;
mod instructions;
mod shadow;
mod stream;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Error, Result, ensure};
use serde::Serialize;

pub(crate) use self::findings::Findings;
use self::findings::Watcher;
use self::stream::Listener;
use crate::cargo::cargo;
use crate::checks::{claims_machine, make_claims};
use crate::job::Job;
use crate::machine::arguments::{Machine, Told, Tracer};
use crate::prerequisites::Qemu;
use crate::process;
use crate::workspace::Workspace;

/// The CPU model that is traced: the one with everything, so that the library uses it all.
const CPU: &str = "max";
/// The claim that is made without a barrier.
const WITHOUT: &str = "an_unmapped_page_faults_on_every_vcpu";

/// A QEMU and a plugin for it.
pub(crate) struct Recorder<'a> {
    workspace: &'a Workspace,
    qemu: &'a Qemu,
    plugin: PathBuf,
}

/// The library's barriers that are taken away, each by itself.
pub(crate) const BARRIERS: [&str; 2] = ["dsb-ishst", "dsb-ish"];

/// What a trace should show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Nothing wrong, where nothing was taken from the library.
    Whole,
    /// Something was taken away for the whole boot.
    FoundOut,
}

/// What came of a traced boot.
#[derive(Debug, Serialize)]
pub(crate) struct Traced {
    pub(crate) findings: Findings,
    /// What was wrong with the boot itself.
    pub(crate) failures: Vec<String>,
    pub(crate) seconds: f64,
}

impl Traced {
    /// Everything that is not as it should be, a line each.
    pub(crate) fn wrong(&self, expected: Expected) -> Vec<String> {
        let Findings { events, pools, violations, twins, twins_caught, .. } = &self.findings;
        let mut wrong: Vec<String> = violations.iter().chain(&self.failures).cloned().collect();
        if twins_caught != twins {
            wrong.push(format!("{} of {twins} twins are not found out", twins - twins_caught));
        }
        let shown = match expected {
            Expected::Whole => *pools,
            Expected::FoundOut => *twins,
        };
        if shown == 0 || *events == 0 {
            wrong.push("nothing was checked".to_owned());
        }
        wrong
    }
}

/// Builds the plugin, and says where it is.
pub(crate) fn build_plugin(workspace: &Workspace, log: Option<&Path>) -> Result<PathBuf> {
    let mut command = cargo(workspace);
    command.args(["build", "--release", "--package", "stage2-trace-plugin"]);
    match log {
        Some(log) => ensure!(process::log_to(&mut command, log)?.0.success(), "the trace plugin does not build"),
        None => process::show(&mut command).context("cannot build the trace plugin")?,
    }
    Ok(workspace.target.join("release").join("libstage2_trace_plugin.so"))
}

impl<'a> Recorder<'a> {
    /// Builds the plugin.
    pub(crate) fn prepare(workspace: &'a Workspace, qemu: &'a Qemu, log: Option<&Path>) -> Result<Self> {
        Ok(Self { workspace, qemu, plugin: build_plugin(workspace, log)? })
    }

    /// All claims.
    pub(crate) fn claims(&self) -> Result<Traced> {
        self.record_claims("trace-claims", &[])
    }

    /// One claim, without a kind of barrier: to be found out.
    pub(crate) fn claim_without(&self, what: &str) -> Result<Traced> {
        let arguments: [String; 2] = [format!("claim={WITHOUT}"), format!("without={what}")];
        self.record_claims(&format!("trace-without-{what}"), &arguments)
    }

    fn record_claims(&self, name: &str, arguments: &[String]) -> Result<Traced> {
        let mut machine: Machine = claims_machine(self.workspace, self.qemu, CPU);
        machine.arguments.extend_from_slice(arguments);
        let cpus = machine.cpus;
        self.record(name, cpus, |tracer| {
            machine.tracer = Some(tracer);
            let (tally, words) = make_claims(self.workspace, &machine, name)?;
            let failed = words.lines().filter(|line| line.starts_with("Failed")).map(str::to_owned);
            let mut failures: Vec<String> = failed.collect();
            if tally.failed as usize > failures.len() {
                failures.push(tally.note);
            }
            Ok(failures)
        })
    }

    /// The main job with Debian, which works for `seconds`.
    pub(crate) fn debian(&self, seconds: u64) -> Result<Traced> {
        let job = Job { seconds, vcpus: 2, ..Job::debian("trace-debian", CPU, 1) };
        self.record(&job.name, job.vcpus + 1, |tracer| {
            let finished = job.execute_traced(self.workspace, self.qemu, Some(tracer))?;
            Ok(finished.failures.iter().map(ToString::to_string).collect())
        })
    }

    /// Watches a boot. The stories of all that was wrong are kept with its logs.
    fn record(&self, name: &str, cpus: u32, boot: impl FnOnce(Tracer) -> Result<Vec<String>>) -> Result<Traced> {
        let started = Instant::now();
        let listener = Listener::start(Watcher::new(cpus as usize), Watcher::look)?;
        let told = Told::Events(listener.socket().to_path_buf());
        let tracer = Tracer { plugin: self.plugin.clone(), told };
        let failures = boot(tracer);
        let findings = listener.finish().map(Watcher::into_findings);
        let failures = failures?;
        // What was wrong with the boot explains a trace that breaks off.
        let explained = |error: Error| if failures.is_empty() { error } else { error.context(failures.join("; ")) };
        let findings = findings.map_err(explained)?;
        let stories = self.workspace.run_folder(name).join("violations.txt");
        fs::write(&stories, findings.stories.join("\n"))?;
        Ok(Traced { findings, failures, seconds: started.elapsed().as_secs_f64() })
    }
}
