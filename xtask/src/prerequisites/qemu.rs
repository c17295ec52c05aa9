//! QEMU: the one on the path if it is new enough, or the package manager's.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::apt;
use crate::process;

pub(super) const PROGRAM: &str = "qemu-system-aarch64";
pub(super) const PACKAGE: &str = "qemu-system-arm";
/// Older ones were never tried with these images.
const MINIMUM: Version = Version(7, 2);

/// An emulator that is there and new enough.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    pub(crate) program: PathBuf,
    /// As it says itself, e.g. `7.2.22`.
    pub(crate) version: String,
}

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.0, self.1)
    }
}

impl Qemu {
    /// Finds QEMU, installing it if there is none.
    pub(crate) fn ensure() -> Result<Self> {
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        apt::install(&[PACKAGE], "QEMU is the AArch64 machine everything runs on")?;
        match Self::find()? {
            Some(installed) => Ok(installed),
            None => bail!("{PACKAGE} is installed but {PROGRAM} is not on the path"),
        }
    }

    /// An error unless there is such a CPU model; properties may follow it, after a comma.
    pub(crate) fn check_cpu(&self, cpu: &str) -> Result<()> {
        let known = process::read(Command::new(&self.program).args(["-M", "virt", "-cpu", "help"]))?;
        let model = cpu.split(',').next().unwrap_or_default();
        ensure!(
            known.split_whitespace().any(|word| word == model),
            "QEMU has no CPU model \"{cpu}\" (`{PROGRAM} -cpu help` lists them)"
        );
        Ok(())
    }

    fn find() -> Result<Option<Self>> {
        let Some((found, version)) = Self::at(Path::new(PROGRAM))? else { return Ok(None) };
        ensure!(version >= MINIMUM, "{PROGRAM} is version {}; {MINIMUM} or later is needed", found.version);
        Ok(Some(found))
    }

    /// The one at `program`, if there is one that runs.
    pub(super) fn at(program: &Path) -> Result<Option<(Self, Version)>> {
        let Ok(output) = process::capture(Command::new(program).arg("--version")) else {
            return Ok(None);
        };
        let said = String::from_utf8_lossy(&output.stdout);
        let (version, parsed) =
            parse_version(&said).with_context(|| format!("`{PROGRAM} --version` said nothing understandable"))?;
        Ok(Some((Self { program: program.to_path_buf(), version: version.to_owned() }, parsed)))
    }
}

/// `QEMU emulator version 7.2.22 (Debian ...)`.
fn parse_version(said: &str) -> Option<(&str, Version)> {
    let version = said.split_once("version ")?.1.split_whitespace().next()?;
    let mut numbers = version.split('.').map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((version, Version(major, minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)";
        assert_eq!(parse_version(said), Some(("7.2.22", Version(7, 2))));
        let said = "QEMU emulator version 10.0.2 (Debian)";
        assert!(parse_version(said).unwrap().1 > MINIMUM);
        assert!(parse_version("QEMU emulator version 6.9.0").unwrap().1 < MINIMUM);
    }

    #[test]
    fn nonsense_is_no_version() {
        assert_eq!(parse_version("command not found"), None);
        assert_eq!(parse_version("version"), None);
        assert_eq!(parse_version("version ten.two"), None);
    }
}
