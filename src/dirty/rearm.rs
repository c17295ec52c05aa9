//! Rearm: the read-write half of a harvest. Cleans exactly the pages of a bitmap, in chunks with one flush each.
//!
//! One table's lock at a time, for that table's pages of the bitmap only. A page that is being removed is left alone: its
//! remover tells the side log. After the flush each table is locked once more, and what is clean in it is published, for scans to
//! skip.

use core::fmt;

use arrayvec::ArrayVec;

use super::log::bits_of_word;
use super::scan::check_bitmap;
use super::{DirtyLog, Tracking};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::Arch;
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::covers;
use crate::tlb::Gather;
use crate::walk::{Cleaned, Locked, Reserved, Table, Visit, publish_clean};

/// Leaf tables' worth of address space cleaned before a flush.
const CHUNK_TABLES: usize = 64;

/// Why a bitmap was not rearmed, or not all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RearmError {
    /// Nothing was changed.
    Argument(ArgumentError),
    /// The bitmap has fewer bits than the range has pages; nothing was changed.
    BitmapTooShort {
        /// The words it takes.
        needed: u64,
    },
    /// The tree is corrupt. What came before is clean and must be copied all the same.
    Corrupt(Corrupt),
}

impl fmt::Display for RearmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::BitmapTooShort { needed } => write!(f, "the bitmap must have {needed} words at least"),
            Self::Corrupt(corrupt) => write!(f, "the tree is corrupt at {}", corrupt.ipa),
        }
    }
}

impl core::error::Error for RearmError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Corrupt(corrupt) => Some(corrupt),
            _ => None,
        }
    }
}

/// The pages of the bitmap are clean, in the tables and in all TLBs: from now on they may be copied.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use = "the pages that were cleaned have to be copied"]
pub struct Rearmed {
    /// Pages that were dirty and are clean now.
    pub cleaned: u64,
}

impl<'h, A: Arch, M: TableMemory> DirtyLog<'_, 'h, A, M> {
    /// Cleans the pages of `range` whose bit is set in `bitmap`, as [`Self::scan`] set them, and no others. A block is cleaned
    /// only if the bitmap covers all of it; else it stays dirty, and is in the next harvest again.
    ///
    /// Locks one table at a time; invalidates once per chunk of 64 tables in which anything is to be cleaned. With
    /// [`Tracking::Adaptive`] tables in which the scan has found nothing dirty are write-protected again.
    ///
    /// # Errors
    /// See [`RearmError`].
    pub fn rearm(&mut self, reader: &Reader<'_>, range: IpaRange, bitmap: &[u64]) -> Result<Rearmed, RearmError> {
        check_bitmap::<M::Granule>(range, bitmap.len()).map_err(|needed| RearmError::BitmapTooShort { needed })?;
        self.stage2.check(reader, range).map_err(RearmError::Argument)?;
        self.stage2.check_logged(range).map_err(RearmError::Argument)?;
        let harvest = Harvest::new::<M::Granule>(range.start(), bitmap);
        let idle = self.idle.filter(|_| self.tracking == Tracking::Adaptive).and_then(|idle| idle.intersection(range));
        let mut cleaned = 0;
        let mut rest = Some(range);
        while let Some(left) = rest {
            // It ends where a table does.
            let tables =
                (M::Granule::entry_size(Level::LEAF) << M::Granule::INDEX_BITS).saturating_mul(CHUNK_TABLES as u64 - 1);
            let last = M::Granule::table_last(Ipa::new(left.start().raw().saturating_add(tables)), Level::LEAF);
            let chunk = IpaRange::inclusive(left.start(), last.min(left.last())).unwrap_or(left);
            let has_idle = idle.is_some_and(|idle| idle.intersection(chunk).is_some());
            if has_idle || harvest.any(chunk) {
                cleaned += self.rearm_chunk(reader, chunk, &harvest, has_idle).map_err(RearmError::Corrupt)?;
            }
            rest = chunk.last().checked_add(1).and_then(|next| left.starting_at(next));
        }
        if self.idle.is_some_and(|idle| range.contains(idle.start()) && range.contains(idle.last())) {
            self.idle = None;
        }
        self.progress.cleaned += cleaned;
        Ok(Rearmed { cleaned })
    }

    /// Whether all that is logged of a table is shown.
    fn has_all_logged(&self, visit: &Visit<'_>) -> bool {
        let (at, level) = (visit.range.start(), visit.table.level);
        let table = IpaRange::inclusive(M::Granule::table_base(at, level), M::Granule::table_last(at, level));
        let logged = table.and_then(|table| self.stage2.logged_range()?.intersection(table));
        logged.is_some_and(|logged| visit.range.contains(logged.start()) && visit.range.contains(logged.last()))
    }

    /// One chunk: clean, flush, publish what is clean.
    fn rearm_chunk(
        &self,
        reader: &Reader<'_>,
        chunk: IpaRange,
        harvest: &Harvest<'_>,
        has_idle: bool,
    ) -> Result<u64, Corrupt> {
        let stage2 = self.stage2;
        if stage2.log.is_noted() {
            harvest.for_each_word(chunk, |at, bits| stage2.log.clear(at, bits, M::Granule::PAGE_SHIFT));
        }
        let mut gather = Gather::new(&stage2.tree, reader);
        let (mut cleaned, mut stripped) = (0, false);
        let mut tables: ArrayVec<Pa, CHUNK_TABLES> = ArrayVec::new_const();
        let may_be_dirty = |table: &Table<'_>| !table.may_be_dirty().is_empty();
        let concerned = |visit: &Visit<'_>| has_idle || harvest.any(visit.range);
        let result = stage2.for_each_locked_if(reader, chunk, may_be_dirty, concerned, |locked, visit| {
            // More there are not, of a chunk's leaf tables; blocks' are published by another harvest at the latest.
            let _ = tables.try_push(visit.table.pa);
            if has_idle && !harvest.any(visit.range) {
                if self.has_all_logged(visit) && locked.disarm() {
                    stripped = true;
                    gather.leaves(visit.range, locked.level());
                }
                return Ok(());
            }
            let done = clean_table::<A, M>(locked, visit, harvest, self.tracking, &mut gather)?;
            cleaned += (done.count as u64) << (M::Granule::shift(locked.level()) - M::Granule::PAGE_SHIFT);
            stripped |= locked.expect_flush();
            Ok(())
        });
        // Also if the tree turned out corrupt: what was cleaned is flushed.
        let flushed = if stripped { gather.flush_with_others() } else { gather.flush() };
        for table in tables {
            publish_clean(&stage2.tree, reader, table, &flushed);
        }
        result.map(|()| cleaned).map_err(|(_, corrupt): (_, Corrupt)| corrupt)
    }
}

