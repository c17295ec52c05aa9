//! Scan: the read-only half of a harvest. No lock, no store but to the caller's bitmap, and no fault waits for it.

use core::fmt;

use super::DirtyLog;
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::descriptor::Kind;
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::entries;
use crate::sync::{Ordering, fence};
use crate::walk::{Tree, Visit};

/// Why a range was not scanned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ScanError {
    /// The bitmap is as it was.
    Argument(ArgumentError),
    /// The bitmap has fewer bits than the range has pages; it is as it was.
    BitmapTooShort {
        /// The words it takes.
        needed: u64,
    },
    /// The tree is corrupt; the bits of what came before are set. An entry that is not dirty is not looked at closely.
    Corrupt(Corrupt),
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::BitmapTooShort { needed } => write!(f, "the bitmap must have {needed} words at least"),
            Self::Corrupt(corrupt) => write!(f, "the tree is corrupt at {}", corrupt.ipa),
        }
    }
}

impl core::error::Error for ScanError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Corrupt(corrupt) => Some(corrupt),
            _ => None,
        }
    }
}

impl<'h, A: Arch, M: TableMemory> DirtyLog<'_, 'h, A, M> {
    /// Sets the bit of each page of `range` that is dirty, the range's first page being bit 0 of `bitmap[0]`; clears none.
    /// Returns how many pages it found.
    ///
    /// Locks nothing, invalidates nothing. Grows with the live tables that may be dirty.
    ///
    /// # Errors
    /// See [`ScanError`].
    pub fn scan(&mut self, reader: &Reader<'_>, range: IpaRange, bitmap: &mut [u64]) -> Result<u64, ScanError> {
        check_bitmap::<M::Granule>(range, bitmap.len()).map_err(|needed| ScanError::BitmapTooShort { needed })?;
        self.stage2.check(reader, range).map_err(ScanError::Argument)?;
        self.stage2.check_logged(range).map_err(ScanError::Argument)?;
        let mut found = 0;
        let mut note = |ipa: Ipa, pages: u64| {
            let first = (ipa.raw() - range.start().raw()) >> M::Granule::PAGE_SHIFT;
            for page in first..first + pages {
                if let Some(word) = bitmap.get_mut((page / 64) as usize) {
                    let mask = 1 << (page % 64);
                    found += u64::from(*word & mask == 0);
                    *word |= mask;
                }
            }
        };
        let mut corrupt = Ok(());
        self.stage2
            .read_only(reader)
            .visit(range, |visit| {
                if visit.table.may_be_dirty() {
                    corrupt = scan_table(&self.stage2.tree, &visit, &mut note);
                }
                corrupt.is_ok()
            })
            .and(corrupt)
            .map_err(ScanError::Corrupt)?;
        // Entries first, the side log then: whoever removes a dirty entry writes the log before.
        fence(Ordering::Acquire);
        self.stage2.log.for_each(range, M::Granule::PAGE_SHIFT, |ipa| note(ipa, 1));
        Ok(found)
    }
}

#[inline(always)]
fn scan_table<A: Arch, M: TableMemory>(
    tree: &Tree<'_, A, M>,
    visit: &Visit<'_>,
    note: &mut impl FnMut(Ipa, u64),
) -> Result<(), Corrupt> {
    let level = visit.table.level;
    for (index, ipa) in entries::<M::Granule>(visit.range.start(), level, visit.first, visit.count) {
        let entry = visit.table.read(index);
        if !entry.is_dirty() || !entry.is_leaf(level) {
            continue;
        }
        if tree.kind(entry, level) == Kind::Reserved {
            return Err(Corrupt { ipa, level });
        }
        if level == Level::LEAF {
            note(ipa, 1);
        } else {
            let last = M::Granule::entry_last(ipa, level).min(visit.range.last());
            note(ipa, (last.raw() - ipa.raw() + 1) >> M::Granule::PAGE_SHIFT);
        }
    }
    Ok(())
}

/// Whether a bitmap of so many words has a bit for each page of `range`; else how many words it takes.
pub(super) fn check_bitmap<G: Granule>(range: IpaRange, words: usize) -> Result<(), u64> {
    let needed = (range.bytes() >> G::PAGE_SHIFT).div_ceil(64);
    if (words as u64) < needed { Err(needed) } else { Ok(()) }
}
