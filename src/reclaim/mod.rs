//! Reclaim: empty tables go back to table memory, once nobody can be looking at them.
//!
//! # Protocol
//! A table's way back is a chain of types, each consuming the one before:
//!
//! | state | how it got there | what may still look at it |
//! |---|---|---|
//! | *hinted* | whoever removed its last entry pushed it, once | everybody; it is linked |
//! | `Batch<Unlinked>` | parent locked, child locked, still the same, still empty: entry → [`Marker::Detached`](crate::descriptor::Marker) | hardware, readers |
//! | `Batch<Invalidated>` | one flush for the batch, never leaf-only; then the markers are cleared | readers |
//! | `Quiescing<Batch<Invalidated>>` | a grace period was begun | readers |
//! | `Batch<Quiesced>` | the grace period is over | nobody |
//!
//! A hint is no more than that: it first waits for a grace period of its own, so that a range in use does not thrash, and then
//! everything is checked again. Only the reclaimer takes tables out of the list of hints.
//!
//! [`Stage2::reclaim`] does a bounded piece of this and waits for nothing. A CPU that does not quiesce stops the freeing,
//! never makes it early: past [`MAX_WAITING`] tables (or [`MAX_BATCHES`] batches) nothing more is unlinked, and the CPU is named.

mod batch;
mod list;

use arrayvec::ArrayVec;

use crate::arch::Arch;
use crate::cpu::CpuIndex;
use crate::error::ArgumentError;
use crate::geometry::granule::Granule;
use crate::memory::{Place, TableMemory, TableState};
use crate::quiescence::{Quiescing, Reader};
use crate::stage2::Stage2;
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::tlb::{Flushed, Gather};
use crate::walk::{Kept, Locked, Table, Tree};
use batch::Invalidated;
pub(crate) use batch::{Batch, Unlinked};
use list::{HintList, List};

/// Tables that may wait for grace periods at once.
pub const MAX_WAITING: u32 = 1024;
/// Batches that may; each is what one call of [`Stage2::reclaim`] unlinked.
pub const MAX_BATCHES: usize = 8;

/// What one call of [`Stage2::reclaim`] did, and what is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Progress {
    /// Tables taken out of the tree.
    pub unlinked: u32,
    /// Tables given back to table memory.
    pub freed: u32,
    /// Tables that became blocks again, since no log needs them any more.
    pub collapsed: u32,
    /// Tables that are out of the tree and wait for a grace period.
    pub waiting: u32,
    /// Tables that were seen empty and are still linked.
    pub hinted: u32,
    /// The CPU because of which nothing more is unlinked: it has not announced a quiescent state for too long.
    pub stalled_by: Option<CpuIndex>,
    /// Another CPU is reclaiming this tree: nothing was done.
    pub busy: bool,
}

/// What a tree keeps for its reclaimer.
pub(crate) struct ReclaimState<'h> {
    hints: HintList,
    /// Hinted or waiting: tables that can be expected back.
    expected: AtomicU32,
    work: Mutex<Work<'h>>,
}

/// What only one CPU at a time works on.
struct Work<'h> {
    /// Hints that wait for their idle period.
    idle: Option<Quiescing<'h, List>>,
    /// Hints whose idle period is over.
    ready: List,
    /// Unlinked and invalidated, waiting for readers.
    retired: ArrayVec<Quiescing<'h, Batch<Invalidated>>, MAX_BATCHES>,
    waiting: u32,
}

impl<'h> ReclaimState<'h> {
    pub(crate) fn new() -> Self {
        Self {
            hints: HintList::new(),
            expected: AtomicU32::new(0),
            work: Mutex::new(Work { idle: None, ready: List::new(), retired: ArrayVec::new_const(), waiting: 0 }),
        }
    }

    /// Notes that `table` was seen empty; its lock is held. Once, until the reclaimer has looked at it.
    pub(crate) fn hint(&self, table: Table<'_>) {
        if table.meta().transition(TableState::Live, TableState::Hinted) {
            self.expected.fetch_add(1, Ordering::Relaxed);
            self.hints.push(table.pa, table.meta());
        }
    }

    /// Whether tables may come back: then who finds none had better try again than give up.
    pub(crate) fn is_expecting(&self) -> bool {
        // Acquire: who reads that none are expected any more finds those that came back.
        self.expected.load(Ordering::Acquire) != 0
    }

    /// Teardown: frees what waits. Nobody can be in the tree, and no TLB holds any of it.
    pub(crate) fn drain<A: Arch, M: TableMemory>(&self, tree: &Tree<'h, A, M>, reader: &Reader<'_>) {
        let mut work = self.work.lock();
        // The tree itself is exclusively the caller's: what is hinted is linked, and freed with it.
        let _ = self.hints.take_all();
        work.idle = None;
        work.ready = List::new();
        for batch in work.retired.drain(..) {
            let freed = batch.into_inner_exclusive().quiesced().free(&tree.mmu.memory);
            reader.count().tables_freed(u64::from(freed));
        }
        work.waiting = 0;
    }
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Works on at most `budget` hinted tables, and gives back what has waited long enough. Where a log has ended, joins blocks again that
    /// it has left in pieces, looking at `budget` tables. To be called now and then, from any CPU; only one at a time works.
    ///
    /// Locks a parent and a child at a time; invalidates once per call, if it unlinked anything, and once for 32 tables that became
    /// blocks. Waits for nothing.
    ///
    /// # Errors
    /// [`ArgumentError::ForeignReader`].
    pub fn reclaim(&self, reader: &Reader<'_>, budget: u32) -> Result<Progress, ArgumentError> {
        self.tree.check_reader(reader)?;
        let state = &self.reclaim;
        let Some(mut work) = state.work.try_lock() else { return Ok(Progress { busy: true, ..Progress::default() }) };
        let mut progress = Progress { freed: self.free_quiesced(reader, &mut work), ..Progress::default() };
        self.advance_hints(&mut work);
        if work.retired.is_full() || work.waiting >= MAX_WAITING {
            progress.stalled_by = work.retired.first().and_then(|batch| batch.check().err()).map(|waiting| waiting.0);
        } else {
            let budget = budget.min(MAX_WAITING - work.waiting);
            progress.unlinked = self.unlink(reader, &mut work, budget);
        }
        progress.waiting = work.waiting;
        progress.hinted = state.expected.load(Ordering::Relaxed).saturating_sub(work.waiting);
        if progress.hinted > MAX_WAITING && progress.stalled_by.is_none() {
            progress.stalled_by = work.idle.as_ref().and_then(|idle| idle.check().err()).map(|waiting| waiting.0);
        }
        reader.count().stalls(u64::from(progress.stalled_by.is_some()));
        drop(work);
        if progress.stalled_by.is_none() {
            progress.collapsed = self.rejoin(reader, budget);
        }
        Ok(progress)
    }

