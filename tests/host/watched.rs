//! What only one may write and what many may read, without atomics: a word for each frame's content, and one for each table page.
//!
//! Such a word is written by who has the frame or page to himself, and read by whoever finds it in the tree. What orders the two
//! is the library alone, so ThreadSanitizer sees a link without release, a grace period that is none, or a lock that is
//! missing, as a data race.

use std::cell::UnsafeCell;
use std::hint::black_box;

use stage2::addr::Pa;
use stage2::geometry::Granule4K;
use stage2::memory::{OutOfTables, TableMemory, TablePage};
use stage2::model::ModelMemory;

use crate::support::PAGE;

/// Words without atomics: whoever writes one must be the only one who knows of it.
pub(crate) struct PlainWords(Vec<UnsafeCell<u64>>);

// SAFETY: what the library promises, and the sanitizer watches: writes are ordered with all other accesses.
unsafe impl Sync for PlainWords {}

impl PlainWords {
    pub(crate) fn new(count: u64) -> Self {
        Self((0..count).map(UnsafeCell::new).collect())
    }

    /// The frame or page at `pa` is ours alone.
    pub(crate) fn write(&self, pa: Pa) {
        let word = self.0[(pa.raw() / PAGE) as usize].get();
        // SAFETY: it was just given out, or is about to be given back: nobody else reads or writes the word.
        unsafe { word.write(black_box(pa.raw())) }
    }

    /// The frame or page at `pa` was found in a tree.
    pub(crate) fn read(&self, pa: Pa) {
        let word = self.0[(pa.raw() / PAGE) as usize].get();
        // SAFETY: it was written before it was linked, and is not written until all sections that can find it are over.
        black_box(unsafe { word.read() });
    }
}

/// Table memory with a plain word for each page.
pub(crate) struct Watched {
    memory: ModelMemory<Granule4K>,
    words: PlainWords,
}

impl Watched {
    /// Memory of `pages` table pages.
    pub(crate) fn new(pages: usize) -> Self {
        // The first 16 pages of the address space are none of its.
        Self { memory: ModelMemory::new(pages), words: PlainWords::new(16 + pages as u64) }
    }

    /// Pages given out and not given back.
    pub(crate) fn live(&self) -> usize {
        self.memory.live()
    }
}

// SAFETY: it is the modelled memory.
unsafe impl TableMemory for Watched {
    type Granule = Granule4K;

    fn alloc(&self) -> Result<Pa, OutOfTables> {
        self.alloc_root(0)
    }

    fn alloc_root(&self, order: u32) -> Result<Pa, OutOfTables> {
        let table = self.memory.alloc_root(order)?;
        (0..1 << order).for_each(|page| self.words.write(Pa::new(table.raw() + page * PAGE)));
        Ok(table)
    }

    unsafe fn free(&self, table: Pa, order: u32) {
        (0..1 << order).for_each(|page| self.words.write(Pa::new(table.raw() + page * PAGE)));
        // SAFETY: as the caller says.
        unsafe { self.memory.free(table, order) }
    }

    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>> {
        // SAFETY: as the caller says.
        let page = unsafe { self.memory.table(table) }?;
        self.words.read(table);
        Some(page)
    }
}
