//! Builds of a copy: the host's test programs, and loom's.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::table::Checker;
use crate::cargo::cargo;
use crate::process;
use crate::workspace::Workspace;

/// One way to build the test programs.
#[derive(Debug, PartialEq)]
pub(super) struct Build {
    pub(super) name: &'static str,
    /// The test programs whose names begin so are built this way.
    prefix: &'static str,
    arguments: &'static [&'static str],
    /// Which arguments build all of its test programs.
    all: &'static [&'static str],
    flags: &'static str,
}

/// The last one takes what no other does.
const BUILDS: [Build; 2] = [
    Build { name: "loom", prefix: "loom", arguments: &["--release"], all: &["--test", "loom*"], flags: "--cfg loom" },
    Build { name: "host", prefix: "", arguments: &["--features", "model"], all: &["--tests"], flags: "" },
];

/// The unit tests, as a test program.
const UNIT_TESTS: &str = "lib";

/// The test program that compiles others, with the library as its sources are: it is run where a mutant is alone in them.
pub(super) const COMPILE_FAIL: &str = "compile_fail";

impl Build {
    /// The one that the test program of `checker` is in.
    pub(super) fn holding(checker: &Checker) -> &'static Self {
        let [others @ .., last] = &BUILDS;
        others.iter().find(|build| checker.program.starts_with(build.prefix)).unwrap_or(last)
    }

    /// Those that hold `checkers`, each once.
    pub(super) fn of<'c>(checkers: impl Iterator<Item = &'c Checker>) -> Vec<&'static Self> {
        let needed: Vec<&Self> = checkers.map(Self::holding).collect();
        BUILDS.iter().filter(|build| needed.contains(build)).collect()
    }

    /// The arguments that build the programs of `checkers` that are built this way, and no others.
    pub(super) fn only<'c>(&self, checkers: impl Iterator<Item = &'c Checker>) -> Vec<String> {
        let programs: BTreeSet<&str> =
            checkers.filter(|checker| Self::holding(checker) == self).map(|checker| &*checker.program).collect();
        programs
            .into_iter()
            .flat_map(|program| match program {
                UNIT_TESTS => vec!["--lib".to_owned()],
                program => vec!["--test".to_owned(), program.to_owned()],
            })
            .collect()
    }

    /// The arguments that build all programs that are built this way.
    pub(super) fn all(&self) -> Vec<String> {
        self.all.iter().map(|&argument| argument.to_owned()).collect()
    }

    /// Builds the `programs` of the copy in `copy`; the build and its log are kept in `folder`.
    pub(super) fn tests(
        &self,
        workspace: &Workspace,
        copy: &Path,
        folder: &Path,
        programs: &[String],
    ) -> Result<Built> {
        let mut command = in_copy(workspace, copy, &folder.join("build").join(self.name));
        command.env("RUSTFLAGS", self.flags);
        command.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]);
        command.args(self.arguments).args(programs);
        let output = process::capture(&mut command)?;
        let log = folder.join(format!("build-{}.log", self.name));
        fs::write(&log, &output.stderr).with_context(|| format!("cannot write {}", log.display()))?;
        ensure!(output.status.success(), "the copy {} does not build: see {}", copy.display(), log.display());
        Ok(Built { programs: built_programs(&String::from_utf8_lossy(&output.stdout)), copy: copy.to_path_buf() })
    }
}

/// Cargo, for a copy, with a target folder of its own. Neither debug information nor link-time optimisation: it is built
/// more often than it is run.
pub(super) fn in_copy(workspace: &Workspace, copy: &Path, target: &Path) -> Command {
    let mut command = cargo(workspace);
    command.current_dir(copy).env("CARGO_TARGET_DIR", target);
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    // Not in several units: what is not inlined takes more stack than loom gives a thread.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    command
}

/// The test programs of a build.
pub(super) struct Built {
    programs: BTreeMap<String, PathBuf>,
    copy: PathBuf,
}

impl Built {
    /// Their names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.programs.keys().map(String::as_str)
    }

    /// The program of this name, to be run.
    pub(super) fn program(&self, name: &str) -> Result<Command> {
        let program = self.programs.get(name).with_context(|| format!("there is no test program {name}"))?;
        let mut command = Command::new(program);
        command.current_dir(&self.copy);
        Ok(command)
    }
}

/// The test programs that Cargo's messages tell of.
fn built_programs(messages: &str) -> BTreeMap<String, PathBuf> {
    let mut programs = BTreeMap::new();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let Some(program) = message["executable"].as_str() else { continue };
        let is_library =
            message["target"]["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "lib"));
        let name = if is_library { UNIT_TESTS } else { message["target"]["name"].as_str().unwrap_or_default() };
        if name == COMPILE_FAIL {
            continue;
        }
        programs.insert(name.to_owned(), PathBuf::from(OsString::from(program)));
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_program_is_in_one_build() {
        let build = |name: &str| Build::holding(&Checker::try_from(name.to_owned()).unwrap()).name;
        assert_eq!((build("loom_dirty::a"), build("host::races::a"), build("lib::a")), ("loom", "host", "host"));
    }

    #[test]
    fn what_is_needed_is_built_and_nothing_else() {
        let killers = ["loom_dirty::a", "loom_dirty::b", "host::races::a", "lib::a"];
        let killers = killers.map(|name| Checker::try_from(name.to_owned()).unwrap());
        let [loom, host] = &BUILDS;
        assert_eq!(loom.only(killers.iter()), ["--test", "loom_dirty"]);
        assert_eq!(host.only(killers.iter()), ["--test", "host", "--lib"]);
    }

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"host"},"executable":"/t/host-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"stage2"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"stage2"},"executable":"/t/stage2-1"}"#,
        );
        let programs = built_programs(messages);
        assert_eq!(programs.into_keys().collect::<Vec<_>>(), ["host", "lib"]);
    }
}
