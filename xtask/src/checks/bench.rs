//! The benchmarks: that they run, and count the same twice. What they count is not judged.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Context;
use super::runner::Tally;
use crate::bench::{GROUPS, Report, table};

/// The CPU model that has all there is to be measured.
const CPU: &str = "max";

/// All groups, each operation counted.
pub(super) fn groups(context: &Context<'_>, log: &Path) -> Result<Tally> {
    context.ensure_images()?;
    let report = Report::measure(context.workspace, &context.qemu, CPU, &GROUPS)?;
    let tables = GROUPS.map(|group| table(&report, group));
    fs::write(log, tables.iter().map(|(text, _)| text.as_str()).collect::<String>())?;
    GROUPS.iter().try_for_each(|group| report.ensure_equal(group))?;
    let missed: usize = tables.iter().map(|(_, missed)| missed).sum();
    Ok(Tally { passed: report.len() as u64, note: format!("{missed} goals missed"), ..Tally::default() })
}
