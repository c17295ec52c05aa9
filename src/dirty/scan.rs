//! Scan: the read-only half of a harvest. No lock, no store but to the caller's bitmap, and no fault waits for it.

use core::fmt;

use super::DirtyLog;
use crate::addr::{IpaRange, Level};
use crate::arch::Arch;
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::sync::{Ordering, fence};
use crate::walk::{Reserved, Table, Visit};

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
    /// Returns how many it set.
    ///
    /// Locks nothing, invalidates nothing. Grows with the live tables, and in those with what may be dirty.
    ///
    /// # Errors
    /// See [`ScanError`].
    pub fn scan(&mut self, reader: &Reader<'_>, range: IpaRange, bitmap: &mut [u64]) -> Result<u64, ScanError> {
        check_bitmap::<M::Granule>(range, bitmap.len()).map_err(|needed| ScanError::BitmapTooShort { needed })?;
        self.stage2.check(reader, range).map_err(ScanError::Argument)?;
        self.stage2.check_logged(range).map_err(ScanError::Argument)?;
        let mut pages = Pages::new::<M::Granule>(range, bitmap);
        let scanned = self.scan_tables(reader, range, &mut pages).map_err(ScanError::Corrupt);
        self.scan_log(range, &mut pages);
        self.progress.found += pages.found;
        scanned.map(|()| pages.found)
    }

    /// Entries first, the side log then: whoever removes a dirty entry writes the log before.
    fn scan_log(&self, range: IpaRange, pages: &mut Pages<'_>) {
        fence(Ordering::Acquire);
        self.stage2.log.for_each(range, M::Granule::PAGE_SHIFT, |ipa, bits| {
            let at = pages.page(ipa.raw() >> M::Granule::PAGE_SHIFT);
            pages.add(at, bits);
        });
    }

    fn scan_tables(&mut self, reader: &Reader<'_>, range: IpaRange, pages: &mut Pages<'_>) -> Result<(), Corrupt> {
        let tree = &self.stage2.tree;
        let mut scanned = 0;
        let mut idle: Option<IpaRange> = self.idle;
        let mut corrupt = Ok(());
        let wanted = |table: &Table<'_>| !table.may_be_dirty().is_empty();
        let passed = self.stage2.read_only(reader).visit(range, wanted, |visit| {
            let level = visit.table.level;
            scanned += 1;
            let mut is_idle = true;
            let found = if level == Level::LEAF {
                let first = pages.page(visit.ipa_of::<M::Granule>(0).raw() >> M::Granule::PAGE_SHIFT);
                // By value, so that it is in registers.
                let mut some = Pages { bitmap: &mut *pages.bitmap, ..*pages };
                let done = visit.for_each_dirty(tree, |index, bits| {
                    is_idle = false;
                    some.add(first.wrapping_add(index as u64), bits);
                });
                pages.found = some.found;
                done
            } else {
                visit.for_each_dirty(tree, |index, bits| {
                    is_idle = false;
                    note_blocks::<M::Granule>(visit, index, bits, range, pages);
                })
            };
            if is_idle {
                idle = IpaRange::inclusive(idle.map_or(visit.range.start(), |idle| idle.start()), visit.range.last());
            }
            corrupt = found.map_err(|Reserved(index)| Corrupt { ipa: visit.ipa_of::<M::Granule>(index), level });
            corrupt.is_ok()
        });
        self.idle = idle;
        self.progress.tables_scanned += scanned;
        self.progress.tables_skipped += passed?;
        corrupt
    }
}

/// Adds the pages of the blocks that have a bit in `bits`, from that at `index` on.
fn note_blocks<G: Granule>(visit: &Visit<'_>, index: usize, bits: u64, range: IpaRange, pages: &mut Pages<'_>) {
    let level = visit.table.level;
    let first = visit.ipa_of::<G>(index);
    for nth in (0..64).filter(|nth| bits >> nth & 1 == 1) {
        let block = first.offset(nth << G::shift(level));
        let part = IpaRange::inclusive(block, G::entry_last(block, level)).and_then(|block| block.intersection(range));
        if let Some(part) = part {
            pages.add_run(part.start().raw() >> G::PAGE_SHIFT, part.bytes() >> G::PAGE_SHIFT);
        }
    }
}

/// The caller's bitmap.
struct Pages<'b> {
    bitmap: &'b mut [u64],
    /// The page of the first bit.
    first: u64,
    /// Bits that were set and had not been.
    found: u64,
}

impl<'b> Pages<'b> {
    fn new<G: Granule>(range: IpaRange, bitmap: &'b mut [u64]) -> Self {
        Self { bitmap, first: range.start().raw() >> G::PAGE_SHIFT, found: 0 }
    }

    /// The place of `page` in the bitmap; negative if it is before the first.
    #[inline(always)]
    fn page(&self, page: u64) -> u64 {
        page.wrapping_sub(self.first)
    }

    /// Sets the bits of the pages that have one in `bits`, from place `at` on. Those before the first have none.
    #[inline(always)]
    fn add(&mut self, at: u64, bits: u64) {
        let (index, shift) = ((at.cast_signed() >> 6) as usize, at % 64);
        self.set(index, bits << shift);
        if shift != 0 {
            self.set(index.wrapping_add(1), bits >> (64 - shift));
        }
    }

    #[inline(always)]
    fn set(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.bitmap.get_mut(index) {
            let new = bits & !*word;
            *word |= bits;
            self.found += count(new);
        }
    }

    fn add_run(&mut self, page: u64, count: u64) {
        let (mut at, mut count) = (self.page(page), count);
        while count >= 64 {
            self.add(at, u64::MAX);
            at += 64;
            count -= 64;
        }
        self.add(at, (1 << count) - 1);
    }
}

/// How many bits are set. Most often it is one or all: to count takes many instructions.
#[inline(always)]
fn count(bits: u64) -> u64 {
    match bits {
        u64::MAX => 64,
        _ if bits & bits.wrapping_sub(1) == 0 => u64::from(bits != 0),
        _ => u64::from(bits.count_ones()),
    }
}

/// Whether a bitmap of so many words has a bit for each page of `range`; else how many words it takes.
pub(super) fn check_bitmap<G: Granule>(range: IpaRange, words: usize) -> Result<(), u64> {
    let needed = (range.bytes() >> G::PAGE_SHIFT).div_ceil(64);
    if (words as u64) < needed { Err(needed) } else { Ok(()) }
}
