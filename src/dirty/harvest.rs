//! Harvests in pieces: as runs, within a budget, and given back.

use super::DirtyLog;
use super::rearm::Harvest;
use super::scan::{ScanError, check_bitmap};
use crate::addr::{Ipa, IpaRange};
use crate::arch::Arch;
use crate::error::ArgumentError;
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;

/// Words of the bitmap that [`DirtyLog::scan_runs`] has of its own.
const WORDS: usize = 64;

/// What a scan within a budget has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Scanned {
    /// The pages it has set bits for, or called back.
    pub found: u64,
    /// Where to go on; `None` if it is through.
    pub next: Option<Ipa>,
}

impl<A: Arch, M: TableMemory> DirtyLog<'_, '_, A, M> {
    /// As [`Self::scan`], but calls `found` with runs of dirty pages, from low to high addresses, neighbours joined. Stops once it has
    /// looked into `budget` tables, and says where to go on; no later than 4096 pages after that. At least that much it does.
    ///
    /// Locks nothing, invalidates nothing. What it has found is cleaned, later, by a [`Self::rearm`] with a bitmap of those runs.
    ///
    /// # Errors
    /// See [`ScanError`]; what `found` was called with is dirty all the same.
    pub fn scan_runs(
        &mut self,
        reader: &Reader<'_>,
        range: IpaRange,
        budget: u32,
        mut found: impl FnMut(IpaRange),
    ) -> Result<Scanned, ScanError> {
        let shift = M::Granule::PAGE_SHIFT;
        let before = self.progress;
        let mut run: Option<IpaRange> = None;
        let mut rest = Some(range);
        while let Some(left) = rest {
            if self.progress.tables_scanned - before.tables_scanned > u64::from(budget) {
                break;
            }
            let last = left.start().raw().saturating_add(((WORDS as u64 * 64) << shift) - 1);
            let piece = IpaRange::inclusive(left.start(), Ipa::new(last).min(left.last())).unwrap_or(left);
            let mut bitmap = [0; WORDS];
            self.scan(reader, piece, &mut bitmap)?;
            each_run(&bitmap, |first, count| {
                let start = piece.start().offset(first << shift);
                let Some(next) = IpaRange::new(start, count << shift) else { return };
                match run {
                    Some(before) if before.last().checked_add(1) == Some(start) => {
                        run = IpaRange::inclusive(before.start(), next.last());
                    }
                    Some(before) => {
                        found(before);
                        run = Some(next);
                    }
                    None => run = Some(next),
                }
            });
            rest = piece.last().checked_add(1).and_then(|next| left.starting_at(next));
        }
        if let Some(last) = run {
            found(last);
        }
        Ok(Scanned { found: self.progress.found - before.found, next: rest.map(IpaRange::start) })
    }

    /// Gives a harvest back: the pages of `range` whose bit is set in `bitmap` are dirty again, for the next scan. For what was rearmed
    /// and could not be copied, or sent.
    ///
    /// Locks nothing, invalidates nothing.
    ///
    /// # Errors
    /// As [`Self::scan`]; nothing was given back.
    pub fn merge(&mut self, range: IpaRange, bitmap: &[u64]) -> Result<(), ScanError> {
        check_bitmap::<M::Granule>(range, bitmap.len()).map_err(|needed| ScanError::BitmapTooShort { needed })?;
        let shift = M::Granule::PAGE_SHIFT;
        if !range.start().is_aligned(shift) {
            return Err(ScanError::Argument(ArgumentError::Misaligned(range)));
        }
        self.stage2.check_logged(range).map_err(ScanError::Argument)?;
        let harvest = Harvest::new::<M::Granule>(range.start(), bitmap);
        harvest.for_each_word(range, |at, bits| self.stage2.log.publish_bits(at, bits, shift));
        Ok(())
    }
}

/// Calls `found` with the first and the length of each run of bits.
fn each_run(bitmap: &[u64], mut found: impl FnMut(u64, u64)) {
    for (index, &word) in bitmap.iter().enumerate() {
        let mut left = word;
        while left != 0 {
            let first = left.trailing_zeros();
            let count = (left >> first).trailing_ones();
            found(index as u64 * 64 + u64::from(first), u64::from(count));
            let end = first + count;
            left = if end == 64 { 0 } else { left >> end << end };
        }
    }
}
