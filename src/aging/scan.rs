//! Scan: which pages are young. No lock, no store but to the caller's bitmap, no flush, and no fault waits for it.

use super::AgingError;
use super::bitmap::Bitmap;
use crate::addr::{IpaRange, Level};
use crate::arch::Arch;
use crate::error::{Corrupt, Stopped};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::Stage2;
use crate::walk::{Reserved, Visit};

impl<A: Arch, M: TableMemory> Stage2<'_, A, M> {
    /// Sets the bit of each page of `range` that is young, the range's first page being bit 0 of `bitmap[0]`; clears none. All pages of
    /// a young block are. Returns how many it set.
    ///
    /// Locks nothing, invalidates nothing. Grows with the live tables, all entries of which it looks at.
    ///
    /// # Errors
    /// [`AgingError::Argument`] and [`AgingError::TooShort`]: the bitmap is as it was. [`AgingError::Stopped`] with the prefix whose bits
    /// are set.
    pub fn scan_accessed(&self, reader: &Reader<'_>, range: IpaRange, bitmap: &mut [u64]) -> Result<u64, AgingError> {
        self.check(reader, range).map_err(AgingError::Argument)?;
        let mut pages = Bitmap::new::<M::Granule>(range, bitmap).map_err(|needed| AgingError::TooShort { needed })?;
        let mut corrupt = Ok(());
        let visited = self.read_only(reader).visit(
            range,
            |_| true,
            |visit| {
                let level = visit.table.level;
                let found = visit.for_each_age(&self.tree, |base, ages| {
                    if level == Level::LEAF {
                        pages.add(visit.ipa_of::<M::Granule>(base), ages.young);
                    } else {
                        blocks::<M::Granule>(visit, base, ages.young).for_each(|block| pages.add_range(block));
                    }
                });
                corrupt = found.map_err(|Reserved(index)| Corrupt { ipa: visit.ipa_of::<M::Granule>(index), level });
                corrupt.is_ok()
            },
        );
        match visited.and(corrupt) {
            Ok(()) => Ok(pages.found),
            Err(corrupt) => Err(AgingError::Stopped(Stopped::at(range, corrupt.ipa, corrupt))),
        }
    }
}

/// What a visit shows of the blocks that have a bit in `bits`, from that at `base` on.
pub(super) fn blocks<G: Granule>(visit: &Visit<'_>, base: usize, bits: u64) -> impl Iterator<Item = IpaRange> {
    let level = visit.table.level;
    (0..64).filter(move |nth| bits >> nth & 1 == 1).filter_map(move |nth| {
        let block = visit.ipa_of::<G>(base + nth);
        IpaRange::inclusive(block, G::entry_last(block, level))?.intersection(visit.range)
    })
}
