//! The minimum Rust version that `Cargo.toml` states.
//!
//! Usually one toolchain is installed, a newer one, so three things stand in for it. Clippy's
//! `incompatible_msrv` (on by default, an error in the lint steps) finds newer library items. Here,
//! every dependency's own stated version is compared with ours. And where rustup has the stated
//! version installed, it checks the whole workspace; where not, the step says so.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Context;
use super::host::must_succeed;
use super::runner::Tally;
use crate::cargo::{self, cargo};
use crate::process;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    rust_version: Option<String>,
}

/// Checks what can be checked with the toolchains that are there.
pub(super) fn check(context: &Context<'_>, log: &Path) -> Result<Tally> {
    let mut command = cargo(context.workspace);
    command.args(["metadata", "--format-version", "1"]);
    let metadata: Metadata = serde_json::from_str(&process::read(&mut command)?)?;
    let ours = ours(&metadata)?;
    let newer = newer_dependencies(&metadata, &ours);
    ensure!(newer.is_empty(), "newer than Rust {ours}: {}", newer.join(", "));

    let Some(toolchain) = installed_toolchain(&ours) else {
        let note = format!("Rust {ours} is not installed: checked by lint and dependencies only");
        return Ok(Tally { note, ..Tally::passed() });
    };
    let mut command = Command::new("rustup");
    cargo::isolate(&mut command, context.workspace);
    command.env("CARGO_TARGET_DIR", context.workspace.target.join("msrv"));
    command.args(["run", &toolchain, "cargo", "check", "--workspace"]);
    let tally = must_succeed(&mut command, log)?;
    Ok(Tally { note: format!("with {toolchain}"), ..tally })
}

fn ours(metadata: &Metadata) -> Result<String> {
    let library = metadata.packages.iter().find(|package| package.name == "stage2");
    let version = library.and_then(|package| package.rust_version.clone());
    version.context("the package stage2 states no rust-version")
}

fn newer_dependencies(metadata: &Metadata, ours: &str) -> Vec<String> {
    let newer =
        |package: &&Package| package.rust_version.as_ref().is_some_and(|theirs| numbers(theirs) > numbers(ours));
    let describe = |package: &Package| format!("{} {}", package.name, package.version);
    metadata.packages.iter().filter(newer).map(describe).collect()
}

/// `1.88` is `1.88.0`.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    for (number, text) in numbers.iter_mut().zip(version.split('.')) {
        *number = text.parse().unwrap_or(0);
    }
    numbers
}

/// No rustup, no other toolchain.
fn installed_toolchain(version: &str) -> Option<String> {
    let list = process::read(Command::new("rustup").args(["toolchain", "list"])).ok()?;
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .find(|name| name.split('-').next().is_some_and(|name| numbers(name) == numbers(version)))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("1.100") > numbers("1.88.0"));
        assert_eq!(numbers("1.88"), numbers("1.88.0"));
        assert_eq!(numbers("stable"), [0; 3]);
    }

    #[test]
    fn a_dependency_that_needs_more_is_named() {
        let package = |name: &str, rust_version: Option<&str>| Package {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            rust_version: rust_version.map(str::to_owned),
        };
        let packages = vec![package("stage2", Some("1.88")), package("new", Some("1.90.0")), package("any", None)];
        let metadata = Metadata { packages };
        let ours = ours(&metadata).unwrap();
        assert_eq!(newer_dependencies(&metadata, &ours), ["new 0.1.0"]);
    }
}
