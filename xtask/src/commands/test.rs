//! `cargo xtask test`: every check, named, timed and counted.

use anyhow::{Result, ensure};
use clap::Args;

use crate::checks::{self, Context};
use crate::workspace::Workspace;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only what takes no more than two minutes
    #[arg(long)]
    quick: bool,
    /// Only steps with this in their name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Runs the checks; an error unless all of them passed.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let context = Context::prepare(workspace)?;
    let mut steps = if arguments.quick { checks::quick_steps() } else { checks::all_steps() };
    if let Some(only) = &arguments.only {
        steps.retain(|step| step.name.contains(only));
        ensure!(!steps.is_empty(), "no step has \"{only}\" in its name");
    }
    let total = checks::run_steps(&context, steps)?;
    println!("{} passed, {} failed", total.passed, total.failed);
    ensure!(total.failed == 0, "not everything passed");
    Ok(())
}
