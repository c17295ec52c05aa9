//! `cargo xtask`: builds the EL2 images, boots them under QEMU, checks the whole project.
//!
//! Every command ends in one of two ways: exit code 0, or one line that begins `error:` and exit
//! code 1. A new command (a benchmark, a trace) is a module under `commands`, with its
//! own clap arguments, and one arm in [`main`].

mod bench;
mod cargo;
mod checks;
mod commands;
mod fuzzing;
mod guest;
mod job;
mod machine;
mod mutants;
mod prerequisites;
mod process;
mod progress;
#[cfg(test)]
mod reading;
mod report;
mod summary;
mod trace;
mod verdict;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{
    bench as bench_command, fuzz, mutants as mutants_command, run, soak, test, trace as trace_command,
};
use crate::workspace::Workspace;

/// Builds, boots and checks stage2.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the hypervisor under QEMU with a guest, and judge what happened.
    Run(run::Arguments),
    /// Check everything: format, lints, documentation, tests on the host and on the machine.
    Test(test::Arguments),
    /// Count what operations cost on the machine, in instructions.
    Bench(bench_command::Arguments),
    /// Seed bugs into the library, one at a time: a named check must find each.
    Mutants(mutants_command::Arguments),
    /// Fuzz the library and the reading of reports.
    Fuzz(fuzz::Arguments),
    /// Run the Debian guest again and again, on several CPU models.
    Soak(soak::Arguments),
    /// Check what the images do to tables and TLBs, as a plugin of QEMU's tells it.
    Trace(trace_command::Arguments),
}

fn main() -> ExitCode {
    let workspace = Workspace::locate();
    let result = match Cli::parse().command {
        Command::Run(arguments) => run::run(&workspace, &arguments),
        Command::Test(arguments) => test::run(&workspace, &arguments),
        Command::Bench(arguments) => bench_command::run(&workspace, &arguments),
        Command::Mutants(arguments) => mutants_command::run(&workspace, &arguments),
        Command::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Command::Soak(arguments) => soak::run(&workspace, &arguments),
        Command::Trace(arguments) => trace_command::run(&workspace, &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
