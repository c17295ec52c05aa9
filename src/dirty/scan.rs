//! Scan: the read-only half of a harvest. No lock, no store but to the caller's bitmap, and no fault waits for it.

use core::cell::Cell;
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
        let mut pages = Pages { first: range.start().raw() >> M::Granule::PAGE_SHIFT, ..Pages::new(bitmap) };
        let scanned = self.scan_tables(reader, range, &mut pages).map_err(ScanError::Corrupt);
        // Entries first, the side log then: whoever removes a dirty entry writes the log before.
        fence(Ordering::Acquire);
        self.stage2
            .log
            .for_each(range, M::Granule::PAGE_SHIFT, |ipa, bits| pages.add(ipa.raw() >> M::Granule::PAGE_SHIFT, bits));
        pages.finish();
        self.progress.found += pages.found;
        scanned.map(|()| pages.found)
    }

    fn scan_tables(&mut self, reader: &Reader<'_>, range: IpaRange, pages: &mut Pages<'_>) -> Result<(), Corrupt> {
        let tree = &self.stage2.tree;
        let skipped = Cell::new(0);
        let mut scanned = 0;
        let mut idle: Option<IpaRange> = self.idle;
        let mut corrupt = Ok(());
        let wanted = |table: &Table<'_>| {
            let is_clean = table.may_be_dirty().is_empty();
            skipped.set(skipped.get() + u64::from(is_clean));
            !is_clean
        };
        let visited = self.stage2.read_only(reader).visit(range, wanted, |visit| {
            let level = visit.table.level;
            scanned += 1;
            let mut is_idle = true;
            let found = visit.for_each_dirty(tree, |index, bits| {
                is_idle = false;
                note::<M::Granule>(&visit, index, bits, range, pages);
            });
            if is_idle {
                idle = IpaRange::inclusive(idle.map_or(visit.range.start(), |idle| idle.start()), visit.range.last());
            }
            corrupt = found.map_err(|Reserved(index)| Corrupt { ipa: visit.ipa_of::<M::Granule>(index), level });
            corrupt.is_ok()
        });
        self.idle = idle;
        self.progress.tables_scanned += scanned;
        self.progress.tables_skipped += skipped.get();
        visited.and(corrupt)
    }
}

/// The pages of the leaves that have a bit in `bits`, from that at `index` on.
#[inline(always)]
fn note<G: Granule>(visit: &Visit<'_>, index: usize, bits: u64, range: IpaRange, pages: &mut Pages<'_>) {
    let level = visit.table.level;
    let first = visit.ipa_of::<G>(index);
    if level == Level::LEAF {
        pages.add(first.raw() >> G::PAGE_SHIFT, bits);
        return;
    }
    for nth in (0..64).filter(|nth| bits >> nth & 1 == 1) {
        let block = first.offset(nth << G::shift(level));
        if let Some(part) =
            IpaRange::inclusive(block, G::entry_last(block, level)).and_then(|block| block.intersection(range))
        {
            pages.add_run(part.start().raw() >> G::PAGE_SHIFT, part.bytes() >> G::PAGE_SHIFT);
        }
    }
}

/// The caller's bitmap, in which bits are set a word at a time.
struct Pages<'b> {
    bitmap: &'b mut [u64],
    /// The page of the first bit.
    first: u64,
    /// The word that is being put together, and its number.
    word: u64,
    index: u64,
    /// Bits that were set and had not been.
    found: u64,
}

impl<'b> Pages<'b> {
    fn new(bitmap: &'b mut [u64]) -> Self {
        Self { bitmap, first: 0, word: 0, index: 0, found: 0 }
    }

    /// Adds the pages from `page` on that have a bit in `bits`. Those before the first page have none: they are shifted out.
    #[inline(always)]
    fn add(&mut self, page: u64, bits: u64) {
        let (at, bits) = match page.checked_sub(self.first) {
            Some(at) => (at, bits),
            None => (0, bits.checked_shr((self.first - page) as u32).unwrap_or(0)),
        };
        let (index, shift) = (at / 64, at % 64);
        if index != self.index {
            self.finish();
            self.index = index;
        }
        self.word |= bits << shift;
        if shift != 0 && bits >> (64 - shift) != 0 {
            self.finish();
            self.index = index + 1;
            self.word = bits >> (64 - shift);
        }
    }

    fn add_run(&mut self, page: u64, count: u64) {
        let (mut page, mut count) = (page, count);
        while count >= 64 {
            self.add(page, u64::MAX);
            page += 64;
            count -= 64;
        }
        self.add(page, (1 << count) - 1);
    }

    fn finish(&mut self) {
        if let Some(word) = self.bitmap.get_mut(self.index as usize)
            && self.word & !*word != 0
        {
            self.found += u64::from((self.word & !*word).count_ones());
            *word |= self.word;
        }
        self.word = 0;
    }
}

/// Whether a bitmap of so many words has a bit for each page of `range`; else how many words it takes.
pub(super) fn check_bitmap<G: Granule>(range: IpaRange, words: usize) -> Result<(), u64> {
    let needed = (range.bytes() >> G::PAGE_SHIFT).div_ceil(64);
    if (words as u64) < needed { Err(needed) } else { Ok(()) }
}
