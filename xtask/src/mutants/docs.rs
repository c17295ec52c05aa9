//! `docs/mutants.md`: the table of mutants, to be read.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use super::table::{Checker, FILE, Table};
use crate::workspace::Workspace;

/// Where it is, from the root of the workspace.
const PAGE: &str = "docs/mutants.md";

/// The rules of the design, by number from 1 on.
const RULES: [&str; 14] = [
    "Lock: a descriptor changes under its table's lock",
    "Order: parent before child, nothing that waits under a table's lock",
    "Detach: a table entry is cleared with both locks held and the child empty",
    "Read-only walk: within a read section, no lock, no store",
    "Read-write walk: the parent is compared once the table is locked",
    "Break-before-make: through a marker that keeps address and dirty state",
    "Invalidation: the whole sequence, under the right VMID, before anything is used again",
    "Free: after both kinds of quiet, hardware's and software's",
    "Publish: zeroed, linked with release, made seen",
    "Dirty contract: a write is in this harvest or in the next",
    "Bounded: what waits is capped, retries are counted, a stall is reported",
    "No panic: bad arguments are refused and change nothing, and a corrupt tree is reported and not followed",
    "Caches: maintained before an entry is valid and before a frame is read",
    "Freeze: every vCPU traps at its next access, until the thaw",
];

/// Writes the page from the table.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    let text = page(&Table::read(&workspace.root)?);
    fs::write(workspace.root.join(PAGE), text).with_context(|| format!("cannot write {PAGE}"))
}

fn page(table: &Table) -> String {
    let mut page = format!(
        "# Mutants\n\n\
         Bugs that are seeded into the library one at a time, and the check that finds each: what fails if the line is taken away.\n\
         `cargo xtask mutants --report FILE` runs them. Written by `cargo xtask mutants --write-docs` from `{FILE}`, where the\n\
         changes themselves are. Rows (C1, M1, ...) are those of [locking.md](locking.md).\n",
    );
    for (number, title) in (1..).zip(RULES) {
        let mutants: Vec<_> = table.mutant.iter().filter(|mutant| mutant.rule_number() == Some(number)).collect();
        let _ = write!(page, "\n## {number}. {title}\n\n| id | row | what is broken | found by |\n|---|---|---|---|\n");
        for mutant in mutants {
            let rows = mutant.rows().collect::<Vec<_>>().join(", ");
            let _ = writeln!(page, "| `{}` | {rows} | {} | {} |", mutant.id, mutant.breaks, killer(&mutant.killer));
        }
    }
    page
}

fn killer(checker: &Checker) -> String {
    match checker.program.as_str() {
        "rustc" => format!("the compiler ({})", checker.test),
        _ => format!("`{}`", checker.name),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_is_what_the_table_says() {
        let workspace = Workspace::locate();
        let written = fs::read_to_string(workspace.root.join(PAGE)).unwrap();
        let table = Table::read(&workspace.root).unwrap();
        assert!(written == page(&table), "`cargo xtask mutants --write-docs` writes it anew");
    }

    #[test]
    fn every_rule_of_the_design_and_every_row_of_the_barriers_has_a_mutant_and_the_slice_has_every_rule() {
        let root = Workspace::locate().root;
        let table = Table::read(&root).unwrap();
        let rules = |slice: bool| -> BTreeSet<usize> {
            table
                .mutant
                .iter()
                .filter(|mutant| mutant.slice || !slice)
                .filter_map(|mutant| mutant.rule_number())
                .collect()
        };
        let all: BTreeSet<usize> = (1..=RULES.len()).collect();
        assert_eq!(rules(false), all);
        assert_eq!(rules(true), all);

        let locking = fs::read_to_string(root.join("docs/locking.md")).unwrap();
        let row = |line: &str| {
            let name = line.strip_prefix("| ")?.split(' ').next()?;
            let number = name.strip_prefix(['C', 'M'])?;
            number.parse::<u8>().is_ok().then(|| name.to_owned())
        };
        let rows: BTreeSet<String> = locking.lines().filter_map(row).collect();
        let covered = table.mutant.iter().flat_map(|mutant| mutant.rows()).map(str::to_owned).collect();
        assert!(!rows.is_empty());
        assert_eq!(rows, covered);
    }
}
