//! All mutants in one source: each place that some mutant changes becomes a choice made at run time.
//!
//! `dsb(a)` becomes `(if crate::mutant::is(7) { dsb(b) } else { dsb(a) })`; statements likewise, without the parentheses. Two mutants
//! of one place share its choice, and one within the other's place is in the branch where the other is not chosen. A function that
//! is `const` cannot choose: one that has to is not `const` any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::table::{Edit, Mutant, Table};

/// The environment variable that chooses a mutant by its number.
pub(super) const CHOICE: &str = "STAGE2_MUTANT";

/// The module `mutant` of the copy.
const MODULE: &str = r#"//! Which mutant was chosen.

use std::sync::OnceLock;

/// Whether it is the one with this number.
pub(crate) fn is(number: usize) -> bool {
    static CHOSEN: OnceLock<usize> = OnceLock::new();
    let chosen = || std::env::var("STAGE2_MUTANT").ok().and_then(|chosen| chosen.parse().ok()).unwrap_or(0);
    *CHOSEN.get_or_init(chosen) == number
}
"#;

/// Before the `fn` of a function that may be evaluated when it is compiled.
const CONSTANT: &str = "const ";

/// A place, and what the mutants with these numbers have there; nobody keeps it if there are none.
struct Place<'t> {
    span: Range<usize>,
    instead: Vec<(usize, &'t str)>,
}

/// The files of the workspace at `root` that are different with all mutants of the table that can be chosen at run time.
pub(super) fn apply(root: &Path, table: &Table) -> Result<BTreeMap<PathBuf, String>> {
    let mut edits: BTreeMap<&str, Vec<(usize, &Edit)>> = BTreeMap::new();
    for mutant in table.mutant.iter().filter(|mutant| !mutant.rebuild) {
        for edit in &mutant.edits {
            edits.entry(&edit.file).or_default().push((table.number(mutant), edit));
        }
    }
    let mut files = BTreeMap::new();
    for (file, edits) in edits {
        let text = read(root, file)?;
        let with_choices = compose(&text, &edits).with_context(|| file.to_owned())?;
        files.insert(PathBuf::from(file), with_choices);
    }
    let library = PathBuf::from("src/lib.rs");
    let text = match files.remove(&library) {
        Some(text) => text,
        None => read(root, "src/lib.rs")?,
    };
    files.insert(library, text + "\nmod mutant;\n");
    files.insert(PathBuf::from("src/mutant.rs"), MODULE.to_owned());
    Ok(files)
}

/// The files that are different with `mutant` alone.
pub(super) fn apply_alone(root: &Path, mutant: &Mutant) -> Result<BTreeMap<PathBuf, String>> {
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    for edit in &mutant.edits {
        let file = PathBuf::from(&edit.file);
        let mut text = match files.remove(&file) {
            Some(text) => text,
            None => read(root, &edit.file)?,
        };
        text.replace_range(edit.locate(&text)?, &edit.replace);
        files.insert(file, text);
    }
    Ok(files)
}

fn read(root: &Path, file: &str) -> Result<String> {
    fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))
}

fn compose(text: &str, edits: &[(usize, &Edit)]) -> Result<String> {
    let mut places: Vec<Place<'_>> = Vec::new();
    for &(number, edit) in edits {
        let span = edit.locate(text)?;
        match places.iter_mut().find(|place| place.span == span) {
            Some(place) => place.instead.push((number, &edit.replace)),
            None => places.push(Place { span, instead: vec![(number, &edit.replace)] }),
        }
    }
    let constants: BTreeSet<usize> = places.iter().filter_map(|place| constant(text, place)).collect();
    places.extend(constants.into_iter().map(|at| Place { span: at..at + CONSTANT.len(), instead: Vec::new() }));
    // The outer before the inner.
    places.sort_by_key(|place| (place.span.start, usize::MAX - place.span.end));
    render(text, 0..text.len(), &places)
}

/// Where the function that `place` is in is called `const`, if it is.
fn constant(text: &str, place: &Place<'_>) -> Option<usize> {
    let function = text[..place.span.start].rfind("fn ")?;
    text[..function].ends_with(CONSTANT).then(|| function - CONSTANT.len())
}

/// The text of `span` with the choices of `places`, which are within it.
fn render(text: &str, span: Range<usize>, mut places: &[Place<'_>]) -> Result<String> {
    let mut rendered = String::new();
    let mut at = span.start;
    while let Some((place, rest)) = places.split_first() {
        let within = rest.iter().take_while(|inner| inner.span.start < place.span.end).count();
        let (inner, after) = rest.split_at(within);
        let nested = inner.iter().all(|inner| inner.span.end <= place.span.end);
        ensure!(nested, "two mutants overlap at `{}`", &text[place.span.clone()]);
        rendered += &text[at..place.span.start];
        rendered += &choice(place, &render(text, place.span.clone(), inner)?);
        at = place.span.end;
        places = after;
    }
    Ok(rendered + &text[at..span.end])
}

fn choice(place: &Place<'_>, unchanged: &str) -> String {
    if place.instead.is_empty() {
        return String::new();
    }
    let mut choice = String::new();
    for (number, instead) in &place.instead {
        choice += &format!("if crate::mutant::is({number}) {{ {instead} }} else ");
    }
    let is_statement = unchanged.ends_with([';', '}']);
    if is_statement { format!("{choice}{{ {unchanged} }}") } else { format!("({choice}{{ {unchanged} }})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(find: &str, replace: &str) -> Edit {
        let text = format!("file = 'f'\nfind = '{find}'\nreplace = '{replace}'");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn mutants_of_one_place_share_a_choice_and_one_within_another_is_in_its_else() {
        let (whole, other, inner) = (edit("a(b);", ""), edit("a(b);", "c();"), edit("b", "d"));
        let composed = compose("x; a(b); y;", &[(3, &inner), (1, &whole), (2, &other)]).unwrap();
        assert_eq!(
            composed,
            "x; if crate::mutant::is(1) {  } else if crate::mutant::is(2) { c(); } else \
             { a((if crate::mutant::is(3) { d } else { b })); } y;"
        );
    }

    #[test]
    fn a_function_that_chooses_is_not_constant() {
        let text = "const A: u8 = 1; const fn b() { inner } const fn d() {}";
        let composed = compose(text, &[(1, &edit("inner", "e"))]).unwrap();
        assert_eq!(
            composed,
            "const A: u8 = 1; fn b() { (if crate::mutant::is(1) { e } else { inner }) } const fn d() {}"
        );
    }

    #[test]
    fn two_that_overlap_are_refused() {
        assert!(compose("a b c", &[(1, &edit("a b", "")), (2, &edit("b c", ""))]).is_err());
    }

    #[test]
    fn the_choice_is_read_from_the_variable_that_is_set() {
        assert!(MODULE.contains(CHOICE));
    }
}
