//! The table of mutants, `proofs/mutants.toml`: what is broken, where, and who must see it.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Where it is, from the root of the workspace.
pub(super) const FILE: &str = "proofs/mutants.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) mutant: Vec<Mutant>,
}

/// A seeded bug.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutant {
    pub(super) id: String,
    /// The rule of the design it breaks, and the row of `docs/locking.md`, if there is one: `7 / M5`.
    pub(super) rule: String,
    /// What is wrong with it, in words.
    pub(super) breaks: String,
    pub(super) edits: Vec<Edit>,
    /// The check that must fail.
    pub(super) killer: Checker,
    /// It changes types or constants: built alone.
    #[serde(default)]
    pub(super) rebuild: bool,
    /// A test that does not end has seen it.
    #[serde(default)]
    pub(super) may_hang: bool,
    /// It is in the bounded part.
    #[serde(default)]
    pub(super) slice: bool,
}

/// Text that is replaced.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    pub(super) file: String,
    /// The text of a line with which the item begins that the change is in.
    within: Option<String>,
    /// Text that is there once; the place is the first behind it.
    after: Option<String>,
    /// Occurs there exactly once, or first: one expression, or whole statements that declare nothing for later ones.
    pub(super) find: String,
    pub(super) replace: String,
}

/// Something that passes with the library as it is, and fails with a mutant: `host::races::some_test` is a test of a test program,
/// `lib::...` a unit test, `compile_fail::case` a program that must not compile, `rustc::E0308` the library, which must.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Checker {
    pub(super) name: String,
    /// The test program.
    pub(super) program: String,
    /// The test in it; empty for all of them.
    pub(super) test: String,
}

impl TryFrom<String> for Checker {
    type Error = anyhow::Error;

    fn try_from(name: String) -> Result<Self> {
        let (program, test) = name.split_once("::").context("a killer is program::test")?;
        let (program, test) = (program.to_owned(), test.to_owned());
        Ok(Self { name, program, test })
    }
}

impl Checker {
    /// All of a test program.
    pub(super) fn whole(program: &str) -> Self {
        Self { name: program.to_owned(), program: program.to_owned(), test: String::new() }
    }
}

impl Table {
    /// Reads the table of the workspace at `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(FILE)).with_context(|| format!("cannot read {FILE}"))?;
        toml::from_str(&text).with_context(|| format!("{FILE} is not as it should be"))
    }

    /// What a mutant is chosen by; 0 is none.
    pub(super) fn number(&self, mutant: &Mutant) -> usize {
        self.mutant.iter().position(|other| std::ptr::eq(other, mutant)).map_or(0, |at| at + 1)
    }
}

impl Mutant {
    /// The number of the design's rule.
    pub(super) fn rule_number(&self) -> Option<usize> {
        self.rule.split(" / ").next()?.parse().ok()
    }

    /// The rows of `docs/locking.md`.
    pub(super) fn rows(&self) -> impl Iterator<Item = &str> {
        self.rule.split(" / ").skip(1)
    }
}

impl Edit {
    /// Where in the file's `text` it is.
    pub(super) fn locate(&self, text: &str) -> Result<Range<usize>> {
        let item = match &self.within {
            Some(within) => item(text, within).with_context(|| format!("{}: not one item `{within}`", self.file))?,
            None => 0..text.len(),
        };
        let begin = match &self.after {
            Some(after) => self.only(text, item.clone(), after)? + after.len(),
            None => self.only(text, item.clone(), &self.find)?,
        };
        let found = text[begin..item.end].find(&self.find).with_context(|| self.missing(&self.find))?;
        let start = begin + found;
        Ok(start..start + self.find.len())
    }

    /// Where the one `part` is in `item`.
    fn only(&self, text: &str, item: Range<usize>, part: &str) -> Result<usize> {
        let mut found = text[item.clone()].match_indices(part).map(|(at, _)| item.start + at);
        let at = found.next().with_context(|| self.missing(part))?;
        ensure!(found.next().is_none(), "{}: there is more than one `{part}`", self.file);
        Ok(at)
    }

    fn missing(&self, part: &str) -> String {
        format!("{}: there is no `{part}`", self.file)
    }
}

