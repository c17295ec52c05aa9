//! `cargo xtask run`: the main job, once.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::guest::Guest;
use crate::job::{self, Job, Tracking};
use crate::prerequisites::{Qemu, TargetStd};
use crate::report;
use crate::summary::summary;
use crate::workspace::Workspace;

/// The arguments.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// `builtin`, `debian`, or the file of an arm64 Linux Image
    #[arg(long, default_value = "builtin", value_name = "builtin|debian|IMAGE")]
    guest: String,
    /// The initrd of an Image of your own
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// QEMU's CPU model: cortex-a72, neoverse-n1, max, ...
    #[arg(long, default_value = "max")]
    cpu: String,
    /// The guest's CPUs; the machine has one more, which keeps house
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=7))]
    vcpus: u32,
    /// The guest's memory in MiB [default: 256, Linux 512]
    #[arg(long, value_name = "MiB", value_parser = clap::value_parser!(u64).range(16..=3072))]
    memory: Option<u64>,
    /// How long the guest works
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// What everything random depends on
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How the dirty log learns of stores [default: as the library chooses for the CPU]
    #[arg(long, value_enum, value_name = "MODE")]
    tracking: Option<Tracking>,
    /// Back the guest's memory with 2 MiB blocks
    #[arg(long)]
    blocks: bool,
    /// Where to write the report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs the job; an error unless it went well.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let guest = Guest::choose(&arguments.guest, arguments.initrd.as_deref())?;
    arguments.report.as_deref().map_or(Ok(()), report::check_place)?;
    let job = Job {
        name: "run".to_owned(),
        guest,
        cpu: arguments.cpu.clone(),
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory,
        seconds: arguments.seconds,
        seed: arguments.seed,
        tracking: arguments.tracking,
        blocks: arguments.blocks,
    };
    let qemu = Qemu::ensure()?;
    job.check(&qemu)?;
    job::build_images(workspace, &TargetStd::ensure(workspace)?)?;
    let finished = job.execute(workspace, &qemu)?;
    if let Some(path) = &arguments.report {
        report::write(path, &finished.report)?;
    }
    print!("{}", summary(&finished.report));
    println!("  logs       {}", finished.folder.display());
    match finished.failures.split_first() {
        None => Ok(()),
        Some((first, [])) => bail!("{first}"),
        Some((first, rest)) => {
            eprintln!("error: {first}");
            rest.iter().for_each(|failure| eprintln!("error: {failure}"));
            bail!("{} things went wrong", finished.failures.len())
        }
    }
}
