//! Checks of what runs at EL2: its lints and documentation, and the machine itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Context;
use super::host::must_succeed;
use super::runner::Tally;
use crate::cargo::cargo;
use crate::guest::Guest;
use crate::job::Job;
use crate::machine::arguments::Machine;
use crate::machine::events::{Claim, ClaimOutcome, Event};
use crate::machine::watchdog::Limits;
use crate::machine::{self, Boot, Ending, Logs};
use crate::prerequisites::Qemu;
use crate::progress::ProgressLine;
use crate::workspace::Workspace;

/// The image with the on-target tests.
const CLAIMS_IMAGE: &str = "claims";
/// Two vCPUs that contend, one more, and the housekeeper.
const CLAIMS_CPUS: u32 = 4;
const CLAIMS_MEMORY_MIB: u64 = 512;

const LIMITS: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(600) };

/// The packages that are compiled for the target.
const PACKAGES: [&str; 6] = ["--package", "stage2", "--package", "stage2-platform", "--package", "stage2-tests-qemu"];

/// Clippy has nothing to say about the target builds.
pub(super) fn lints(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let mut command = context.target.cargo(context.workspace, "clippy");
    command.args(PACKAGES).args(["--features", "stage2/defmt", "--", "-D", "warnings"]);
    must_succeed(&mut command, log)
}

/// Rustdoc has nothing to say: on the host what runs there, and on the target what runs there.
pub(super) fn documentation(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let host = cargo(context.workspace);
    let target = context.target.cargo(context.workspace, "doc");
    for (mut command, what) in
        [(host, &["doc", "--package", "stage2", "--package", "xtask", "--all-features"][..]), (target, &PACKAGES[..])]
    {
        command.args(what).arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings");
        must_succeed(&mut command, log)?;
    }
    Ok(Tally::passed())
}

/// Every on-target claim on one CPU model, each counted.
pub(super) fn claims(context: &Context<'_>, log: &Path, cpu: &str) -> Result<Tally> {
    context.ensure_images()?;
    let machine = claims_machine(context.workspace, &context.qemu, cpu);
    let (tally, words) = make_claims(context.workspace, &machine, &format!("claims-{cpu}"))?;
    fs::write(log, words)?;
    Ok(tally)
}

/// The machine on which all claims are made.
pub(crate) fn claims_machine(workspace: &Workspace, qemu: &Qemu, cpu: &str) -> Machine {
    Machine {
        emulator: qemu.program.clone(),
        image: workspace.image(CLAIMS_IMAGE),
        cpu: cpu.to_owned(),
        cpus: CLAIMS_CPUS,
        memory_mib: CLAIMS_MEMORY_MIB,
        arguments: vec![CLAIMS_IMAGE.to_owned()],
        blobs: Vec::new(),
        tracer: None,
        icount: false,
    }
}

/// Boots it: the claims' tally, and a line for each.
pub(crate) fn make_claims(workspace: &Workspace, machine: &Machine, name: &str) -> Result<(Tally, String)> {
    let logs = Logs::create(&workspace.run_folder(name))?;
    let mut line = ProgressLine::new(format!("claims on {}", machine.cpu));
    let boot = machine::boot(machine, logs, LIMITS, |event| line.show(event))?;
    drop(line);
    Ok(count_claims(&boot))
}

/// The claims' tally and a line for each; a bad ending is one failure more, and what was skipped is said.
fn count_claims(boot: &Boot) -> (Tally, String) {
    let mut tally = Tally::default();
    let mut words = String::new();
    let mut skipped = Vec::new();
    for event in &boot.events {
        let Event::Claim(Claim { name, outcome, detail }) = event else { continue };
        match outcome {
            ClaimOutcome::Passed => tally.passed += 1,
            ClaimOutcome::Failed => tally.failed += 1,
            ClaimOutcome::Skipped => skipped.push(format!("{name} ({detail})")),
        }
        words += &format!("{outcome:?}: {name} {detail}\n");
    }
    if !skipped.is_empty() {
        tally.note = format!("skipped {}: {}", skipped.len(), skipped.join(", "));
    }
    let last_words = || boot.last_words().or_else(|| boot.logs.emulator_complaint());
    let trouble = match boot.ending {
        Ending::Exited(0) if tally.passed + tally.failed == 0 => Some("no claim was made".to_owned()),
        Ending::Exited(0) => None,
        Ending::Exited(1) if tally.failed != 0 => None,
        ending => Some(ending.to_string()),
    };
    if let Some(trouble) = trouble {
        tally.failed += 1;
        tally.note = match last_words() {
            Some(last) => format!("{trouble}: {last}"),
            None => trouble,
        };
        words += &format!("{}\n", tally.note);
    }
    (tally, words)
}

/// The main job with one guest, on the most capable CPU model.
pub(super) fn main_job(context: &Context<'_>, guest: Guest) -> Result<Tally> {
    context.ensure_images()?;
    let name = format!("test-{guest:?}").to_lowercase();
    // The builtin guest has shown all it can after a few seconds.
    let seconds = if guest == Guest::Builtin { 5 } else { 20 };
    // Debian's memory is backed with blocks, the other's with pages: both ways are run.
    let blocks = guest == Guest::Debian;
    let job = Job { guest, seconds, blocks, ..Job::debian(&name, "max", 1) };
    let finished = job.execute(context.workspace, &context.qemu)?;
    let failures: Vec<String> = finished.failures.iter().map(ToString::to_string).collect();
    if !failures.is_empty() {
        bail!("{} (logs: {})", failures.join("; "), finished.folder.display());
    }
    Ok(Tally::passed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::events;
    use crate::machine::watchdog::Hang;

    fn boot(lines: &[&str], ending: Ending) -> Boot {
        Boot {
            ending,
            events: lines.iter().map(|line| events::parse(line).unwrap()).collect(),
            elapsed: Duration::ZERO,
            logs: Logs { folder: "none".into() },
        }
    }

    const PASSED: &str = r#"{"event":"claim","name":"a","outcome":"passed"}"#;
    const FAILED: &str = r#"{"event":"claim","name":"b","outcome":"failed","detail":"why"}"#;

    fn count(lines: &[&str], ending: Ending) -> (u64, u64) {
        let (tally, _) = count_claims(&boot(lines, ending));
        (tally.passed, tally.failed)
    }

    #[test]
    fn claims_are_counted() {
        assert_eq!(count(&[PASSED, PASSED], Ending::Exited(0)), (2, 0));
        assert_eq!(count(&[PASSED, FAILED], Ending::Exited(1)), (1, 1));
        let (_, words) = count_claims(&boot(&[FAILED], Ending::Exited(1)));
        assert_eq!(words, "Failed: b why\n");
    }

    #[test]
    fn a_bad_ending_is_a_failure_more() {
        let hang = Ending::Hung(Hang::Silent(Duration::from_secs(60)));
        for ending in [Ending::Exited(1), Ending::Exited(2), Ending::Signalled(11), hang] {
            assert_eq!(count(&[PASSED], ending), (1, 1), "{ending:?}");
        }
        assert_eq!(count(&[PASSED, FAILED], Ending::Exited(2)), (1, 2));
        assert_eq!(count(&[], Ending::Exited(0)), (0, 1));
    }
}
