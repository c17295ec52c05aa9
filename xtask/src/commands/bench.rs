//! `cargo xtask bench`: what operations cost on the machine, against their goals.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::bench::{GROUPS, Report, table};
use crate::job;
use crate::prerequisites::{Qemu, TargetStd};
use crate::report;
use crate::workspace::Workspace;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One of the groups of operations [default: all of them]
    #[arg(value_parser = PossibleValuesParser::new(GROUPS.map(|group| group.name)))]
    name: Option<String>,
    /// QEMU's CPU model: cortex-a72, neoverse-n1, max, ...
    #[arg(long, default_value = "max")]
    cpu: String,
    /// Where to write the report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Measures; an error if the figures are none. A goal that is missed is shown, and no error.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    arguments.report.as_deref().map_or(Ok(()), report::check_place)?;
    let qemu = Qemu::ensure()?;
    qemu.check_cpu(&arguments.cpu)?;
    job::build_images(workspace, &TargetStd::ensure(workspace)?)?;
    let wanted = |name: &str| arguments.name.as_deref().is_none_or(|only| only == name);
    let groups: Vec<_> = GROUPS.into_iter().filter(|group| wanted(group.name)).collect();
    let measured = Report::measure(workspace, &qemu, &arguments.cpu, &groups)?;
    if let Some(path) = &arguments.report {
        report::write(path, &measured)?;
    }
    for group in &groups {
        let (text, missed) = table(&measured, group);
        print!("{text}");
        println!("{}: instructions on {}, {missed} goals missed", group.name, arguments.cpu);
    }
    groups.iter().try_for_each(|group| measured.ensure_equal(group))
}