/// Cleans what the harvest has of one table.
#[inline(always)]
fn clean_table<A: Arch, M: TableMemory>(
    locked: &mut Locked<'_, '_, A, M>,
    visit: &Visit<'_>,
    harvest: &Harvest<'_>,
    tracking: Tracking,
    gather: &mut Gather<'_, '_, A, M>,
) -> Result<Cleaned, (Ipa, Corrupt)> {
    let level = locked.level();
    let groups = locked.table().may_be_dirty().and(visit.groups::<M::Granule>());
    let base = M::Granule::table_base(visit.range.start(), level);
    let shift = M::Granule::shift(level);
    let cleaned = if level == Level::LEAF {
        // The bit of the table's first page: before the harvest's first, perhaps.
        let first = (base.raw() >> shift).wrapping_sub(harvest.start.raw() >> shift);
        locked
            .clean_leaves(visit, groups, tracking.at_rearm(), |index| harvest.bits_at(first.wrapping_add(index as u64)))
    } else {
        locked.clean_leaves(visit, groups, tracking.at_rearm(), |index| {
            let blocks = (0..64u64).filter(|nth| visit.shown::<M::Granule>(index) >> nth & 1 == 1);
            let whole = blocks.filter(|nth| {
                let ipa = base.offset((index as u64 + nth) << shift);
                covers::<M::Granule>(visit.range, ipa, level) && harvest.all(ipa, M::Granule::entry_last(ipa, level))
            });
            whole.fold(0, |bits, nth| bits | 1 << nth)
        })
    };
    let ipa_of = |index: usize| base.offset((index as u64) << shift);
    let cleaned = cleaned.map_err(|Reserved(index)| {
        gather.everything();
        (ipa_of(index), Corrupt { ipa: ipa_of(index), level })
    })?;
    // From the first to the last that was changed: a few pages of a table are a few TLBIs.
    if cleaned.end != 0
        && let Some(last) = ipa_of(cleaned.end).raw().checked_sub(1)
        && let Some(span) = IpaRange::inclusive(ipa_of(cleaned.first), Ipa::new(last))
    {
        gather.leaves(span, level);
    }
    Ok(cleaned)
}

/// A bitmap over the pages from `start` on.
pub(super) struct Harvest<'b> {
    start: Ipa,
    bitmap: &'b [u64],
    page_shift: u32,
}

impl<'b> Harvest<'b> {
    pub(super) fn new<G: Granule>(start: Ipa, bitmap: &'b [u64]) -> Self {
        Self { start, bitmap, page_shift: G::PAGE_SHIFT }
    }

    fn page(&self, ipa: Ipa) -> u64 {
        (ipa.raw() - self.start.raw()) >> self.page_shift
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        self.bitmap.get(index).copied().unwrap_or(0)
    }

    /// 64 bits from that of `page` on; none below the first.
    #[inline(always)]
    fn bits_at(&self, page: u64) -> u64 {
        // Below the first page it is negative.
        let (index, shift) = ((page.cast_signed() >> 6) as usize, page % 64);
        let above = if shift == 0 { 0 } else { self.word(index.wrapping_add(1)) << (64 - shift) };
        self.word(index) >> shift | above
    }

    /// Whether any page of `range` is in it.
    #[inline(always)]
    fn any(&self, range: IpaRange) -> bool {
        let (first, last) = (self.page(range.start()), self.page(range.last()));
        let (first_word, last_word) = ((first / 64) as usize, (last / 64) as usize);
        if self.word(first_word) & bits_of_word(first / 64, first, last) != 0
            || self.word(last_word) & bits_of_word(last / 64, first, last) != 0
        {
            return true;
        }
        let (words, rest) = self.bitmap.get(first_word + 1..last_word).unwrap_or(&[]).as_chunks::<8>();
        let is_any = |words: &[u64]| words.iter().fold(0, |any, word| any | word) != 0;
        words.iter().any(|words| is_any(words)) || is_any(rest)
    }

    /// Whether all pages from that of `first` to that of `last` are in it.
    fn all(&self, first: Ipa, last: Ipa) -> bool {
        let (first, last) = (self.page(first), self.page(last));
        (first / 64..=last / 64).all(|index| {
            let bits = bits_of_word(index, first, last);
            self.word(index as usize) & bits == bits
        })
    }

    /// Calls `found` with the page of a word's first bit, and its bits, for each word that has any in `range`.
    pub(super) fn for_each_word(&self, range: IpaRange, mut found: impl FnMut(Ipa, u64)) {
        let (first, last) = (self.page(range.start()), self.page(range.last()));
        for index in first / 64..=last / 64 {
            let bits = self.word(index as usize) & bits_of_word(index, first, last);
            if bits != 0 {
                found(self.start.offset((index * 64) << self.page_shift), bits);
            }
        }
    }
}