/// The item whose first line contains `within`: up to the first line that closes a brace as far left as that line begins. This
/// is where rustfmt puts it.
fn item(text: &str, within: &str) -> Option<Range<usize>> {
    let mut found = text.match_indices(within).map(|(at, _)| at);
    let (Some(at), None) = (found.next(), found.next()) else { return None };
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let indent = &text[start..at][..text[start..at].len() - text[start..at].trim_start().len()];
    let end = text[at..].find(&format!("\n{indent}}}")).map_or(text.len(), |end| at + end);
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TEXT: &str = "impl A {\n    fn one(\n        x: u8,\n    ) {\n        call(x);\n    }\n\n    fn two() {\n        call(x);\n    }\n}\n";

    fn edit(within: Option<&str>, find: &str) -> Edit {
        Edit {
            file: "f".into(),
            within: within.map(str::to_owned),
            after: None,
            find: find.into(),
            replace: String::new(),
        }
    }

    #[test]
    fn a_text_is_found_within_its_item_and_nowhere_else() {
        let found = edit(Some("fn two"), "call(x);").locate(TEXT).unwrap();
        assert_eq!((&TEXT[found.clone()], found.start > TEXT.find("two").unwrap()), ("call(x);", true));
        assert!(edit(Some("fn one"), "call(x);").locate(TEXT).unwrap().start < found.start);
    }

    #[test]
    fn behind_a_text_that_is_there_once_the_first_is_meant() {
        let behind = |after: &str| Edit { after: Some(after.to_owned()), ..edit(None, "call(x);") }.locate(TEXT);
        assert_eq!(behind("x: u8").unwrap(), edit(Some("fn one"), "call(x);").locate(TEXT).unwrap());
        assert!(behind("call").is_err() && behind("two() {\n        call(x);").is_err());
    }

    #[test]
    fn a_text_that_is_not_there_exactly_once_is_an_error() {
        assert!(edit(None, "call(x);").locate(TEXT).is_err());
        assert!(edit(None, "call(y);").locate(TEXT).is_err());
        assert!(edit(Some("fn three"), "call(x);").locate(TEXT).is_err());
    }

    #[test]
    fn every_mutant_of_the_table_has_a_name_of_its_own_its_place_in_the_source_and_a_killer() {
        let root = crate::workspace::Workspace::locate().root;
        let table = Table::read(&root).unwrap();
        let ids: BTreeSet<&str> = table.mutant.iter().map(|mutant| &*mutant.id).collect();
        assert_eq!(ids.len(), table.mutant.len());
        let mut wrong = Vec::new();
        for mutant in &table.mutant {
            for edit in &mutant.edits {
                let text = fs::read_to_string(root.join(&edit.file)).unwrap();
                match edit.locate(&text) {
                    Ok(_) if edit.find == edit.replace => wrong.push(format!("{}: no change", mutant.id)),
                    Ok(_) => {}
                    Err(error) => wrong.push(format!("{}: {error:#}", mutant.id)),
                }
            }
            if !is_there(&root, &mutant.killer) {
                wrong.push(format!("{}: there is no {}", mutant.id, mutant.killer.name));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    fn is_there(root: &Path, killer: &Checker) -> bool {
        let Checker { program, test, .. } = killer;
        let function = format!("fn {}(", test.rsplit("::").next().unwrap());
        match program.as_str() {
            "rustc" => true,
            "compile_fail" => root.join(format!("tests/compile-fail/{test}.rs")).is_file(),
            "lib" => is_in(&root.join("src"), &function),
            program if root.join("tests").join(program).is_dir() => is_in(&root.join("tests").join(program), &function),
            program => is_in(&root.join(format!("tests/{program}.rs")), &function),
        }
    }

    fn is_in(path: &Path, text: &str) -> bool {
        match fs::read_dir(path) {
            Ok(entries) => entries.flatten().any(|entry| is_in(&entry.path(), text)),
            Err(_) => fs::read_to_string(path).is_ok_and(|content| content.contains(text)),
        }
    }

    #[test]
    fn a_killer_is_a_program_and_a_test() {
        let checker = Checker::try_from("host::races::a_claim".to_owned()).unwrap();
        assert_eq!((&*checker.program, &*checker.test), ("host", "races::a_claim"));
        assert!(Checker::try_from("host".to_owned()).is_err());
    }
}
