//! Miri, which interprets what it runs and knows every byte: undefined behaviour in the code that lays tables over raw memory,
//! data races and the weak orders that the memory model allows in the rest. A bounded slice, for it takes a thousand times
//! as long.

use std::path::Path;

use anyhow::Result;

use super::runner::Tally;
use super::{Context, libtest};
use crate::prerequisites::{NO_NIGHTLY, Nightly};

/// Arguments of `cargo miri test`, one run each.
const RUNS: [&[&str]; 2] = [
    // Where `unsafe` makes references out of addresses; and quiescence.
    &["--lib", "--", "memory::pool", "quiescence::"],
    // Tables on their way back; not the tests of thousands of them, and not the stress, which takes many minutes there.
    &["--test", "host", "--", "reclaim::an_emptied", "reclaim::a_cpu"],
];

/// All runs.
pub(super) fn slice(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let not_run = |why: String| Ok(Tally { note: format!("Miri not run: {why}"), ..Tally::default() });
    let Some(nightly) = Nightly::find() else { return not_run(NO_NIGHTLY.to_owned()) };
    if let Err(error) = nightly.add(&["miri", "rust-src"], "Miri interprets the tests") {
        return not_run(format!("{error:#}"));
    }
    let mut tally = Tally::default();
    for run in RUNS {
        let mut command = nightly.cargo(context.workspace, "miri");
        command.args(["miri", "test", "--package", "stage2", "--features", "model"]).args(run);
        // Threads look at the clock; the machines of tests live as long as the program.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-ignore-leaks");
        let counted = libtest::run(&mut command, log)?;
        tally.passed += counted.passed;
        tally.failed += counted.failed;
    }
    Ok(tally)
}
