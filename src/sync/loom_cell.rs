//! An entry or a word of a log under loom: loom's atomic, with each thread's last load on record.
//!
//! Loom looks for a race with the *last* access only. A thread that loads a word and later stores to it, as every walk that
//! locks does, has by its own load hidden the loads of all others: the store would never be tried before those. So each
//! thread's loads also touch a mark of that thread's own, and who stores touches the marks of all others.

use std::boxed::Box;
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use loom::sync::atomic::AtomicU64;
use loom::thread::ThreadId;

use super::Ordering;

/// A word, and who has loaded it.
#[derive(Debug)]
pub(super) struct Cell {
    word: AtomicU64,
    marks: Box<[AtomicU64]>,
    /// Whose mark is which: the threads that have loaded, in that order.
    readers: Mutex<Vec<ThreadId>>,
}

/// More threads than any test has.
const MAX_READERS: usize = 4;

impl Cell {
    /// As `core`'s.
    pub(super) fn new(value: u64) -> Self {
        Self {
            word: AtomicU64::new(value),
            marks: (0..MAX_READERS).map(|_| AtomicU64::new(0)).collect(),
            readers: Mutex::default(),
        }
    }

    /// The readers so far. Cloned: no lock is held when loom switches threads.
    fn readers(&self, joining: Option<ThreadId>) -> Vec<ThreadId> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = joining
            && !readers.contains(&reader)
        {
            readers.push(reader);
        }
        readers.clone()
    }

    fn about_to_store(&self) {
        let this = loom::thread::current().id();
        for (mark, reader) in self.marks.iter().zip(self.readers(None)) {
            if reader != this {
                mark.fetch_or(0, Ordering::Relaxed);
            }
        }
    }

    /// As `core`'s.
    pub(super) fn load(&self, ordering: Ordering) -> u64 {
        let this = loom::thread::current().id();
        for (mark, reader) in self.marks.iter().zip(self.readers(Some(this))) {
            if reader == this {
                mark.load(Ordering::Relaxed);
            }
        }
        self.word.load(ordering)
    }

    /// What it holds, for the one who holds the lock under which alone it is written.
    pub(super) fn load_owned(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    /// As `core`'s.
    pub(super) fn store(&self, value: u64, ordering: Ordering) {
        self.about_to_store();
        self.word.store(value, ordering);
    }

    /// As `core`'s.
    pub(super) fn swap(&self, value: u64, ordering: Ordering) -> u64 {
        self.about_to_store();
        self.word.swap(value, ordering)
    }

    /// As `core`'s.
    pub(super) fn fetch_or(&self, value: u64, ordering: Ordering) -> u64 {
        self.about_to_store();
        self.word.fetch_or(value, ordering)
    }

    /// As `core`'s.
    pub(super) fn fetch_and(&self, value: u64, ordering: Ordering) -> u64 {
        self.about_to_store();
        self.word.fetch_and(value, ordering)
    }

    /// As `core`'s.
    pub(super) fn compare_exchange(&self, old: u64, new: u64, done: Ordering, not: Ordering) -> Result<u64, u64> {
        self.about_to_store();
        self.word.compare_exchange(old, new, done, not)
    }
}
