//! Collapse: a table whose leaves make a block becomes one, by break-before-make.
//!
//! # Protocol
//! 1. *Look.* A read-only walk finds tables that are full of leaves which continue one another.
//! 2. *Break.* With parent and child locked, and the child looked at again, the parent's entry becomes a
//!    [`Marker::Collapsing`](crate::descriptor::Marker). To software the child stays what it is: others go on changing it.
//! 3. *Flush*, once for a batch, never leaf-only: walk caches may lead to the child, and the hardware may set access flags and
//!    dirty state there until then.
//! 4. *Make.* With both locked the child is looked at a third time. If it still makes a block, that takes the marker's place, with what the
//!    hardware has left; the child goes to the reclaimer, since readers may be in it. If not, the child is linked again.
//!
//! A page that is clean becomes dirty with a block of which another is: a block is dirty as a whole.
//!
//! A log leaves pages where there were blocks. When it ends, all of the guest is gone through once, a bounded piece with each call of
//! [`Stage2::reclaim`] ([`Rejoining`]).

use arrayvec::ArrayVec;

use super::Stage2;
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::descriptor::Run;
use crate::error::{ChangeCause, Corrupt, RangeError, Stopped};
use crate::geometry::granule::Granule;
use crate::memory::{OwnTables, TableMemory};
use crate::quiescence::Reader;
use crate::sync::{AtomicU64, Ordering};
use crate::tlb::Gather;
use crate::walk::Table;

/// Tables that are collapsed with one flush.
const BATCH: usize = 32;

/// How far blocks were joined again since a log has ended.
pub(crate) struct Rejoining(AtomicU64);

/// Nothing is left to be joined.
const DONE: u64 = u64::MAX;

