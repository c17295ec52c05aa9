//! Table memory made of constructed arrays: loom's atomics cannot be laid over raw pages.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64 as Plain, Ordering};
use std::boxed::Box;
use std::vec::Vec;

use crate::addr::Pa;
use crate::geometry::granule::Granule;
use crate::memory::{OutOfTables, TableMemory, TableMeta, TablePage};
use crate::sync::{Mutex, Word};

/// What a freed page is filled with: reserved at every level, so a walk that meets it has looked at a freed table.
pub const POISON: u64 = 0xdead_0000_0000_0004;

/// Table memory of a fixed number of pages, on a host.
pub struct ModelMemory<G> {
    pages: Vec<Page>,
    base: Pa,
    /// Indices of free pages.
    free: Mutex<Vec<usize>>,
    /// Allocations until the next one fails; `u64::MAX` for never.
    failing_in: Plain,
    granule: PhantomData<G>,
}

struct Page {
    entries: Box<[Word]>,
    meta: TableMeta,
}

impl<G: Granule> ModelMemory<G> {
    /// Memory of `pages` table pages.
    pub fn new(pages: usize) -> Self {
        let page = || Page { entries: (0..G::ENTRIES).map(|_| Word::new(POISON)).collect(), meta: TableMeta::new() };
        Self {
            pages: (0..pages).map(|_| page()).collect(),
            base: Pa::new(16 * G::PAGE_SIZE),
            free: Mutex::new((0..pages).rev().collect()),
            failing_in: Plain::new(u64::MAX),
            granule: PhantomData,
        }
    }

    /// Lets `successes` more allocations succeed and the one after fail.
    pub fn fail_after(&self, successes: u64) {
        self.failing_in.store(successes, Ordering::Relaxed);
    }

    /// Pages given out and not given back.
    pub fn live(&self) -> usize {
        self.pages.len() - self.free.lock().len()
    }

    fn index(&self, table: Pa) -> Option<usize> {
        let index = (table.raw().checked_sub(self.base.raw())? >> G::PAGE_SHIFT) as usize;
        (index < self.pages.len() && table.is_aligned(G::PAGE_SHIFT)).then_some(index)
    }

    fn fill(&self, first: usize, order: u32, value: u64) {
        for page in self.pages.iter().skip(first).take(1 << order) {
            for entry in &page.entries {
                entry.store(value, Ordering::Relaxed);
            }
        }
    }
}

// SAFETY: pages are disjoint arrays of atomics that live as long as `self`, found by arithmetic; `alloc_root` gives zeroed,
// contiguous, aligned ones that nobody else has.
unsafe impl<G: Granule> TableMemory for ModelMemory<G> {
    type Granule = G;

    fn alloc(&self) -> Result<Pa, OutOfTables> {
        self.alloc_root(0)
    }

    fn alloc_root(&self, order: u32) -> Result<Pa, OutOfTables> {
        let left = self.failing_in.load(Ordering::Relaxed);
        if left != u64::MAX {
            self.failing_in.store(left.checked_sub(1).unwrap_or(u64::MAX), Ordering::Relaxed);
            if left == 0 {
                return Err(OutOfTables);
            }
        }
        let mut free = self.free.lock();
        let count = 1usize << order;
        let fits = |first: usize, free: &[usize]| {
            // The base is a multiple of 16 pages: an aligned index is an aligned address.
            first.is_multiple_of(count) && (first..first + count).all(|page| free.contains(&page))
        };
        let first = free.iter().rev().copied().find(|&page| fits(page, &free)).ok_or(OutOfTables)?;
        free.retain(|page| !(first..first + count).contains(page));
        drop(free);
        self.fill(first, order, 0);
        Ok(self.base.offset((first as u64) << G::PAGE_SHIFT))
    }

    unsafe fn free(&self, table: Pa, order: u32) {
        let Some(first) = self.index(table) else { return };
        self.fill(first, order, POISON);
        self.free.lock().extend((first..first + (1 << order)).rev());
    }

    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>> {
        let page = self.pages.get(self.index(table)?)?;
        Some(TablePage { entries: &page.entries, meta: &page.meta })
    }
}
