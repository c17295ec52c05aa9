//! Make old: takes the access flags of a range, one table's lock at a time, and at most one flush a call.
//!
//! A table is looked at without its lock first, and is not locked if nothing in it is young.

use super::AgingState;
use crate::addr::{Ipa, IpaRange};
use crate::arch::Arch;
use crate::error::{Corrupt, RangeError, Stopped};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::Stage2;
use crate::tlb::Gather;
use crate::walk::{Ages, Reserved, Visit};

/// Why a range was not made old, or not all of it: the prefix is.
pub type MakeOldError = RangeError<Corrupt>;

/// What becomes of the entries in TLBs that were cached while their pages were young.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Flush {
    /// They are invalidated, with all that was made old before and left there: after the call each access is noted. A flush takes
    /// all entries of the guest that are cached by virtual address, whatever the range.
    #[default]
    Now,
    /// They stay, until they are replaced or something else takes them: a page that is accessed through one looks old. As Linux's
    /// multi-gen LRU has it: right for pages that are cold for long enough.
    Later,
}

/// What a call has made old.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MadeOld {
    /// Pages that were young and are old.
    pub young: u64,
    /// Where to go on; `None` if it is through.
    pub next: Option<Ipa>,
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Makes the pages of `range` old. Stops once it has looked into `budget` tables, or at one that others are about to take out or
    /// to put in, and says where to go on. A block that the range covers a part of stays as it is.
    ///
    /// Locks one table at a time, if anything in it is young; allocates nothing; invalidates as `flush` says, once.
    ///
    /// # Errors
    /// [`MakeOldError::Argument`]: nothing was changed. [`MakeOldError::Stopped`] with the prefix that is old.
    pub fn make_old(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        budget: u32,
        flush: Flush,
    ) -> Result<MadeOld, MakeOldError> {
        self.check(reader, range).map_err(MakeOldError::Argument)?;
        let mut gather = Gather::new(&self.tree, reader);
        let mut left = budget.max(1);
        let goes_on = |_: &Visit<'_>| {
            let goes_on = left > 0;
            left = left.saturating_sub(1);
            goes_on
        };
        let made_old = self.make_tables_old(reader, range, &mut gather, goes_on, |_, _, _| {});
        // Also if the tree turned out corrupt.
        self.aging.end(gather, flush);
        made_old.map_err(|corrupt| MakeOldError::Stopped(Stopped::at(range, corrupt.ipa, corrupt)))
    }

    /// Makes old table by table, as long as one that comes next `goes_on`, and shows `found` what was there: the base of a word of
    /// entries, and theirs.
    pub(super) fn make_tables_old(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        gather: &mut Gather<'_, 'h, A, M>,
        mut goes_on: impl FnMut(&Visit<'_>) -> bool,
        mut found: impl FnMut(&Visit<'_>, usize, Ages),
    ) -> Result<MadeOld, Corrupt> {
        let walk = self.read_write(reader);
        let (mut young, mut result, mut next) = (0, Ok(()), None);
        let each = |visit: &Visit<'_>| {
            if !goes_on(visit) {
                next = Some(visit.range.start());
                return false;
            }
            let level = visit.table.level;
            let corrupt = |Reserved(index)| Corrupt { ipa: visit.ipa_of::<M::Granule>(index), level };
            let from = match visit.until_young(&self.tree, |base, ages| found(visit, base, ages)) {
                Ok(Some(from)) => from,
                Ok(None) => return true,
                Err(reserved) => {
                    result = Err(corrupt(reserved));
                    return false;
                }
            };
            let locked = walk.revalidated(visit).map_or_else(|| walk.lock(visit.range.start(), level), Ok);
            let mut locked = match locked {
                Ok(locked) if locked.level() == level && !locked.has_tables(visit.first, visit.count) => locked,
                Ok(_) => {
                    // Taken out since, or a table was linked in it.
                    next = Some(visit.ipa_of::<M::Granule>(from).max(visit.range.start()));
                    return false;
                }
                Err(corrupt) => {
                    result = Err(corrupt);
                    return false;
                }
            };
            let (made_old, ended) = locked.make_old(visit, from, |base, ages| found(visit, base, ages));
            drop(locked);
            young += (made_old.count as u64) << (M::Granule::shift(level) - M::Granule::PAGE_SHIFT);
            if let Some(last) = made_old.end.checked_sub(1) {
                let last = M::Granule::entry_last(visit.ipa_of::<M::Granule>(last), level);
                match IpaRange::inclusive(visit.ipa_of::<M::Granule>(made_old.first), last) {
                    Some(span) => gather.leaves(span, level),
                    None => gather.everything(),
                }
            }
            result = ended.map_err(corrupt);
            result.is_ok()
        };
        let visited = self.read_only(reader).visit(range, |_| true, each);
        reader.count().pages_made_old(young);
        visited?;
        result.map(|()| MadeOld { young, next })
    }
}

impl AgingState {
    /// The end of what `gather` was opened for.
    pub(super) fn end<A: Arch, M: TableMemory>(&self, gather: Gather<'_, '_, A, M>, flush: Flush) {
        match flush {
            Flush::Now => self.flush(gather),
            Flush::Later => self.leave(gather),
        }
    }
}
