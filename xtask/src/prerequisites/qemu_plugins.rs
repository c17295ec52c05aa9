//! A QEMU whose plugins see the values that are stored, and registers: version 10, for the traces alone.
//!
//! The one on the path if it is new enough. Otherwise that of Debian's backports, which is only unpacked, into the cache folder: the
//! system's stays what it is. It finds its libraries where the system's QEMU has brought them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use super::qemu::{PACKAGE, PROGRAM, Qemu, Version};
use crate::process;
use crate::workspace::Workspace;

/// The first whose interface for plugins is the one that is used here.
const MINIMUM: Version = Version(10, 0);
/// In the cache folder.
const FOLDER: &str = "qemu-with-plugins";

/// Finds such a QEMU, downloading it if need be.
///
/// # Errors
///
/// There is none to be had; why is said in one line.
pub(crate) fn qemu_with_plugins(workspace: &Workspace) -> Result<Qemu> {
    let cached = workspace.cache_folder().join(FOLDER);
    let program = cached.join("usr/bin").join(PROGRAM);
    for place in [Path::new(PROGRAM), &program] {
        if let Some((found, version)) = Qemu::at(place)?
            && version >= MINIMUM
        {
            return Ok(found);
        }
    }
    fetch(&workspace.cache_folder(), &cached).with_context(|| format!("a trace takes QEMU {MINIMUM}"))?;
    match Qemu::at(&program)? {
        Some((found, version)) if version >= MINIMUM => Ok(found),
        Some((found, _)) => bail!("a trace takes QEMU {MINIMUM}, and backports has {}", found.version),
        None => bail!("a trace takes QEMU {MINIMUM}, and that of backports does not run here"),
    }
}

/// Unpacks the package beside its place and moves it there as one: an interrupted download leaves nothing that looks complete.
fn fetch(cache: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(cache)?;
    let scratch = tempfile::tempdir_in(cache)?;
    let suite = format!("{}-backports", codename(&fs::read_to_string("/etc/os-release")?)?);
    let why = "its plugins see what is stored to tables";
    let package = apt::download_from(&suite, PACKAGE, scratch.path(), why)?;
    let unpacked = scratch.path().join("unpacked");
    process::read(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::rename(unpacked, place)?;
    Ok(())
}

/// Debian's name for this release.
fn codename(os_release: &str) -> Result<&str> {
    let value =
        |key: &str| os_release.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim_matches('"'));
    match (value("ID="), value("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        _ => bail!("this is no Debian release, so there are no backports"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_has_backports() {
        assert_eq!(codename("NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n").unwrap(), "bookworm");
        assert!(codename("ID=fedora\nVERSION_CODENAME=x\n").is_err());
        assert!(codename("").is_err());
    }
}
