//! Debian's package manager.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Installs packages as root, or by `sudo`, after telling the user `why`.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    let names = packages.join(" ");
    println!("Installing {names} with apt-get: {why}.");
    with_fresh_lists(|| {
        let mut command = as_root("apt-get")?;
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        process::read(&mut command).map(drop)
    })
    .with_context(|| format!("cannot install {names} ({why})"))
}

/// Downloads one package, without installing it, into `folder`; returns the file.
pub(crate) fn download(package: &str, folder: &Path, why: &str) -> Result<PathBuf> {
    println!("Downloading {package} with apt-get: {why}.");
    with_fresh_lists(|| {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).args(["download", package]);
        process::read(&mut command).map(drop)
    })
    .with_context(|| format!("cannot download {package} ({why})"))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get downloaded no {package}")
}

/// Does it; if that fails, updates the package lists (which may be missing or old) and does it
/// once more.
fn with_fresh_lists(action: impl Fn() -> Result<()>) -> Result<()> {
    action().or_else(|_| {
        process::read(as_root("apt-get")?.arg("update"))?;
        action()
    })
}

fn as_root(program: &str) -> Result<Command> {
    // The owner of our own process's entry is our effective user.
    let user = fs::metadata("/proc/self").context("no /proc: not a Linux host")?.uid();
    let mut command = if user == 0 {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", program]);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}
