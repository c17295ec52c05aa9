//! cargo-fuzz, which builds a target with a nightly compiler so that libFuzzer sees where it goes.

use std::process::Command;

use anyhow::{Context, Result};

use super::Nightly;
use crate::process;
use crate::workspace::Workspace;

/// Sees to it that `cargo fuzz` is there.
pub(crate) fn ensure_cargo_fuzz(workspace: &Workspace, nightly: &Nightly) -> Result<()> {
    if process::read(Command::new("cargo-fuzz").arg("--version")).is_ok() {
        return Ok(());
    }
    println!("Installing cargo-fuzz with cargo: it builds the fuzz targets.");
    let mut install = nightly.cargo(workspace, "cargo-fuzz");
    process::read(install.args(["install", "cargo-fuzz", "--locked"])).map(drop).context("cannot install cargo-fuzz")
}
