//! `cargo xtask bench`: what operations cost on the machine, against their goals.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::bench::{Baseline, Bench, Comparison, Counting, GROUPS, kinds, page, table};
use crate::cargo::cargo;
use crate::job;
use crate::prerequisites::{Qemu, TargetStd};
use crate::process;
use crate::report;
use crate::workspace::Workspace;

/// What is no group: the crate `benches`.
const PEERS: &str = "peers";

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One of the groups of operations [default: all of them], or the library beside others on this host
    #[arg(value_parser = PossibleValuesParser::new(GROUPS.map(|group| group.name).into_iter().chain([PEERS])))]
    name: Option<String>,
    /// QEMU's CPU model: cortex-a72, neoverse-n1, max, ...
    #[arg(long, default_value = "max")]
    cpu: String,
    /// Where to write the report as JSON; beside it comes a page with plots
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Make these figures the baseline that `cargo xtask test` compares with
    #[arg(long, conflicts_with = "name")]
    write_baseline: bool,
    /// Show in which functions the instructions are, too
    #[arg(long = "where")]
    places: bool,
}

/// Measures; an error if the figures are none, or worse than the baseline. A goal that is missed is shown, and no error.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    if arguments.name.as_deref() == Some(PEERS) {
        ensure!(arguments.report.is_none(), "what is measured by wall clock, on a host, has no report");
        return peers(workspace);
    }
    arguments.report.as_deref().map_or(Ok(()), report::check_place)?;
    let qemu = Qemu::ensure()?;
    qemu.check_cpu(&arguments.cpu)?;
    let target = TargetStd::ensure(workspace)?;
    job::build_images(workspace, &target)?;
    let bench = Bench {
        workspace,
        qemu: &qemu,
        cpu: &arguments.cpu,
        compiler: target.compiler(workspace)?,
        counting: Counting::prepare(workspace, None).map_err(|error| format!("{error:#}")),
    };
    let wanted = |name: &str| arguments.name.as_deref().is_none_or(|only| only == name);
    let groups: Vec<_> = GROUPS.into_iter().filter(|group| wanted(group.name)).collect();
    let measured = bench.measure(&groups)?;
    if let Some(path) = &arguments.report {
        report::write(path, &measured)?;
        let page_path = path.with_extension("html");
        fs::write(&page_path, page(&measured, &groups)?)
            .with_context(|| format!("cannot write the page {}", page_path.display()))?;
    }
    if groups.iter().any(|group| group.has_lines()) {
        println!("{}", kinds(&measured));
    }
    if arguments.places {
        println!("{}", measured.places());
    }
    measured.memory_lines().iter().for_each(|line| println!("{line}"));
    for group in groups.iter().filter(|group| group.has_lines()) {
        let (text, missed) = table(&measured, group);
        print!("{text}");
        println!("{}: on {}, {missed} goals missed\n", group.name, arguments.cpu);
    }
    groups.iter().try_for_each(|group| measured.ensure_equal(group))?;
    let wrong = measured.wrong();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    if arguments.write_baseline {
        println!("the baseline is now in {}", Baseline::of(&measured)?.write(workspace)?.display());
        return Ok(());
    }
    if arguments.name.is_some() {
        return Ok(());
    }
    match Baseline::read(workspace)?.compare(&measured) {
        Comparison::NotMade(reason) => println!("not compared: {reason}"),
        Comparison::Made { figures, worse } => {
            ensure!(worse.is_empty(), "worse than the baseline: {}", worse.join("; "));
            println!("no worse than the baseline, by {figures} figures");
        }
    }
    Ok(())
}

/// The library beside others on this host, and threads on one tree. In a workspace of its own.
fn peers(workspace: &Workspace) -> Result<()> {
    for bench in ["peers", "threads"] {
        let mut command = cargo(workspace);
        command.args(["bench", "--manifest-path", "benches/Cargo.toml", "--bench", bench]);
        process::show(&mut command)?;
    }
    Ok(())
}
