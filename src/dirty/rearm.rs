//! Rearm: the read-write half of a harvest. Cleans exactly the pages of a bitmap, in chunks with one flush each.
//!
//! One table's lock at a time, for that table's pages of the bitmap only. A page that is being removed is left alone: its
//! remover tells the side log. After the flush each table is locked once more, and if nothing in it is dirty its flag is
//! cleared.

use core::fmt;

use super::DirtyLog;
use super::scan::check_bitmap;
use super::start::clear_flag_if_clean;
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Kind};
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::{covers, entries};
use crate::tlb::{Flushed, Gather};
use crate::walk::Visit;

/// Leaf tables' worth of address space cleaned before a flush.
const CHUNK_TABLES: u64 = 64;

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
    /// Locks one table at a time; invalidates once per chunk of 64 tables.
    ///
    /// # Errors
    /// See [`RearmError`].
    pub fn rearm(&mut self, reader: &Reader<'_>, range: IpaRange, bitmap: &[u64]) -> Result<Rearmed, RearmError> {
        check_bitmap::<M::Granule>(range, bitmap.len()).map_err(|needed| RearmError::BitmapTooShort { needed })?;
        self.stage2.check(reader, range).map_err(RearmError::Argument)?;
        self.stage2.check_logged(range).map_err(RearmError::Argument)?;
        let harvest = Harvest { start: range.start(), bitmap, page_shift: M::Granule::PAGE_SHIFT };
        let mut cleaned = 0;
        let mut rest = Some(range);
        while let Some(left) = rest {
            let bytes = (M::Granule::entry_size(Level::LEAF) * M::Granule::ENTRIES as u64).saturating_mul(CHUNK_TABLES);
            let last = left.start().raw().saturating_add(bytes - 1).min(left.last().raw());
            let chunk = IpaRange::inclusive(left.start(), Ipa::new(last)).unwrap_or(left);
            if harvest.any(chunk) {
                self.stage2.log_clear(&harvest, chunk);
                let (flushed, count) = self.clean(reader, chunk, &harvest).map_err(RearmError::Corrupt)?;
                cleaned += count;
                self.clear_flags(reader, chunk, &harvest, flushed).map_err(RearmError::Corrupt)?;
            }
            rest = chunk.last().checked_add(1).and_then(|next| left.starting_at(next));
        }
        Ok(Rearmed { cleaned })
    }

    fn clean(&self, reader: &Reader<'_>, chunk: IpaRange, harvest: &Harvest<'_>) -> Result<(Flushed, u64), Corrupt> {
        let mut gather = Gather::new(&self.stage2.tree, reader);
        let mut cleaned = 0;
        let wanted = |visit: &Visit<'_>| visit.table.may_be_dirty() && harvest.any(visit.range);
        let result = self.stage2.for_each_locked_if(reader, chunk, wanted, |locked, part, first, count| {
            let level = locked.level();
            let mut span: Option<IpaRange> = None;
            let mut corrupt = Ok(());
            for (index, ipa) in entries::<M::Granule>(part.start(), level, first, count) {
                let leaf = locked.read(index);
                if !leaf.is_dirty() {
                    continue;
                }
                match locked.kind(index) {
                    Kind::Page(_) | Kind::Block(_) => {}
                    Kind::Reserved => {
                        corrupt = Err((ipa, Corrupt { ipa, level }));
                        break;
                    }
                    _ => continue,
                }
                let last = M::Granule::entry_last(ipa, level);
                if covers::<M::Granule>(part, ipa, level) && harvest.all(ipa, last) {
                    locked.replace_leaf(index, Descriptor::with_clean);
                    cleaned += M::Granule::entry_size(level) >> M::Granule::PAGE_SHIFT;
                    span = IpaRange::inclusive(span.map_or(ipa, IpaRange::start), last);
                }
            }
            // From the first to the last that was cleaned: a few pages of a table are a few TLBIs.
            if let Some(span) = span {
                gather.leaves(span, level);
            }
            corrupt
        });
        // Also if the tree turned out corrupt: what was cleaned is flushed.
        let flushed = gather.flush();
        result.map_err(|(_, corrupt): (_, Corrupt)| corrupt)?;
        Ok((flushed, cleaned))
    }

    fn clear_flags(
        &self,
        reader: &Reader<'_>,
        chunk: IpaRange,
        harvest: &Harvest<'_>,
        _after: Flushed,
    ) -> Result<(), Corrupt> {
        let wanted = |visit: &Visit<'_>| visit.table.may_be_dirty() && harvest.any(visit.range);
        self.stage2
            .for_each_locked_if(reader, chunk, wanted, |locked, _, _, _| {
                clear_flag_if_clean(locked);
                Ok(())
            })
            .map_err(|(_, corrupt): (_, Corrupt)| corrupt)
    }
}

impl<A: Arch, M: TableMemory> crate::stage2::Stage2<'_, A, M> {
    /// Takes the pages of the harvest out of the side log.
    fn log_clear(&self, harvest: &Harvest<'_>, chunk: IpaRange) {
        harvest.for_each(chunk, |ipa| self.log.clear(ipa, M::Granule::PAGE_SHIFT));
    }
}

/// A bitmap over the pages from `start` on.
struct Harvest<'b> {
    start: Ipa,
    bitmap: &'b [u64],
    page_shift: u32,
}

impl Harvest<'_> {
    fn page(&self, ipa: Ipa) -> u64 {
        (ipa.raw() - self.start.raw()) >> self.page_shift
    }

    /// The bits of word `index` that belong to the pages `first..=last`.
    fn word(&self, index: u64, first: u64, last: u64) -> u64 {
        let mut word = self.bitmap.get(index as usize).copied().unwrap_or(0);
        if index == first / 64 {
            word &= u64::MAX << (first % 64);
        }
        if index == last / 64 {
            word &= u64::MAX >> (63 - last % 64);
        }
        word
    }

    /// Whether any page of `range` is in it.
    fn any(&self, range: IpaRange) -> bool {
        let (first, last) = (self.page(range.start()), self.page(range.last()));
        (first / 64..=last / 64).any(|index| self.word(index, first, last) != 0)
    }

    /// Whether all pages from that of `first` to that of `last` are in it.
    fn all(&self, first: Ipa, last: Ipa) -> bool {
        let (first, last) = (self.page(first.align_down(self.page_shift)), self.page(last));
        (first..=last)
            .all(|page| self.bitmap.get((page / 64) as usize).is_some_and(|word| word & 1 << (page % 64) != 0))
    }

    fn for_each(&self, range: IpaRange, mut found: impl FnMut(Ipa)) {
        let (first, last) = (self.page(range.start()), self.page(range.last()));
        for index in first / 64..=last / 64 {
            let mut word = self.word(index, first, last);
            while word != 0 {
                found(self.start.offset((index * 64 + u64::from(word.trailing_zeros())) << self.page_shift));
                word &= word - 1;
            }
        }
    }
}
