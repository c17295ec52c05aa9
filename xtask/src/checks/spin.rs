//! The models of the protocol under SPIN, which searches every interleaving of each: the library's must be good, and
//! every broken variant must violate what `proofs/models.tsv` says. One check a line of that table.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Context;
use super::runner::Tally;
use crate::prerequisites::ensure_spin;
use crate::process;

/// Runs `proofs/check` over all of the table.
pub(super) fn models(context: &Context<'_>, log: &Path) -> Result<Tally> {
    ensure_spin()?;
    let proofs = context.workspace.root.join("proofs");
    let table = fs::read_to_string(proofs.join("models.tsv")).context("proofs/models.tsv cannot be read")?;
    let mut command = Command::new(proofs.join("check"));
    command.arg(context.workspace.target.join("stage2-proofs"));
    let (status, output) = process::log_to(&mut command, log)?;
    let tally = count(&output);
    ensure!(
        tally.passed + tally.failed == lines(&table),
        "proofs/check told of {} models of {}",
        tally.passed + tally.failed,
        lines(&table)
    );
    ensure!(status.success() == (tally.failed == 0), "proofs/check contradicts itself");
    Ok(tally)
}

/// Models in the table.
fn lines(table: &str) -> u64 {
    table.lines().filter(|line| !line.starts_with('#')).count() as u64
}

/// Adds up the lines `ok MODEL ...: ... (N states)` and `FAILED ...`.
fn count(output: &str) -> Tally {
    let mut tally = Tally::default();
    let mut states = 0;
    for line in output.lines() {
        match line.split_whitespace().next() {
            Some("ok") => tally.passed += 1,
            Some("FAILED") => tally.failed += 1,
            _ => continue,
        }
        states += states_of(line);
    }
    tally.note = format!("{states} states");
    tally
}

fn states_of(line: &str) -> u64 {
    let number = line.rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(" states)"));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_about_a_model_counts() {
        let output = "\
ok     protocol (good): good (7516389 states)
FAILED protocol NO_GRACE: good (11 states)
FAILED qsbr (good): broken model (no states)
";
        assert_eq!(count(output), Tally { passed: 1, failed: 2, note: "7516400 states".to_owned() });
        assert_eq!(count("check: spin: not found\n"), Tally { note: "0 states".to_owned(), ..Tally::default() });
    }

    #[test]
    fn the_tables_heading_is_no_model() {
        assert_eq!(lines("# model\tdefines\nqsbr\t-\t100000\tgood\t\npublish\tNO_DSB\t100000\tbad\tx\n"), 2);
    }
}
