//! Table memory made of a constructed array: loom's atomics cannot be laid over raw pages.

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
#[cfg(all(feature = "model", not(loom)))]
use crate::sync::probe;
use crate::sync::{self, Mutex, Word};

/// What a freed page is filled with: reserved at every level, so a walk that meets it has looked at a freed table.
pub const POISON: u64 = 0xdead_0000_0000_0004;

/// Who is told what becomes of the pages of a [`ModelMemory`].
pub(crate) trait TableWatcher: Send + Sync {
    /// This is the memory.
    #[cfg(all(feature = "model", not(loom)))]
    fn watch(&self, memory: WatchedMemory);
    /// `1 << order` pages from `table` on were given out, zeroed.
    fn given(&self, table: Pa, order: u32);
    /// They are given back.
    fn freed(&self, table: Pa, order: u32);
}

/// Where the modelled memory keeps its pages.
#[cfg(all(feature = "model", not(loom)))]
pub(crate) struct WatchedMemory {
    base: Pa,
    page_shift: u32,
    index_bits: u32,
    /// The addresses of the words of all pages, page after page.
    words: Range<usize>,
    /// The address of each page's lock, and the page.
    pub(crate) locks: Vec<(usize, Pa)>,
}

#[cfg(all(feature = "model", not(loom)))]
impl WatchedMemory {
    /// The table that has the word at this address, and its place there.
    pub(crate) fn word(&self, address: usize) -> Option<(Pa, usize)> {
        let nth = self.words.contains(&address).then(|| (address - self.words.start) / size_of::<Word>())?;
        let table = self.base.offset(((nth >> self.index_bits) as u64) << self.page_shift);
        Some((table, nth & ((1 << self.index_bits) - 1)))
    }
}

/// Table memory of a fixed number of pages, on a host.
pub struct ModelMemory<G> {
    /// Page after page.
    words: Box<[Word]>,
    metas: Box<[TableMeta]>,
    base: Pa,
    /// Indices of free pages.
    free: Mutex<Vec<usize>>,
    /// Allocations until the next one fails; `u64::MAX` for never.
    failing_in: Plain,
    watcher: Option<Arc<dyn TableWatcher>>,
    granule: PhantomData<G>,
}

impl<G: Granule> ModelMemory<G> {
    /// Memory of `pages` table pages.
    pub fn new(pages: usize) -> Self {
        Self {
            words: (0..pages * G::ENTRIES).map(|_| Word::new(POISON)).collect(),
            metas: (0..pages).map(|_| TableMeta::new()).collect(),
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
        let words = memory.words.as_ptr_range();
        let lock = |(index, meta): (usize, &TableMeta)| (meta.lock_address(), memory.pa(index));
        watcher.watch(WatchedMemory {
            base: memory.base,
            page_shift: G::PAGE_SHIFT,
            index_bits: G::INDEX_BITS,
            words: words.start.addr()..words.end.addr(),
            locks: memory.metas.iter().enumerate().map(lock).collect(),
        });
        Self { watcher: Some(watcher), ..memory }
    }

    /// Lets `successes` more allocations succeed and the one after fail.
    pub fn fail_after(&self, successes: u64) {
        self.failing_in.store(successes, Ordering::Relaxed);
    }

    /// Pages given out and not given back.
    pub fn live(&self) -> usize {
        self.metas.len() - self.free.lock().len()
    }

    /// The hardware's atomic update of a descriptor to what `change` makes of it, if it makes something; what it made.
    #[cfg(all(feature = "model", not(loom)))]
    pub(crate) fn update(&self, table: Pa, index: usize, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let word = self.entries(self.index(table)?).get(index)?;
        probe::unwatched(|| {
            let old = word.load(Ordering::Acquire);
            let new = change(old)?;
            word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok().then_some(new)
        })
    }

    fn index(&self, table: Pa) -> Option<usize> {
        let index = (table.raw().checked_sub(self.base.raw())? >> G::PAGE_SHIFT) as usize;
        (index < self.metas.len() && table.is_aligned(G::PAGE_SHIFT)).then_some(index)
    }

    fn pa(&self, index: usize) -> Pa {
        self.base.offset((index as u64) << G::PAGE_SHIFT)
    }

    fn entries(&self, index: usize) -> &[Word] {
        &self.words[index * G::ENTRIES..][..G::ENTRIES]
    }

    /// Nobody is told of these stores: they are part of giving and taking back.
    fn fill(&self, first: usize, order: u32, value: u64) {
        let words = self.words.iter().skip(first * G::ENTRIES).take(G::ENTRIES << order);
        words.for_each(|word| sync::store_unwatched(word, value));
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
        let index = self.index(table)?;
        Some(TablePage { entries: self.entries(index), meta: self.metas.get(index)? })
    }
}
