//! SPIN, and the C compiler that its searches are compiled with.

use std::process::Command;

use anyhow::{Result, ensure};

use super::apt;
use crate::process;

/// What is called, the option that has it answer, and Debian's package with it.
const PROGRAMS: [(&str, &str, &[&str]); 2] = [("spin", "-V", &["spin"]), ("cc", "--version", &["gcc", "libc6-dev"])];

/// Finds both, installing what is missing.
pub(crate) fn ensure_spin() -> Result<()> {
    for (program, question, packages) in PROGRAMS {
        let there = || process::capture(Command::new(program).arg(question)).is_ok();
        if !there() {
            apt::install(packages, "SPIN searches the models of the protocol")?;
            ensure!(there(), "{} is installed but {program} is not on the path", packages.join(" "));
        }
    }
    Ok(())
}
