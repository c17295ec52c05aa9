//! Debian's installer for arm64, a real guest: an unmodified Linux and an initrd with a busybox.
//!
//! The package is for any architecture and is only unpacked, into the cache folder; one that is
//! installed serves as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt;
use crate::process;
use crate::workspace::Workspace;

const PACKAGE: &str = "debian-installer-12-netboot-arm64";
/// The text installer's image inside the package.
const IMAGE: &str = "usr/lib/debian-installer/images/12/arm64/text/debian-installer/arm64";

/// The guest's two files.
#[derive(Debug, Clone)]
pub(crate) struct DebianGuest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl DebianGuest {
    /// Finds the two files, downloading them if need be.
    pub(crate) fn ensure(workspace: &Workspace) -> Result<Self> {
        let cached = workspace.cache_folder().join(PACKAGE);
        for folder in [&cached, &Path::new("/").join(IMAGE)] {
            if let Some(found) = Self::in_folder(folder) {
                return Ok(found);
            }
        }
        fetch(&workspace.cache_folder(), &cached)?;
        Self::in_folder(&cached).with_context(|| format!("{PACKAGE} has no kernel and initrd"))
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let guest = Self { kernel: folder.join("linux"), initrd: folder.join("initrd.gz") };
        (guest.kernel.exists() && guest.initrd.exists()).then_some(guest)
    }
}

/// Unpacks the package beside its place and moves the files there as one: an interrupted download
/// leaves nothing that looks complete.
fn fetch(cache: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(cache)?;
    let scratch = tempfile::tempdir_in(cache)?;
    let package = apt::download(PACKAGE, scratch.path(), "the Linux that runs as the guest")?;
    let unpacked = scratch.path().join("unpacked");
    process::read(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::rename(unpacked.join(IMAGE), place).with_context(|| format!("{PACKAGE} has no {IMAGE}"))
}
