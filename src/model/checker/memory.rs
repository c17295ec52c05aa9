//! Table pages as walkers may see them: every value of a word that is not surely overwritten.
//!
//! A store may become visible to a walker at any time. It is sure to be visible once a DSB is complete that has it behind it; and to
//! a walk that has come through an entry, what was stored before that entry with release, or before a barrier, is visible too.

use std::vec::Vec;

use rustc_hash::FxHashMap;

use super::clock::{Clock, Write};
use super::shape::is_valid;

/// A value a word was given.
#[derive(Clone, Copy)]
pub(super) struct Version {
    pub(super) value: u64,
    by: Write,
    /// What is visible to whoever sees this value.
    pub(super) brings: Clock,
}

/// A word that was stored to since its page was zeroed.
struct Word {
    current: Version,
    /// What a walker may still see instead, the latest last.
    older: Vec<Version>,
}

/// A page of table memory.
pub(super) struct Page {
    /// The place in `stored` of each word, counted from 1. Most words of a page are never stored to: 0.
    places: Vec<u16>,
    stored: Vec<Word>,
    /// The indices of those words that may be valid to some walker, in order.
    valid: Vec<u16>,
    /// The store that zeroed the page.
    zeroed: Write,
    pub(super) is_free: bool,
    /// Whether a descriptor names it, or a CPU has it as its root.
    pub(super) is_linked: bool,
}

pub(super) struct Memory {
    pages: FxHashMap<u64, Page>,
    entries: usize,
    /// Words with more than one version, in no order.
    unsettled: Vec<(u64, usize)>,
}

impl Memory {
    pub(super) fn new(entries: usize) -> Self {
        Self { pages: FxHashMap::default(), entries, unsettled: Vec::new() }
    }

    pub(super) fn page(&self, table: u64) -> Option<&Page> {
        self.pages.get(&table)
    }

    pub(super) fn page_mut(&mut self, table: u64) -> Option<&mut Page> {
        self.pages.get_mut(&table)
    }

    /// The page begins a life, all zero by the store `zeroed`.
    pub(super) fn give(&mut self, table: u64, zeroed: Write) {
        self.pages.insert(table, Page::new(self.entries, zeroed));
    }

    /// Notes a store. A page that was never given out is one whose zeroes everybody has seen: a recorded trace does not say
    /// where table memory is.
    pub(super) fn store(&mut self, table: u64, index: usize, version: Version) {
        let never_given = || Page::new(self.entries, Write { cpu: 0, nth: 0 });
        let page = self.pages.entry(table).or_insert_with(never_given);
        if page.store(index, version) {
            self.unsettled.push((table, index));
        }
    }

    /// What the word holds, to software; `None` if the page was never given out.
    pub(super) fn current(&self, table: u64, index: usize) -> Option<u64> {
        let page = self.pages.get(&table)?;
        Some(page.current(index).map_or(0, |version| version.value))
    }

    /// The values that a walk which has `seen` may find in the word.
    pub(super) fn visible(&self, table: u64, index: usize, seen: &Clock) -> impl Iterator<Item = &Version> {
        let word = self.pages.get(&table).and_then(|page| page.word(index));
        word.into_iter().flat_map(|word| word.visible(seen))
    }

    /// Words that may be valid to some walker, from `first` to `last`.
    pub(super) fn maybe_valid(&self, table: u64, first: usize, last: usize) -> impl Iterator<Item = usize> {
        let valid = self.pages.get(&table).map_or(&[][..], |page| &page.valid);
        let from = valid.partition_point(|&index| usize::from(index) < first);
        valid[from..].iter().map(|&index| usize::from(index)).take_while(move |&index| index <= last)
    }

    /// Whether a walk that has `seen` finds the page as it was prepared, and nothing of its former life.
    pub(super) fn is_prepared(&self, table: u64, seen: &Clock) -> bool {
        self.pages.get(&table).is_none_or(|page| seen.has(page.zeroed))
    }

    /// Forgets the values that are surely overwritten for everybody.
    pub(super) fn settle(&mut self, done: &Clock) {
        let pages = &mut self.pages;
        self.unsettled.retain(|&(table, index)| pages.get_mut(&table).is_some_and(|page| !page.settle(index, done)));
    }

    /// Pages that were given out and not given back.
    pub(super) fn live(&self) -> usize {
        self.pages.values().filter(|page| !page.is_free).count()
    }
}

impl Page {
    fn new(entries: usize, zeroed: Write) -> Self {
        Self {
            places: std::vec![0; entries],
            stored: Vec::new(),
            valid: Vec::new(),
            zeroed,
            is_free: false,
            is_linked: false,
        }
    }

    /// `None` where nothing was stored since the page was zeroed.
    fn word(&self, index: usize) -> Option<&Word> {
        self.stored.get(usize::from(*self.places.get(index)?).checked_sub(1)?)
    }

    fn word_mut(&mut self, index: usize) -> Option<&mut Word> {
        self.stored.get_mut(usize::from(*self.places.get(index)?).checked_sub(1)?)
    }

    /// What the word was last given; `None` where nothing was stored since the page was zeroed.
    pub(super) fn current(&self, index: usize) -> Option<&Version> {
        self.word(index).map(|word| &word.current)
    }

    /// Gives the word another value; whether it has several now and had one before.
    fn store(&mut self, index: usize, version: Version) -> bool {
        if is_valid(version.value)
            && index < self.places.len()
            && let Err(at) = self.valid.binary_search(&(index as u16))
        {
            self.valid.insert(at, index as u16);
        }
        if let Some(word) = self.word_mut(index) {
            word.older.push(std::mem::replace(&mut word.current, version));
            return word.older.len() == 1;
        }
        let Some(place) = self.places.get_mut(index) else { return false };
        let zero = Version { value: 0, by: self.zeroed, brings: Clock::default() };
        self.stored.push(Word { current: version, older: std::vec![zero] });
        *place = self.stored.len() as u16;
        true
    }

    /// Forgets the values of the word that are surely overwritten for who has seen what is `done`; whether that leaves one.
    fn settle(&mut self, index: usize, done: &Clock) -> bool {
        let Some(word) = self.word_mut(index) else { return true };
        let is_settled = word.settle(done);
        if is_settled
            && !is_valid(word.current.value)
            && let Ok(at) = self.valid.binary_search(&(index as u16))
        {
            self.valid.remove(at);
        }
        is_settled
    }
}

impl Word {
    /// The last value that is surely visible to who has `seen`, and all that came later.
    fn visible(&self, seen: &Clock) -> impl Iterator<Item = &Version> {
        let from = self.surely_visible(seen);
        self.older[from..].iter().chain([&self.current])
    }

    /// The place of that value in `older`, or behind it.
    fn surely_visible(&self, seen: &Clock) -> usize {
        if seen.has(self.current.by) {
            return self.older.len();
        }
        self.older.iter().rposition(|version| seen.has(version.by)).unwrap_or(0)
    }

    /// Forgets what is older; whether that leaves one value.
    fn settle(&mut self, done: &Clock) -> bool {
        self.older.drain(..self.surely_visible(done));
        self.older.is_empty()
    }
}

impl Version {
    pub(super) fn new(value: u64, by: Write, brings: Clock) -> Self {
        Self { value, by, brings }
    }
}
