//! Mutants that change types or constants: each is a copy of its own, built for its killer.
//!
//! Where a type is what protects, its killer is the compiler: the library with the mutant must not compile
//! (`rustc::E0382`), or a program that must not compile does (`compile_fail::case`).

use std::path::Path;

use anyhow::{Result, bail};

use super::build::{Build, COMPILE_FAIL, in_copy};
use super::copy::Copy;
use super::run::{self, Ended, Limits};
use super::table::Checker;
use crate::workspace::Workspace;

/// The compiler, as a test program: what it has against the library.
pub(super) const RUSTC: &str = "rustc";
/// What trybuild says of a program that compiles and must not.
const COMPILES: &str = "but it succeeded";
/// The test with the cases.
const CASES: &str = "a_program_that_breaks_a_rule_of_the_protocol_does_not_compile";

/// What has to pass without a mutant for `killer` to show something: all programs that must not compile are one test.
pub(super) fn without_mutant(killer: &Checker) -> Checker {
    match killer.program.as_str() {
        RUSTC | COMPILE_FAIL => Checker::whole(&killer.program),
        _ => killer.clone(),
    }
}

/// Builds and runs `checker` on a copy; builds are kept in `folder`.
pub(super) fn check(
    workspace: &Workspace,
    copy: &Copy<'_>,
    folder: &Path,
    checker: &Checker,
    log: &Path,
) -> Result<Ended> {
    let limit = Limits::WITHOUT_MUTANT;
    let mut command = in_copy(workspace, copy.folder(), &folder.join("build").join("host"));
    match checker.program.as_str() {
        RUSTC => {
            command.args(["check", "--lib", "--features", "model"]);
            let (ended, output) = run::within(&mut command, limit, log)?;
            if ended.is_none() && !output.contains(&format!("error[{}]", checker.test)) {
                bail!("the compiler has another objection than {}: see {}", checker.test, log.display());
            }
            Ok(ended.unwrap_or(Ended::Failed))
        }
        COMPILE_FAIL => {
            command
                .args(["test", "--features", "model", "--test", COMPILE_FAIL, "--", CASES])
                .arg(format!("trybuild={}.rs", checker.test));
            let (ended, output) = run::within(&mut command, limit, log)?;
            if ended.is_none() && !output.contains(COMPILES) {
                bail!("{} does not compile with the mutant either: see {}", checker.test, log.display());
            }
            Ok(ended.unwrap_or(Ended::Failed))
        }
        _ => {
            let build = Build::holding(checker);
            let built = build.tests(workspace, copy.folder(), folder, &build.only(std::iter::once(checker)))?;
            Ok(run::test(built.program(&checker.program)?, &checker.test, 0, limit, log)?.0)
        }
    }
}
