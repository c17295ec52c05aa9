//! The models under `proofs/` name the library's functions in their comments, as `Type::function` or `module::function`.
//! A name that is none any more is a model of what no longer is.
//!
//! A step (`atomic`, `d_step`) says what it stands for on its own line or in the comment line right above: a function, or
//! `hardware:`, `embedder:` or `model:`, for what is not the library's. Said of a process or an inline, the latter hold for all of
//! its steps.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// Whose steps have no function in the library.
const OTHERS: [&str; 3] = ["hardware:", "embedder:", "model:"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All files under `folder` with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|other| other == extension) {
            found.push(path);
        }
    }
    found
}

/// What can be named: functions by their type, trait or module, and variants by their enum.
#[derive(Default)]
struct Names {
    known: HashSet<(String, String)>,
    owner: String,
}

impl Names {
    /// Of the whole library.
    fn of_library() -> Self {
        let mut names = Self::default();
        for path in files(&root().join("src"), "rs") {
            let module = if path.ends_with("mod.rs") { path.parent().unwrap() } else { &path };
            names.owner = module.file_stem().unwrap().to_str().unwrap().to_owned();
            names.visit_file(&syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
        }
        names
    }

    fn add(&mut self, name: &syn::Ident) {
        self.known.insert((self.owner.clone(), name.to_string()));
    }

    fn within(&mut self, owner: String, visit: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.owner, owner);
        visit(self);
        self.owner = outer;
    }

    /// Of a path, the last two parts count.
    fn knows(&self, name: &str) -> bool {
        let mut parts = name.rsplit("::");
        let (function, owner) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.known.contains(&(owner.to_owned(), function.to_owned()))
    }
}

impl Visit<'_> for Names {
    fn visit_item_impl(&mut self, item: &syn::ItemImpl) {
        let syn::Type::Path(of) = &*item.self_ty else { return };
        self.within(of.path.segments.last().unwrap().ident.to_string(), |names| visit::visit_item_impl(names, item));
    }

    fn visit_item_trait(&mut self, item: &syn::ItemTrait) {
        self.within(item.ident.to_string(), |names| visit::visit_item_trait(names, item));
    }

    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        self.within(item.ident.to_string(), |names| visit::visit_item_mod(names, item));
    }

    fn visit_item_enum(&mut self, item: &syn::ItemEnum) {
        self.within(item.ident.to_string(), |names| item.variants.iter().for_each(|variant| names.add(&variant.ident)));
    }

    fn visit_item_fn(&mut self, item: &syn::ItemFn) {
        self.add(&item.sig.ident);
    }

    fn visit_impl_item_fn(&mut self, item: &syn::ImplItemFn) {
        self.add(&item.sig.ident);
    }

    fn visit_trait_item_fn(&mut self, item: &syn::TraitItemFn) {
        self.add(&item.sig.ident);
    }
}

/// A line of a model: what SPIN reads of it, and what it does not.
#[derive(Default)]
struct Line {
    code: String,
    comment: String,
}

impl Line {
    /// Whether one of `words` is in the code.
    fn has(&self, words: &[&str]) -> bool {
        self.code.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| words.contains(&word))
    }
}

/// Tells code from comments, which may go over several lines.
fn lines(model: &str) -> Vec<Line> {
    let mut in_comment = false;
    let split = |text: &str| {
        let (mut line, mut rest) = (Line::default(), text);
        loop {
            let (to, end) = if in_comment { (&mut line.comment, "*/") } else { (&mut line.code, "/*") };
            let Some((before, after)) = rest.split_once(end) else {
                to.push_str(rest);
                return line;
            };
            to.push_str(before);
            rest = after;
            in_comment = !in_comment;
        }
    };
    model.lines().map(split).collect()
}

/// The names in a comment: words joined by `::`, their generic arguments left out.
fn names(comment: &str) -> Vec<String> {
    let mut depth = 0;
    let plain: String = comment
        .chars()
        .filter(|&letter| {
            depth += i32::from(letter == '<') - i32::from(letter == '>');
            depth == 0 && letter != '>'
        })
        .collect();
    let words = plain.split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != ':');
    words.map(|word| word.trim_matches(':')).filter(|word| word.contains("::")).map(str::to_owned).collect()
}

/// What is wrong with a model, a line each.
fn complaints(library: &Names, model: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = lines(model);
    let mut not_ours = false;
    for (index, line) in lines.iter().enumerate() {
        let unknown = names(&line.comment).into_iter().filter(|name| !library.knows(name));
        complaints.extend(unknown.map(|name| format!("{}: the library has no {name}", index + 1)));

        let above = index.checked_sub(1).map(|above| &lines[above]).filter(|above| above.code.trim().is_empty());
        let said = above.map_or(String::new(), |above| above.comment.clone()) + &line.comment;
        let says_other = OTHERS.iter().any(|other| said.contains(other));
        if line.has(&["proctype", "inline", "init"]) {
            not_ours = says_other;
        }
        if line.has(&["atomic", "d_step"]) && !not_ours && !says_other && names(&said).is_empty() {
            complaints.push(format!("{}: a step that does not say what it stands for", index + 1));
        }
    }
    complaints
}

#[test]
fn every_function_that_a_model_names_is_in_the_library() {
    let library = Names::of_library();
    let models = files(&root().join("proofs"), "pml");
    assert!(!models.is_empty());
    let mut wrong = Vec::new();
    for path in &models {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let found = complaints(&library, &fs::read_to_string(path).unwrap());
        wrong.extend(found.into_iter().map(|complaint| format!("{name}:{complaint}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_wrong_name_and_a_step_without_one_are_found() {
    let library = Names::of_library();
    let check = |model| complaints(&library, model);
    assert_eq!(check("atomic { x } /* TableMeta::lock, Batch<Quiesced>::free and Backing::page */"), [""; 0]);
    assert_eq!(check("/* hardware: a walk\n of two lines, TableMeta::lock */\natomic { x }"), [""; 0]);
    assert_eq!(check("/* TableMeta::lock */\nx;\natomic { y }"), ["3: a step that does not say what it stands for"]);
    assert_eq!(check(":: d_step { y }; x /* the lock */"), ["1: a step that does not say what it stands for"]);
    assert_eq!(check("/* hardware: */\nproctype A() {\natomic { x }\n}"), [""; 0]);
    let ours = "/* hardware: */\nproctype A() {\n}\nproctype B() {\natomic { x }\n}";
    assert_eq!(check(ours), ["5: a step that does not say what it stands for"]);
    assert_eq!(check("x /* TableMeta::seize */"), ["1: the library has no TableMeta::seize"]);
}
