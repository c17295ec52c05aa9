//! Dirty logging: which pages changed, harvested while everything goes on.
//!
//! The dirty state of what is mapped is in the tree: write permission *is* dirty ([`descriptor`](crate::descriptor)). Beside it
//! there is a *side log*, a bitmap the embedder gives, for dirty pages that are mapped no more and for stores that do not go
//! through the tree. A harvest is
//!
//! 1. [`DirtyLog::scan`]: read-only; the caller's bitmap gets a 1 for each page that was dirty at some instant of the scan;
//! 2. [`DirtyLog::rearm`] with that bitmap: exactly those pages are cleaned, and flushed;
//! 3. copy those pages, not earlier: [`Stage2::view`](crate::stage2::Stage2::view).
//!
//! A harvest may be taken in pieces ([`DirtyLog::scan_runs`]), and given back if it came to nothing ([`DirtyLog::merge`]).
//!
//! # Contract (rule 10)
//! A write is in this harvest or in the next, never in neither. A page is cleaned before it is copied, and no TLB lets a
//! store pass unseen after the flush in between: so a store is before the copy, and in it, or faults and makes the
//! page dirty again. Of a page that is unmapped the side log is told after the flush and before the entry goes; a scan reads
//! the entries first and the side log then.
//!
//! # Skipping
//! Each table knows in which groups of its entries something *may be dirty*: set, with release, under its lock before such an
//! entry is installed; cleared under its lock after a flush, if nothing there became dirty meanwhile. A scan reads that one word
//! and skips the rest of the table. If it reads a group as clean, a store that comes later is in the next harvest.

mod harvest;
mod log;
mod rearm;
mod scan;
mod start;
mod tracking;
mod view;

pub use harvest::Scanned;
pub use log::DirtyBitmap;
pub(crate) use log::LogState;
pub use rearm::{RearmError, Rearmed};
pub use scan::ScanError;
pub use start::{Initial, StartError};
pub use tracking::Tracking;
pub use view::FrameView;

use crate::addr::IpaRange;
use crate::arch::Arch;
use crate::memory::TableMemory;
use crate::stage2::Stage2;

/// A word of a bitmap that many CPUs may write: `core`'s 64-bit atomic (or loom's in a loom build).
pub use crate::sync::Word;

/// Whether a frame holds what its IPA read before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Content {
    /// It does not, or nobody knows: mapping it is a write, and the page begins dirty.
    New,
    /// It does: the page begins clean while logging is on.
    Unchanged,
}

impl Content {
    /// Whether a page with this content begins dirty.
    pub(crate) fn is_dirty(self) -> bool {
        self == Self::New
    }
}

/// What a log's scans and rearms have done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LogProgress {
    /// Pages that scans have found.
    pub found: u64,
    /// Pages that rearms have cleaned.
    pub cleaned: u64,
    /// Tables that scans have looked into.
    pub tables_scanned: u64,
    /// Tables that scans have passed over since nothing in them could be dirty.
    pub tables_skipped: u64,
}

/// The one harvester of a guest's dirty log, from [`Stage2::start_logging`](crate::stage2::Stage2::start_logging). Logging ends when
/// it is dropped. Should it be forgotten, logging stays on and nobody can harvest; nothing worse.
#[must_use = "logging ends when this is dropped"]
pub struct DirtyLog<'s, 'h, A: Arch, M: TableMemory> {
    stage2: &'s Stage2<'h, A, M>,
    tracking: Tracking,
    /// From the first to the last table in which a scan has found nothing dirty though something may have been.
    idle: Option<IpaRange>,
    progress: LogProgress,
}

impl<A: Arch, M: TableMemory> DirtyLog<'_, '_, A, M> {
    /// How stores are tracked.
    pub fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// What was done so far.
    pub fn progress(&self) -> LogProgress {
        self.progress
    }

    /// Ends logging. Pages that are clean stay so until they are written once more. What was split for the log is joined again by and
    /// by, as [`Stage2::reclaim`] is called.
    pub fn stop(self) {}
}

impl<A: Arch, M: TableMemory> Drop for DirtyLog<'_, '_, A, M> {
    fn drop(&mut self) {
        self.stage2.log.deactivate();
        self.stage2.rejoining.begin();
    }
}
