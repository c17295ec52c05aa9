//! The bounded part of the mutant matrix: of each rule one seeded bug, which its check must find.

use std::path::Path;

use anyhow::Result;

use super::Context;
use super::runner::Tally;
use crate::mutants::{self, Selection};

/// Each mutant counts as a check; one that survives has failed.
pub(super) fn slice(context: &Context<'_>, _log: &Path) -> Result<Tally> {
    let report = mutants::run(context.workspace, &Selection::Slice)?;
    let (passed, failed) = (report.mutants.len() as u64, report.survivors.len() as u64);
    Ok(Tally { passed, failed, note: report.survivors.join(", ") })
}
