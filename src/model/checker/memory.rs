//! Table pages as walkers may see them: every value of a word that is not surely overwritten.
//!
//! A store may become visible to a walker at any time. It is sure to be visible once a DSB is complete that has it behind it; and to
//! a walk that has come through an entry, what was stored before that entry with release, or before a barrier, is visible too.

use std::collections::{BTreeSet, HashMap};
use std::vec::Vec;

use super::clock::{Clock, Write};

/// A value a word was given.
#[derive(Clone, Copy)]
pub(super) struct Version {
    pub(super) value: u64,
    by: Write,
    /// What is visible to whoever sees this value.
    pub(super) brings: Clock,
}

/// A page of table memory.
pub(super) struct Page {
    /// The versions of each word, the current one last. Empty: it was not stored to since the page was zeroed.
    words: Vec<Vec<Version>>,
    /// The store that zeroed the page.
    zeroed: Write,
    pub(super) is_free: bool,
    /// Whether a descriptor names it, or a CPU has it as its root.
    pub(super) is_linked: bool,
}

pub(super) struct Memory {
    pages: HashMap<u64, Page>,
    entries: usize,
    /// Words with more than one version.
    unsettled: BTreeSet<(u64, usize)>,
}

impl Memory {
    pub(super) fn new(entries: usize) -> Self {
        Self { pages: HashMap::new(), entries, unsettled: BTreeSet::new() }
    }

    pub(super) fn page(&self, table: u64) -> Option<&Page> {
        self.pages.get(&table)
    }

    pub(super) fn page_mut(&mut self, table: u64) -> Option<&mut Page> {
        self.pages.get_mut(&table)
    }

    /// The page begins a life, all zero by the store `zeroed`.
    pub(super) fn give(&mut self, table: u64, zeroed: Write) {
        let page = Page { words: std::vec![Vec::new(); self.entries], zeroed, is_free: false, is_linked: false };
        self.pages.insert(table, page);
    }

    /// Notes a store. A page that was never given out is one whose zeroes everybody has seen: a recorded trace does not say
    /// where table memory is.
    pub(super) fn store(&mut self, table: u64, index: usize, version: Version) {
        if !self.pages.contains_key(&table) {
            self.give(table, Write { cpu: 0, nth: 0 });
        }
        let Some(page) = self.pages.get_mut(&table) else { return };
        let Some(word) = page.words.get_mut(index) else { return };
        if word.is_empty() {
            let brings = Clock::default();
            word.push(Version { value: 0, by: page.zeroed, brings });
        }
        word.push(version);
        self.unsettled.insert((table, index));
    }

    /// What the word holds, to software.
    pub(super) fn current(&self, table: u64, index: usize) -> Option<Version> {
        let page = self.pages.get(&table)?;
        let never = Version { value: 0, by: page.zeroed, brings: Clock::default() };
        Some(page.words.get(index)?.last().copied().unwrap_or(never))
    }

    /// The values that a walk which has `seen` may find in the word.
    pub(super) fn visible(&self, table: u64, index: usize, seen: &Clock) -> impl Iterator<Item = Version> {
        let word = self.pages.get(&table).and_then(|page| page.words.get(index)).map_or(&[][..], |word| word);
        // The last that is surely visible, and all that came later.
        let from = word.iter().rposition(|version| seen.has(version.by)).unwrap_or(0);
        word[from..].iter().copied()
    }

    /// Words that were stored to, from `first` to `last`.
    pub(super) fn stored(&self, table: u64, first: usize, last: usize) -> impl Iterator<Item = usize> {
        let words = self.pages.get(&table).map_or(&[][..], |page| &page.words);
        let words = words.get(first..=last.min(words.len().saturating_sub(1))).unwrap_or(&[]);
        words.iter().enumerate().filter(|(_, word)| !word.is_empty()).map(move |(at, _)| first + at)
    }

    /// Whether a walk that has `seen` finds the page as it was prepared, and nothing of its former life.
    pub(super) fn is_prepared(&self, table: u64, seen: &Clock) -> bool {
        self.pages.get(&table).is_none_or(|page| seen.has(page.zeroed))
    }

    /// Forgets the values that are surely overwritten for everybody.
    pub(super) fn settle(&mut self, done: &Clock) {
        let pages = &mut self.pages;
        self.unsettled.retain(|&(table, index)| {
            let Some(word) = pages.get_mut(&table).and_then(|page| page.words.get_mut(index)) else { return false };
            let from = word.iter().rposition(|version| done.has(version.by)).unwrap_or(0);
            word.drain(..from);
            word.len() > 1
        });
    }

    /// Pages that were given out and not given back.
    pub(super) fn live(&self) -> usize {
        self.pages.values().filter(|page| !page.is_free).count()
    }
}

impl Version {
    pub(super) fn new(value: u64, by: Write, brings: Clock) -> Self {
        Self { value, by, brings }
    }
}