impl Rejoining {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(DONE))
    }

    /// A log has ended: from the first address on.
    pub(crate) fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn next(&self) -> Option<Ipa> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&next| next != DONE).map(Ipa::new)
    }

    /// All before `next` is done that was not at `before`. Not if another CPU has gone on, or another log has ended.
    fn advance(&self, before: Ipa, next: Option<Ipa>) {
        let next = next.map_or(DONE, Ipa::raw);
        let _ = self.0.compare_exchange(before.raw(), next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Why a range was not collapsed, or not all of it: the prefix is.
pub type CollapseError = RangeError<ChangeCause>;

/// A table that may be collapsed: the first address it translates, and where it is.
type Candidate = (Ipa, Pa);

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Joins leaves of `range` to blocks, where they continue one another and are of one kind, up to the tree's largest leaf. Only
    /// tables all of whose addresses are in `range`, and none that is logged while a log is on. How many tables it was.
    ///
    /// Locks a parent and a child at a time; allocates nothing; invalidates once per 32 tables.
    ///
    /// # Errors
    /// [`CollapseError::Argument`]: nothing was changed. [`CollapseError::Stopped`] with [`ChangeCause::Retry`] while the reclaimer is
    /// at work on another CPU, or has no room until readers quiesce.
    pub fn collapse(&self, reader: &Reader<'_>, range: IpaRange) -> Result<u64, CollapseError> {
        self.check(reader, range).map_err(CollapseError::Argument)?;
        let (mut collapsed, mut child) = (0, Level::LEAF);
        while let Some(level) = child.parent().filter(|&level| self.has_blocks_at(level)) {
            collapsed += self.collapse_to(reader, range, level, child).map_err(CollapseError::Stopped)?;
            child = level;
        }
        Ok(collapsed)
    }

    /// After a log: looks at the next `budget` tables of what was logged, and joins what can be. How many tables it was.
    pub(crate) fn rejoin(&self, reader: &Reader<'_>, budget: u32) -> u32 {
        let Some(next) = self.rejoining.next().filter(|_| !self.log.is_active()) else { return 0 };
        let left = self.largest_around_log().and_then(|all| all.starting_at(next.max(all.start())));
        let Some(left) = left.filter(|_| self.largest_leaf < Level::LEAF) else {
            self.rejoining.advance(next, None);
            return 0;
        };
        let joined = self.piece(reader, left, budget).map_err(ChangeCause::Corrupt).and_then(|piece| {
            let joined = piece.map_or(Ok(0), |piece| self.join(reader, piece));
            joined.map(|joined| (joined, piece)).map_err(|stopped| stopped.cause)
        });
        match joined {
            Ok((joined, Some(piece))) => {
                let rest = piece.last().checked_add(1).and_then(|next| left.starting_at(next));
                self.rejoining.advance(next, rest.map(IpaRange::start));
                joined as u32
            }
            // Whoever comes to what is corrupt says so.
            Err(ChangeCause::Corrupt(_)) => {
                self.rejoining.advance(next, None);
                0
            }
            // Again with the next call.
            _ => 0,
        }
    }

    /// What is logged, and what else there is of the largest blocks there.
    fn largest_around_log(&self) -> Option<IpaRange> {
        let logged = self.logged_range()?;
        let start = logged.start().align_down(M::Granule::shift(self.largest_leaf));
        let all = IpaRange::inclusive(start, M::Granule::entry_last(logged.last(), self.largest_leaf))?;
        IpaRange::new(Ipa::new(0), self.tree.geometry.ipa_size())?.intersection(all)
    }

    /// The first addresses of `range`, as far as `budget` looks go: a hole or a block is one look, whatever its size.
    fn piece(&self, reader: &Reader<'_>, range: IpaRange, budget: u32) -> Result<Option<IpaRange>, Corrupt> {
        let looking = self.read_only(reader);
        let mut piece = None;
        let mut next = Some(range.start());
        for _ in 0..budget {
            let Some(at) = next.filter(|&at| range.contains(at)) else { break };
            let last = match looking.find_to(at, Level::LEAF)?.table.level {
                Level::LEAF => M::Granule::table_last(at, Level::LEAF),
                level => M::Granule::entry_last(at, level),
            };
            piece = IpaRange::inclusive(range.start(), last.min(range.last()));
            next = last.checked_add(1);
        }
        Ok(piece)
    }

    /// Joins what is in `piece`, and larger tables that end there.
    fn join(&self, reader: &Reader<'_>, piece: IpaRange) -> Result<u64, Stopped<ChangeCause>> {
        let (mut collapsed, mut child) = (0, Level::LEAF);
        while let Some(level) = child.parent().filter(|&level| self.has_blocks_at(level)) {
            let start = M::Granule::table_base(piece.start(), child);
            if let Some(whole) = IpaRange::inclusive(start, piece.last()) {
                collapsed += self.collapse_to(reader, whole, level, child)?;
            }
            child = level;
        }
        Ok(collapsed)
    }

    /// Whether this tree has blocks of `level`.
    fn has_blocks_at(&self, level: Level) -> bool {
        level >= self.largest_leaf.max(M::Granule::FIRST_BLOCK_LEVEL).max(self.tree.geometry.start_level())
    }

    /// Joins tables of level `child` to blocks of `level`.
    fn collapse_to(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        level: Level,
        child: Level,
    ) -> Result<u64, Stopped<ChangeCause>> {
        let mut collapsed = 0;
        let mut rest = Some(range);
        while let Some(left) = rest {
            let stopped = |cause| Stopped::at(range, left.start(), cause);
            let (candidates, next) = self.candidates(reader, left, child).map_err(|corrupt| stopped(corrupt.into()))?;
            if !candidates.is_empty() {
                let count = self.collapse_batch(reader, &candidates, level).ok_or(stopped(ChangeCause::Retry))?;
                reader.count().blocks_collapsed(u64::from(count));
                collapsed += u64::from(count);
            }
            rest = next.and_then(|next| left.starting_at(next));
        }
        Ok(collapsed)
    }

    /// Step 1: some tables that look as if they made a block, and where to go on.
    fn candidates(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        child: Level,
    ) -> Result<(ArrayVec<Candidate, BATCH>, Option<Ipa>), Corrupt> {
        let mut candidates = ArrayVec::new_const();
        let looking = self.read_only(reader);
        let shift = M::Granule::shift(child) + M::Granule::INDEX_BITS;
        let mut next = range.start().raw().checked_next_multiple_of(1 << shift).map(Ipa::new);
        while let Some(base) = next
            && let Some(whole) = IpaRange::inclusive(base, M::Granule::table_last(base, child))
            && range.contains(whole.last())
            && !candidates.is_full()
        {
            let found = looking.find_to(base, child)?;
            let level = found.table.level;
            if level < child {
                // A hole, or a block: all of it is skipped.
                next = M::Granule::entry_last(base, level).checked_add(1);
                continue;
            }
            if !self.is_logged(whole) && looks_whole::<M::Granule>(&found.table) {
                candidates.push((base, found.table.pa));
            }
            next = whole.last().checked_add(1);
        }
        let next = next.filter(|_| candidates.is_full());
        Ok((candidates, next))
    }

    /// Steps 2 to 4.
    fn collapse_batch(&self, reader: &Reader<'_>, candidates: &[Candidate], level: Level) -> Option<u32> {
        let walk = self.read_write(reader);
        let count = self.retire_handed_over(reader, |batch| {
            let mut gather = Gather::new(&self.tree, reader);
            let mut broken: ArrayVec<Candidate, BATCH> = ArrayVec::new_const();
            for &(base, child) in candidates {
                let Ok(mut parent) = walk.lock(base, level) else { continue };
                let index = parent.index;
                if parent.level() == level && parent.begin_collapse(index, child) {
                    if let Some(range) = IpaRange::inclusive(base, M::Granule::entry_last(base, level)) {
                        gather.subtree(range);
                    }
                    broken.push((base, child));
                }
            }
            let flushed = gather.flush();
            for (base, child) in broken {
                let Ok(mut parent) = walk.lock(base, level) else { continue };
                let index = parent.index;
                let unlinked = parent.finish_collapse(index, child, &flushed);
                if let (Some(unlinked), Some(page)) = (unlinked, self.tree.mmu.memory.page(child)) {
                    batch.push(unlinked, page.meta);
                }
            }
            flushed
        });
        self.tree.mmu.arch.dsb(Dsb::Ishst);
        count
    }
}

/// Whether the first and the last leaf fit: a look that costs little, and proves nothing.
fn looks_whole<G: Granule>(table: &Table<'_>) -> bool {
    let level = table.level;
    let (first, last) = (table.read(0), table.read(G::ENTRIES - 1));
    let mut run = Run::from(first, G::shift(level), G::ENTRIES - 1);
    run.add(last);
    first.is_valid() && first.next_table(level).is_none() && run.is_unbroken()
}