    /// Has `unlink` take tables out that are not empty, since their content was handed over, and retires them. `None` if
    /// another CPU is reclaiming, or there is no room for more until readers quiesce.
    pub(crate) fn retire_handed_over(
        &self,
        reader: &Reader<'_>,
        unlink: impl FnOnce(&mut Batch<Unlinked>) -> Flushed,
    ) -> Option<u32> {
        let mut work = self.reclaim.work.try_lock()?;
        self.free_quiesced(reader, &mut work);
        if work.retired.is_full() || work.waiting >= MAX_WAITING {
            return None;
        }
        let mut batch = Batch::new();
        let flushed = unlink(&mut batch);
        let count = batch.len();
        if count != 0 {
            self.reclaim.expected.fetch_add(count, Ordering::Relaxed);
            self.retire(reader, &mut work, batch.invalidated(flushed));
        }
        Some(count)
    }

    fn retire(&self, reader: &Reader<'_>, work: &mut Work<'h>, batch: Batch<Invalidated>) {
        let count = batch.len();
        work.waiting += count;
        reader.count().tables_unlinked(u64::from(count));
        // There is room: whoever unlinks has looked.
        let _ = work.retired.try_push(self.tree.mmu.quiescence.retire(batch));
    }

    /// Gives back the batches whose grace period is over, the oldest first.
    fn free_quiesced(&self, reader: &Reader<'_>, work: &mut Work<'h>) -> u32 {
        let mut freed = 0;
        while let Some(batch) = work.retired.pop_at(0) {
            match batch.poll() {
                Ok(batch) => freed += batch.quiesced().free(&self.tree.mmu.memory),
                Err((batch, _)) => {
                    work.retired.insert(0, batch);
                    break;
                }
            }
        }
        work.waiting -= freed;
        // Release: partner of the acquire in `is_expecting`.
        self.reclaim.expected.fetch_sub(freed, Ordering::Release);
        reader.count().tables_freed(u64::from(freed));
        freed
    }

    /// Moves hints on: new ones begin their idle period, old ones have theirs behind them.
    fn advance_hints(&self, work: &mut Work<'h>) {
        // Not before the last list is done, so that moving a list is moving its head, however long it is.
        if work.ready.is_empty()
            && let Some(idle) = work.idle.take()
        {
            match idle.poll() {
                Ok(list) => work.ready = list,
                Err((idle, _)) => work.idle = Some(idle),
            }
        }
        if work.idle.is_none() {
            let hinted = self.reclaim.hints.take_all();
            if !hinted.is_empty() {
                work.idle = Some(self.tree.mmu.quiescence.retire(hinted));
            }
        }
    }

    /// Takes up to `budget` tables out of the tree that are still empty, and flushes once.
    fn unlink(&self, reader: &Reader<'_>, work: &mut Work<'h>, budget: u32) -> u32 {
        let memory = &self.tree.mmu.memory;
        let mut gather = None;
        let mut batch = Batch::new();
        let mut postponed = List::new();
        for _ in 0..budget {
            let Some((table, meta)) = work.ready.pop(memory) else { break };
            let place = meta.place();
            let detached = self.at_parent(reader, place, |parent, index| {
                // Open before the entry changes, and not before there is something to flush.
                let gather = gather.get_or_insert_with(|| Gather::new(&self.tree, reader));
                parent.detach_empty(index, table).inspect(|_| gather.table(place.base))
            });
            match detached.unwrap_or(Err(Kept::Elsewhere)) {
                Ok(unlinked) => batch.push(unlinked, meta),
                Err(Kept::Frozen) => postponed.push(table, meta),
                Err(Kept::InUse | Kept::Elsewhere) => {
                    self.reclaim.expected.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        work.ready.append(postponed, memory);
        let (Some(gather), count @ 1..) = (gather, batch.len()) else { return 0 };
        let flushed = gather.flush();
        batch.for_each(memory, |table, meta| {
            self.at_parent(reader, meta.place(), |parent, index| {
                parent.finish_detach(index, table, &flushed);
                self.hint_if_empty(parent);
            });
        });
        self.retire(reader, work, batch.invalidated(flushed));
        count
    }

    /// Locks the table that `place` hangs in, and calls `change` with the entry's index; `None` if there is no such table.
    fn at_parent<R>(
        &self,
        reader: &Reader<'_>,
        place: Place,
        change: impl FnOnce(&mut Locked<'_, 'h, A, M>, usize) -> R,
    ) -> Option<R> {
        let level = place.level.parent()?;
        let mut parent = self.read_write(reader).lock(place.base, level).ok()?;
        let index = M::Granule::index(place.base, level);
        (parent.level() == level).then(|| change(&mut parent, index))
    }
}
