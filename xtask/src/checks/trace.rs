//! The claims again, traced; and one of them without each barrier, which has to be noticed.

use std::path::Path;

use anyhow::Result;

use super::Context;
use super::runner::Tally;
use crate::prerequisites::qemu_with_plugins;
use crate::trace::{BARRIERS, Expected, Recorder};

/// Skipped, and said so, where no QEMU is to be had whose plugins see enough.
pub(super) fn claims(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let qemu = match qemu_with_plugins(context.workspace) {
        Ok(qemu) => qemu,
        Err(error) => return Ok(Tally { note: format!("skipped: {error:#}"), ..Tally::default() }),
    };
    context.ensure_images()?;
    let recorder = Recorder::prepare(context.workspace, &qemu, Some(log))?;
    let mut tally = Tally::default();
    let traced = recorder.claims()?;
    tally.note = format!(
        "{} events of {} pools, {} of {} twins found out",
        traced.findings.events, traced.findings.pools, traced.findings.twins_caught, traced.findings.twins
    );
    let mut wrong = traced.wrong(Expected::Whole);
    tally.passed += traced.findings.twins_caught + u64::from(wrong.is_empty());
    for barrier in BARRIERS {
        let traced = recorder.claim_without(barrier)?;
        let missed = traced.wrong(Expected::FoundOut);
        tally.passed += u64::from(missed.is_empty());
        wrong.extend(missed.into_iter().map(|what| format!("without {barrier}: {what}")));
    }
    tally.failed = wrong.len() as u64;
    if let Some(first) = wrong.into_iter().next() {
        tally.note = first;
    }
    Ok(tally)
}
