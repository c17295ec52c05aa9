//! The Debian guest's initrd: the installer's own, and a second cpio archive after it.
//!
//! Linux unpacks archives one after the other, so a file of the second replaces one of the first:
//! `/init` becomes the workload and nothing has to be rebuilt. An archive begins at a multiple of
//! 4 bytes; zeroes between two are skipped.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

/// The script that takes init's place; its own header tells what it does.
const SCRIPT: &[u8] = include_bytes!("workload.sh");
/// Archives begin at multiples of this.
const ALIGNMENT: usize = 4;

/// What the workload is told, in `/stage2.conf`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    /// How long to work.
    pub(crate) seconds: u64,
    /// What the files' contents depend on.
    pub(crate) seed: u64,
}

/// Writes `installer` with the workload appended to the file `path`.
pub(crate) fn debian_initrd(installer: &Path, workload: Workload, path: &Path) -> Result<()> {
    let mut initrd = fs::read(installer).with_context(|| format!("cannot read {}", installer.display()))?;
    append(&mut initrd, &archive(workload)?);
    fs::write(path, initrd).with_context(|| format!("cannot write {}", path.display()))
}

fn append(initrd: &mut Vec<u8>, archive: &[u8]) {
    initrd.resize(initrd.len().next_multiple_of(ALIGNMENT), 0);
    initrd.extend_from_slice(archive);
}

fn archive(workload: Workload) -> Result<Vec<u8>> {
    let settings = format!("duration={}\nseed={}\n", workload.seconds, workload.seed);
    let mut archive = Vec::new();
    add(&mut archive, "init", 0o755, SCRIPT)?;
    add(&mut archive, "stage2.conf", 0o644, settings.as_bytes())?;
    trailer(&mut archive)?;
    Ok(archive)
}

fn add(archive: &mut Vec<u8>, name: &str, permissions: u32, content: &[u8]) -> Result<()> {
    let length = u32::try_from(content.len()).context("too long for a cpio archive")?;
    let mut file =
        Builder::new(name).mode(permissions).set_mode_file_type(ModeFileType::Regular).write(archive, length);
    file.write_all(content)?;
    file.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::NewcReader;

    use super::*;

    const WORKLOAD: Workload = Workload { seconds: 7, seed: 3 };

    /// Name, mode and content of every file in the archive.
    fn unpack(mut archive: &[u8]) -> Vec<(String, u32, String)> {
        let mut files = Vec::new();
        loop {
            let mut reader = NewcReader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return files;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            files.push((name, mode, content));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_archive_holds_an_executable_init_and_its_settings() {
        let files = unpack(&archive(WORKLOAD).unwrap());
        assert_eq!(files.len(), 2);
        let (name, mode, script) = &files[0];
        assert_eq!((name.as_str(), *mode), ("init", 0o100_755));
        assert!(script.starts_with("#!/bin/sh\n"));
        let (name, mode, settings) = &files[1];
        assert_eq!((name.as_str(), *mode), ("stage2.conf", 0o100_644));
        assert_eq!(settings, "duration=7\nseed=3\n");
    }

    #[test]
    fn whatever_the_first_archives_length_the_second_begins_aligned() {
        let second = archive(WORKLOAD).unwrap();
        for length in 0..9 {
            let mut initrd = vec![1; length];
            append(&mut initrd, &second);
            let start = initrd.len() - second.len();
            assert_eq!(start % ALIGNMENT, 0);
            assert!(start - length < ALIGNMENT);
            assert!(initrd[length..start].iter().all(|&byte| byte == 0));
            assert!(initrd[start..].starts_with(b"070701"));
        }
    }

    #[test]
    fn a_missing_installer_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let result = debian_initrd(Path::new("none"), WORKLOAD, &folder.path().join("initrd"));
        assert!(result.is_err());
    }
}
