//! Table memory made of constructed arrays: loom's atomics cannot be laid over raw pages.

use core::marker::PhantomData;
#[cfg(all(feature = "model", not(loom)))]
use core::ops::Range;
use core::sync::atomic::{AtomicU64 as Plain, Ordering};
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use crate::addr::Pa;
use crate::geometry::granule::Granule;
use crate::memory::{OutOfTables, TableMemory, TableMeta, TablePage};
use crate::sync::{Mutex, Word, probe};

/// What a freed page is filled with: reserved at every level, so a walk that meets it has looked at a freed table.
pub const POISON: u64 = 0xdead_0000_0000_0004;

/// Who is told what becomes of the pages of a [`ModelMemory`].
pub(crate) trait TableWatcher: Send + Sync {
    /// These are the pages.
    #[cfg(all(feature = "model", not(loom)))]
    fn watch(&self, pages: Vec<WatchedPage>);
    /// `1 << order` pages from `table` on were given out, zeroed.
    fn given(&self, table: Pa, order: u32);
    /// They are given back.
    fn freed(&self, table: Pa, order: u32);
}

/// Where the modelled memory keeps a page.
#[cfg(all(feature = "model", not(loom)))]
pub(crate) struct WatchedPage {
    pub(crate) table: Pa,
    /// The addresses of its words.
    pub(crate) words: Range<usize>,
    /// The address of its lock.
    pub(crate) lock: usize,
}

/// Table memory of a fixed number of pages, on a host.
pub struct ModelMemory<G> {
    pages: Vec<Page>,
    base: Pa,
    /// Indices of free pages.
    free: Mutex<Vec<usize>>,
    /// Allocations until the next one fails; `u64::MAX` for never.
    failing_in: Plain,
    watcher: Option<Arc<dyn TableWatcher>>,
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
            watcher: None,
            granule: PhantomData,
        }
    }

    /// The same, with somebody who is told of it.
    #[cfg(all(feature = "model", not(loom)))]
    pub(crate) fn watched(pages: usize, watcher: Arc<dyn TableWatcher>) -> Self {
        let memory = Self::new(pages);
        let watched = memory.pages.iter().enumerate().map(|(index, page)| {
            let words = page.entries.as_ptr_range();
            WatchedPage {
                table: memory.pa(index),
                words: words.start.addr()..words.end.addr(),
                lock: page.meta.lock_address(),
            }
        });
        watcher.watch(watched.collect());
        Self { watcher: Some(watcher), ..memory }
    }

    /// Lets `successes` more allocations succeed and the one after fail.
    pub fn fail_after(&self, successes: u64) {
        self.failing_in.store(successes, Ordering::Relaxed);
    }

    /// Pages given out and not given back.
    pub fn live(&self) -> usize {
        self.pages.len() - self.free.lock().len()
    }

    /// The hardware's atomic update of a descriptor to what `change` makes of it, if it makes something; what it made.
    #[cfg(all(feature = "model", not(loom)))]
    pub(crate) fn update(&self, table: Pa, index: usize, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let word = self.pages.get(self.index(table)?)?.entries.get(index)?;
        probe::unwatched(|| {
            let old = word.load(Ordering::Acquire);
            let new = change(old)?;
            word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok().then_some(new)
        })
    }

    fn index(&self, table: Pa) -> Option<usize> {
        let index = (table.raw().checked_sub(self.base.raw())? >> G::PAGE_SHIFT) as usize;
        (index < self.pages.len() && table.is_aligned(G::PAGE_SHIFT)).then_some(index)
    }

    fn pa(&self, index: usize) -> Pa {
        self.base.offset((index as u64) << G::PAGE_SHIFT)
    }

    /// Nobody is told of these stores: they are part of giving and taking back.
    fn fill(&self, first: usize, order: u32, value: u64) {
        probe::unwatched(|| self.fill_unwatched(first, order, value));
    }

    fn fill_unwatched(&self, first: usize, order: u32, value: u64) {
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
        if let Some(watcher) = &self.watcher {
            watcher.given(self.pa(first), order);
        }
        Ok(self.pa(first))
    }

    unsafe fn free(&self, table: Pa, order: u32) {
        let Some(first) = self.index(table) else { return };
        if let Some(watcher) = &self.watcher {
            watcher.freed(table, order);
        }
        self.fill(first, order, POISON);
        self.free.lock().extend((first..first + (1 << order)).rev());
    }

    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>> {
        let page = self.pages.get(self.index(table)?)?;
        Some(TablePage { entries: &page.entries, meta: &page.meta })
    }
}
