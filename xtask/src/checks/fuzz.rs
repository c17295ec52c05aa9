//! A bounded slice of fuzzing, where a nightly compiler is installed. What fuzzers have kept is replayed by the tests of the
//! host, with any compiler.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Context;
use super::runner::Tally;
use crate::fuzzing::{Build, TARGETS, Until};
use crate::prerequisites::{NO_NIGHTLY, Nightly};

/// For all targets; half of it is the first one's.
const TIME: Duration = Duration::from_secs(20);

/// Each target for some seconds; one check each.
pub(super) fn slice(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let Some(nightly) = Nightly::find() else {
        return Ok(Tally {
            note: format!("not fuzzed, the corpus was replayed only: {NO_NIGHTLY}"),
            ..Tally::default()
        });
    };
    let build = Build::new(context.workspace, &nightly, log)?;
    let mut tally = Tally::default();
    let mut operations = 0;
    for (target, share) in TARGETS.into_iter().zip([2, 4, 4]) {
        let fuzzed = build.run(target, 1, Until::Elapsed(TIME / share))?;
        operations += fuzzed.operations;
        match fuzzed.found.first() {
            None => tally.passed += 1,
            Some(input) => {
                tally.failed += 1;
                tally.note = format!("{target}: {}", input.display());
            }
        }
    }
    if tally.failed == 0 {
        tally.note = format!("{operations} operations");
    }
    Ok(tally)
}
