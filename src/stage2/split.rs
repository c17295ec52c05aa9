//! Split: a block becomes a table of its parts, by break-before-make.
//!
//! # Protocol
//! 1. *Break.* Under the table's lock the block becomes a [`Marker::Breaking`], by an atomic exchange that brings the last dirty
//!    state the hardware has set. The marker keeps it all: a scan reads the truth, a fault waits.
//! 2. *Flush*, no lock held.
//! 3. *Make.* Under the lock a table filled with the parts takes the marker's place. Each part is what the block was, dirty if it
//!    was. Nobody else touches such a marker: who finds one tries again.
//!
//! An operation on a range splits what its two ends cut, before it begins ([`Stage2::split_ends`]). The table for that comes from table
//! memory, or, if there is none, out of the reserve that a tree with blocks keeps: an unmap does not fail.

use super::{Stage2, covers};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Kind, Marker};
use crate::error::{ChangeCause, RangeError, Stopped};
use crate::geometry::granule::Granule;
use crate::memory::{SpareTable, TableMemory};
use crate::quiescence::Reader;
use crate::stage2::map::NoLeafTable;
use crate::tlb::Gather;

/// Rounds of splitting one end before the caller is sent back: more than there are levels.
const MAX_ROUNDS: usize = 8;

/// Why a range was not split, or not all of it.
pub type SplitError = RangeError<ChangeCause>;

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Makes every block of `range` a table of pages; of a block that the range cuts, all of it. How many tables it took.
    ///
    /// Locks one table at a time, allocates with none locked; invalidates each block once.
    ///
    /// # Errors
    /// [`SplitError::Argument`]: nothing was changed. [`SplitError::Stopped`] with the prefix that has pages alone.
    pub fn split(&self, reader: &Reader<'_>, range: IpaRange) -> Result<u64, SplitError> {
        self.check(reader, range).map_err(SplitError::Argument)?;
        let mut split = 0;
        let mut rest = Some(range);
        while let Some(left) = rest {
            let at = left.start();
            let stopped = |cause| SplitError::Stopped(Stopped::at(range, at, cause));
            let found = self.read_only(reader).find(at).map_err(|corrupt| stopped(corrupt.into()))?;
            let level = found.table.level;
            if let Kind::Block(_) = found.value.kind(level) {
                self.split_block(reader, at, level).map_err(stopped)?;
                split += 1;
                continue;
            }
            let last = if level == Level::LEAF {
                M::Granule::table_last(at, level)
            } else {
                M::Granule::entry_last(at, level)
            };
            rest = last.checked_add(1).and_then(|next| left.starting_at(next));
        }
        Ok(split)
    }

    /// Makes sure that what a range may cut of blocks of `level` can be split, whatever table memory has left by then.
    pub(crate) fn keep_reserve(&self, level: Level) -> Result<(), NoLeafTable> {
        let expecting = self.reclaim.is_expecting();
        let kept = self.reserve.keep(&self.tree.mmu.memory, 2 * level.levels_below() as usize);
        kept.map_err(|_| NoLeafTable::OutOfTables { expecting })
    }

    /// Splits the blocks of which `range` covers a part, before anything else is changed.
    pub(super) fn split_ends(&self, reader: &Reader<'_>, range: IpaRange) -> Result<(), RangeError<ChangeCause>> {
        if self.largest_leaf == Level::LEAF {
            return Ok(());
        }
        let stopped = |cause| RangeError::Stopped(Stopped::at(range, range.start(), cause));
        for end in [range.start(), range.last()] {
            let mut rounds = 0;
            while let Some(level) = self.cut_block(reader, range, end).map_err(stopped)? {
                self.split_block(reader, end, level).map_err(stopped)?;
                rounds += 1;
                if rounds == MAX_ROUNDS {
                    return Err(stopped(ChangeCause::Retry));
                }
            }
        }
        Ok(())
    }

    /// The level of the block that translates `end`, if `range` covers a part of it.
    fn cut_block(&self, reader: &Reader<'_>, range: IpaRange, end: Ipa) -> Result<Option<Level>, ChangeCause> {
        let found = self.read_only(reader).find(end)?;
        let level = found.table.level;
        let is_block = matches!(found.value.kind(level), Kind::Block(_));
        Ok((is_block && !covers::<M::Granule>(range, end, level)).then_some(level))
    }

    /// The three steps, for the block of `level` over `ipa`; nothing, if there is none any more.
    pub(crate) fn split_block(&self, reader: &Reader<'_>, ipa: Ipa, level: Level) -> Result<(), ChangeCause> {
        let memory = &self.tree.mmu.memory;
        let spare = SpareTable::alloc(memory).ok().or_else(|| self.reserve.take(memory));
        let spare = spare.ok_or(ChangeCause::OutOfTables)?;
        let walk = self.read_write(reader);
        // Open before the entry changes.
        let mut gather = Gather::new(&self.tree, reader);
        let mut locked = walk.lock(ipa, level)?;
        let index = locked.index;
        match locked.kind(index) {
            Kind::Block(_) if locked.level() == level => {}
            Kind::Marker(_) => return Err(ChangeCause::Retry),
            _ => return Ok(()),
        }
        locked.replace_leaf(index, |block| block.into_marker(Marker::Breaking));
        drop(locked);
        let block = IpaRange::inclusive(ipa.align_down(M::Granule::shift(level)), M::Granule::entry_last(ipa, level));
        if let Some(block) = block {
            gather.leaves(block, level);
        }
        let quiet = gather.flush();
        let mut locked = walk.lock(ipa, level)?;
        locked.link_parts(index, ipa, spare, &quiet);
        drop(locked);
        reader.count().tables_linked(1);
        reader.count().blocks_split(1);
        self.tree.mmu.arch.dsb(Dsb::Ishst);
        Ok(())
    }
}
