//! `cargo xtask mutants`: the mutant matrix.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::mutants::{self, Selection};
use crate::report;
use crate::workspace::Workspace;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to write what killed which mutant, as JSON
    #[arg(long, value_name = "FILE", required_unless_present = "write_docs")]
    report: Option<PathBuf>,
    /// Only the mutant with this id; may be given more than once
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// Only one mutant a rule, as `cargo xtask test` has it
    #[arg(long, conflicts_with = "only")]
    slice: bool,
    /// Write docs/mutants.md from the table, and run nothing
    #[arg(long, conflicts_with_all = ["report", "only", "slice"])]
    write_docs: bool,
}

/// Runs the mutants; an error if one survives.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let Some(place) = &arguments.report else { return mutants::write_docs(workspace) };
    report::check_place(place)?;
    let selection = if arguments.slice { Selection::Slice } else { Selection::Only(&arguments.only) };
    let found = mutants::run(workspace, &selection)?;
    report::write(place, &found)?;
    println!("{} killed, {} survived", found.mutants.len(), found.survivors.len());
    ensure!(found.survivors.is_empty(), "no check sees {}", found.survivors.join(", "));
    Ok(())
}
