//! A nightly toolchain, for what the stable one cannot do: sanitizers, Miri, fuzzing.
//!
//! It is found, never installed: it is large, and what needs it checks more but nothing that the rest relies on.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::cargo;
use crate::process;
use crate::workspace::Workspace;

/// Said by a step that was not run without it.
pub(crate) const NO_NIGHTLY: &str = "no nightly Rust is installed (`rustup toolchain install nightly`)";

/// A toolchain that is there.
#[derive(Debug, Clone)]
pub(crate) struct Nightly {
    toolchain: String,
    /// What it compiles for if nothing else is asked for.
    pub(crate) host: String,
}

impl Nightly {
    /// The nightly that rustup has, if there are a rustup and a nightly.
    pub(crate) fn find() -> Option<Self> {
        let list = process::read(Command::new("rustup").args(["toolchain", "list"])).ok()?;
        let toolchain = choose(&list)?.to_owned();
        let version = process::read(Command::new("rustup").args(["run", &toolchain, "rustc", "-vV"])).ok()?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "))?.to_owned();
        Some(Self { toolchain, host })
    }

    /// Its cargo, in the workspace, with a target folder of its own for `what`.
    pub(crate) fn cargo(&self, workspace: &Workspace, what: &str) -> Command {
        let mut command = Command::new("rustup");
        cargo::isolate(&mut command, workspace);
        command.env("CARGO_TARGET_DIR", workspace.target.join(what));
        command.args(["run", &self.toolchain, "cargo"]);
        command
    }

    /// Adds components that are missing.
    pub(crate) fn add(&self, components: &[&str], why: &str) -> Result<()> {
        let list = || {
            process::read(
                Command::new("rustup").args(["component", "list", "--installed", "--toolchain"]).arg(&self.toolchain),
            )
        };
        let has = |list: &str| components.iter().all(|name| list.lines().any(|line| line.starts_with(name)));
        if has(&list()?) {
            return Ok(());
        }
        println!("Adding {} to {} with rustup: {why}.", components.join(" "), self.toolchain);
        process::read(
            Command::new("rustup").args(["component", "add", "--toolchain", &self.toolchain]).args(components),
        )?;
        ensure!(has(&list()?), "rustup has added {} and does not list it", components.join(" "));
        Ok(())
    }
}

/// The first nightly of `rustup toolchain list`: the undated one if there is one, as it sorts first.
fn choose(list: &str) -> Option<&str> {
    list.lines().filter_map(|line| line.split_whitespace().next()).find(|name| name.starts_with("nightly"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nightly_is_found_whatever_it_is_called() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\nnightly-x86_64-unknown-linux-gnu\n";
        assert_eq!(choose(list), Some("nightly-x86_64-unknown-linux-gnu"));
        assert_eq!(
            choose("nightly-2026-05-01-aarch64-apple-darwin (default)"),
            Some("nightly-2026-05-01-aarch64-apple-darwin")
        );
        assert_eq!(choose("stable-x86_64-unknown-linux-gnu\n1.88.0\n"), None);
    }
}
