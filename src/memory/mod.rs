//! Table memory: where table pages come from and go back to.
//!
//! [`TableMemory`] is the seam; [`Pool`] is a ready implementation over regions the embedder gives. The only code that makes a
//! reference out of a table's address is an implementation of this trait.

mod groups;
mod meta;
#[cfg(any(test, loom, feature = "model"))]
pub(crate) mod model;
mod pool;
mod reserve;
mod spare;

pub(crate) use groups::Groups;
pub(crate) use meta::{Guarded, Leaving, Place, Stripped};
pub use meta::{TableMeta, TableState, TreeId};
pub use pool::{Pool, PoolRegion, PoolUse};
pub(crate) use reserve::Reserve;
pub(crate) use spare::{SpareTable, Spares};

use core::fmt;

use crate::addr::Pa;
use crate::geometry::granule::Granule;
use crate::sync::Word;

/// A table page and what is known of it.
#[derive(Clone, Copy)]
pub struct TablePage<'m> {
    /// The descriptors. Only the library stores to them.
    pub entries: &'m [Word],
    /// The metadata.
    pub meta: &'m TableMeta,
}

/// There is no table page left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OutOfTables;

impl fmt::Display for OutOfTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no table page left")
    }
}

impl core::error::Error for OutOfTables {}

/// Where table pages come from and go back to. Any call of `alloc` and `alloc_root` may fail.
///
/// `alloc`, `alloc_root` and `free` are never called with a table's lock held; `table` may be.
///
/// # Safety
/// An implementation promises:
/// - A page from `alloc` is `1 << G::PAGE_SHIFT` bytes at a multiple of that, one from `alloc_root(order)` is `1 << order`
///   such pages at a multiple of their size, all zero; they belong to the caller until he gives them back.
/// - [`Self::table`] answers `Some` for an address of this memory's table pages and `None` for all others, always the
///   same page, with `G::ENTRIES` descriptors, for as long as the memory exists. A page that was freed may hold anything,
///   but nothing may access it other than atomically while such a reference can exist, that is, until it was given out
///   again or the memory is gone.
/// - The metadata of a page lives as long as the memory, and nothing else uses it but for [`TableMeta::link`] while the page
///   is free.
pub unsafe trait TableMemory: Sync {
    /// The size of the tables.
    type Granule: Granule;

    /// A zeroed table page.
    ///
    /// # Errors
    /// [`OutOfTables`].
    fn alloc(&self) -> Result<Pa, OutOfTables>;

    /// `1 << order` contiguous zeroed table pages, aligned to their whole size: concatenated roots (`order` up to 4).
    ///
    /// # Errors
    /// [`OutOfTables`].
    fn alloc_root(&self, order: u32) -> Result<Pa, OutOfTables>;

    /// Takes back what `alloc` (`order` 0) or `alloc_root` gave.
    ///
    /// # Safety
    /// Nobody uses the pages any more: they are linked nowhere, in no TLB, and no reader is in them.
    unsafe fn free(&self, table: Pa, order: u32);

    /// The table page at `table`, if there is one.
    ///
    /// # Safety
    /// The caller stores nothing to a page that is linked: what it says becomes a guest's memory.
    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>>;
}

/// What the library does with table memory, by its own rules.
pub(crate) trait OwnTables: TableMemory {
    /// The table page at `table`, if there is one.
    #[inline(always)]
    fn page(&self, table: Pa) -> Option<TablePage<'_>> {
        // SAFETY: the library stores to a page through `walk::Locked` alone, and to one that is not linked before it links it.
        unsafe { self.table(table) }
    }

    /// Gives back pages that a spare's owner never linked, that have been through all of the reclaimer's steps, or whose tree is
    /// being torn down.
    fn give_back(&self, table: Pa, order: u32) {
        // SAFETY: those are the three callers, and each has made sure of it: `SpareTable` owns its page, `Batch<Quiesced>` can
        // only be made by the steps before, and teardown owns the tree and has invalidated it.
        unsafe { self.free(table, order) }
    }
}

impl<M: TableMemory> OwnTables for M {}
