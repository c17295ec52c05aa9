//! The benchmarks: that they run, count the same each time, and cost no more than the baseline says. Goals are not judged.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use super::Context;
use super::runner::Tally;
use crate::bench::{Baseline, Bench, Comparison, Counting, GROUPS, kinds, table};

/// The CPU model that has all there is to be measured: the baseline's.
const CPU: &str = "max";

/// All groups, each operation counted; and each figure that is compared with the baseline.
pub(super) fn groups(context: &Context<'_>, log: &Path) -> Result<Tally> {
    context.ensure_images()?;
    let workspace = context.workspace;
    let bench = Bench {
        workspace,
        qemu: &context.qemu,
        cpu: CPU,
        compiler: context.target.compiler(workspace)?,
        counting: Counting::prepare(workspace, Some(log)).map_err(|error| format!("{error:#}")),
    };
    let report = bench.measure(&GROUPS)?;
    let tables = GROUPS.map(|group| table(&report, group));
    let comparison = Baseline::read(workspace)?.compare(&report);
    let mut text: String = tables.iter().map(|(text, _)| text.as_str()).collect();
    text += &kinds(&report);
    if let Comparison::Made { worse, .. } = &comparison {
        worse.iter().for_each(|line| text += &format!("worse: {line}\n"));
    }
    fs::write(log, text)?;
    GROUPS.iter().try_for_each(|group| report.ensure_equal(group))?;
    let wrong = report.wrong();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let missed: usize = tables.iter().map(|(_, missed)| missed).sum();
    let mut tally = Tally { passed: report.len() as u64, note: format!("{missed} goals missed"), ..Tally::default() };
    match comparison {
        Comparison::NotMade(reason) => tally.note += &format!("; NOT compared: {reason}"),
        Comparison::Made { figures, worse } => {
            tally.failed = worse.len() as u64;
            tally.passed += (figures - worse.len().min(figures)) as u64;
            if let Some(first) = worse.into_iter().next() {
                tally.note = first;
            }
        }
    }
    Ok(tally)
}
