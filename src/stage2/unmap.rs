//! Unmap: mark, flush, settle.
//!
//! 1. *Mark.* Each leaf of the range becomes a [`Marker::Removing`], under its table's lock. It keeps the frame's address, the access flag
//!    and the dirty state, so a concurrent scan reads the truth and a concurrent fault waits; a new mapping cannot take the
//!    place of one that TLBs still hold (break-before-make).
//! 2. *Flush.* One for the whole range.
//! 3. *Settle.* Markers become none. Where frames are handed back one by one, a batch of markers is first *claimed*, so that each
//!    frame is handed back exactly once, and the caller is called with no lock held. The dirty log is told of a dirty page
//!    before its marker goes: a scan reads the entry first, then the log, and so sees one or the other.
//!
//! A marker says which CPU made it, and only that CPU settles it: another that meets it cannot know whether its own flush
//! came after it. It includes what it sees in its flush, and leaves the rest to the maker.
//!
//! A table that was emptied is *hinted* to the reclaimer. Unmap allocates nothing.

use core::cell::Cell;

use arrayvec::ArrayVec;

use super::Stage2;
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Descriptor, Kind, Marker};
use crate::error::{ChangeCause, Corrupt, RangeError, Stopped};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::{GracePeriod, Quiescing, Reader};
use crate::tlb::{Flushed, Gather};
use crate::walk::{Locked, Table, Visit};

/// Frames handed back between two takings of the table's lock.
const BATCH: usize = 32;

/// A leaf whose marker says [`Marker::Claimed`]: its address and level, and what it was.
type Claimed = (Ipa, Level, Descriptor);

/// Why a range was not unmapped, or not all of it: the prefix is unmapped.
pub type UnmapError = RangeError<ChangeCause>;

/// What an unmap did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Unmapped {
    /// Leaves removed.
    pub leaves: u64,
    /// Those of them that were dirty.
    pub dirty: u64,
}

/// A leaf that was removed and is in no TLB any more. Until the callback that was given this returns, a fault there waits:
/// its content can be moved elsewhere meanwhile.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Removed<'q> {
    /// The first address it translated.
    pub ipa: Ipa,
    /// Its level, and so its size.
    pub level: Level,
    /// Whether it was written since it was last cleaned. A page that is clean since a rearm may be dropped only once that harvest
    /// was copied.
    pub dirty: bool,
    /// Whether it was accessed since it was last made old: then it was not as cold as it looked.
    pub accessed: bool,
    /// The frame. Readers such as a harvester that copies may still look at it, so it can be had for reuse only
    /// after a grace period.
    pub frame: Quiescing<'q, Pa>,
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Unmaps `range`; holes are skipped, and so is what another CPU is already unmapping: that is invalidated, too, but may stay a
    /// marker, on which faults and maps wait, until the other is through. For a backing that owns frames by region: it may reuse them once the result can be had
    /// out of its [`Quiescing`], since readers such as a harvester may still be copying from them.
    ///
    /// Locks one table at a time; allocates nothing; invalidates the range once.
    ///
    /// # Errors
    /// [`UnmapError::Argument`]: nothing was changed. [`UnmapError::Stopped`] with the prefix that is unmapped and stays so; to
    /// unmap all of the range later, holes being skipped, gives the frames of the prefix, too.
    pub fn unmap(&self, reader: &Reader<'_>, range: IpaRange) -> Result<Quiescing<'h, Unmapped>, UnmapError> {
        let unmapped = self.unmap_by(reader, range, |range, quiet| self.settle(reader, range, quiet))?;
        Ok(self.tree.mmu.quiescence.retire(unmapped))
    }

    /// Unmaps `range` and hands each leaf to `release`, once, with no lock held. See [`Self::unmap`].
    ///
    /// # Errors
    /// As [`Self::unmap`].
    pub fn unmap_with(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        mut release: impl FnMut(Removed<'h>),
    ) -> Result<Unmapped, UnmapError> {
        self.unmap_by(reader, range, |range, quiet| self.settle_with(reader, range, quiet, &mut release))
    }

    fn unmap_by(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        settle: impl FnOnce(IpaRange, &Flushed) -> Result<Unmapped, Corrupt>,
    ) -> Result<Unmapped, UnmapError> {
        self.check(reader, range).map_err(UnmapError::Argument)?;
        self.split_ends(reader, range)?;
        self.tree.changes.count(range);
        let mut gather = Gather::new(&self.tree, reader);
        let marked = self.mark(reader, range, &mut gather);
        let quiet = gather.flush();
        let done = match &marked {
            Ok(()) => Some(range),
            Err(stopped) => stopped.done,
        };
        let settled = match done.map(|done| settle(done, &quiet)) {
            Some(Ok(unmapped)) => unmapped,
            Some(Err(corrupt)) => {
                return Err(UnmapError::Stopped(Stopped::at(range, corrupt.ipa, ChangeCause::Corrupt(corrupt))));
            }
            None => Unmapped::default(),
        };
        self.tree.mmu.arch.dsb(Dsb::Ishst);
        marked.map_err(UnmapError::Stopped)?;
        Ok(settled)
    }

    /// Step 1. Also counts what is in the way.
    fn mark(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        gather: &mut Gather<'_, 'h, A, M>,
    ) -> Result<(), Stopped<ChangeCause>> {
        self.for_each_locked(reader, range, |locked, part, first, count| {
            let level = locked.level();
            let remover = reader.cpu().0;
            let removing = |leaf: Descriptor| leaf.into_removing(remover);
            let (marked, whole) = (Cell::new(false), Cell::new(None));
            let result = locked.change_runs(
                part,
                first,
                count,
                removing,
                |alike| {
                    marked.set(true);
                    whole.set((alike.count == M::Granule::ENTRIES).then_some(alike.old.is_dirty()));
                },
                |locked, index| {
                    let ipa = ipa_of::<M::Granule>(part.start(), level, first, index);
                    let old = locked.read(index);
                    let cause = match locked.kind(index) {
                        Kind::Invalid | Kind::Table(_) | Kind::Marker(Marker::Detached) => return Ok(()),
                        Kind::Page(_) | Kind::Block(_) if covers::<M::Granule>(part, ipa, level) => {
                            locked.replace_leaf(index, removing);
                            marked.set(true);
                            return Ok(());
                        }
                        Kind::Marker(Marker::Removing | Marker::Claimed) => {
                            marked.set(true);
                            return Ok(());
                        }
                        Kind::Marker(Marker::Frozen) if old.from_marker().is_none() => return Ok(()),
                        // A block that came since its ends were split.
                        Kind::Page(_) | Kind::Block(_) | Kind::Marker(_) => ChangeCause::Retry,
                        Kind::Reserved => ChangeCause::Corrupt(Corrupt { ipa, level }),
                    };
                    Err((ipa, cause))
                },
            );
            if let Some(dirty) = whole.get() {
                locked.note_leaving(remover, dirty);
            }
            if marked.get() || result.is_err() {
                gather.leaves(part, level);
            }
            result
        })
        .map_err(|(at, cause)| Stopped::at(range, at, cause))
    }

    /// Step 3, when nobody wants the frames one by one.
    fn settle(&self, reader: &Reader<'_>, range: IpaRange, _after: &Flushed) -> Result<Unmapped, Corrupt> {
        let mut unmapped = Unmapped::default();
        self.for_each_locked(reader, range, |locked, part, first, count| {
            let level = locked.level();
            let (mut at, end) = (first, first + count);
            if let Some(dirty) = locked.take_leaving(reader.cpu().0)
                && count == M::Granule::ENTRIES
                && locked.nothing().is_none()
                && !(dirty && self.log.is_active())
            {
                locked.clear_leaving();
                unmapped.leaves += count as u64;
                unmapped.dirty += if dirty { count as u64 } else { 0 };
                at = end;
            }
            while at < end {
                let old = locked.read(at);
                if old.remover() != Some(reader.cpu().0) {
                    at += 1;
                    continue;
                }
                // Of dirty pages the log is told one by one; and of a frozen root none becomes a hole.
                let alone = (old.is_dirty() && self.log.is_active()) || !locked.nothing().is_none();
                let alike = if alone { 0 } else { locked.clear_alike(at, end - at) };
                if alike == 0 {
                    self.finish(locked, at, ipa_of::<M::Granule>(part.start(), level, first, at), old);
                }
                unmapped.add(old, alike.max(1));
                at += alike.max(1);
            }
            self.hint_if_empty(locked);
            Ok(())
        })
        .map_err(|(_, corrupt)| corrupt)?;
        Ok(unmapped)
    }

    /// Step 3, handing each frame to `release`.
    fn settle_with(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        _after: &Flushed,
        release: &mut impl FnMut(Removed<'h>),
    ) -> Result<Unmapped, Corrupt> {
        let mut unmapped = Unmapped::default();
        let mut rest = Some(range);
        while let Some(left) = rest {
            let mut claimed: ArrayVec<Claimed, BATCH> = ArrayVec::new_const();
            let mut next = None;
            self.for_each_locked(reader, left, |locked, part, first, count| {
                let level = locked.level();
                locked.take_leaving(reader.cpu().0);
                for (index, ipa) in entries::<M::Granule>(part.start(), level, first, count) {
                    let old = locked.read(index);
                    if old.remover() != Some(reader.cpu().0) {
                        continue;
                    }
                    if claimed.is_full() {
                        next = Some(ipa);
                        return Err((ipa, None));
                    }
                    locked.replace(index, old.into_marker(Marker::Claimed));
                    claimed.push((ipa, level, old));
                }
                Ok(())
            })
            .or_else(|(_, corrupt)| corrupt.map_or(Ok(()), Err))?;
            // Begun after the claims: who looks in a later section finds the frames no more, not by the markers either.
            let period = self.tree.mmu.quiescence.begin();
            self.release(&claimed, period, release);
            // The callback may have moved the content: who has asked for the page before must ask again.
            if let (Some(&(first, ..)), Some(&(last, ..))) = (claimed.first(), claimed.last())
                && let Some(handed_over) = IpaRange::inclusive(first, last)
            {
                self.tree.changes.count(handed_over);
            }
            claimed.iter().for_each(|&(.., old)| unmapped.add(old, 1));
            self.finish_claimed(reader, &claimed)?;
            rest = next.and_then(|next| left.starting_at(next));
        }
        Ok(unmapped)
    }

    /// Hands over what was claimed, no lock held. The caller sees in the frames what the guest saw (rule 13).
    fn release(&self, claimed: &[Claimed], period: GracePeriod, release: &mut impl FnMut(Removed<'h>)) {
        let mmu = self.tree.mmu;
        let mut issued = false;
        for &(_, level, old) in claimed {
            if self.tree.format.memory_type(old).is_none_or(|memory| self.looks_behind_caches(memory)) {
                mmu.arch.clean_invalidate_to_poc(old.address(), M::Granule::entry_size(level));
                issued = true;
            }
        }
        if issued {
            mmu.arch.dsb(Dsb::Ish);
        }
        for &(ipa, level, old) in claimed {
            let frame = mmu.quiescence.retire_in(old.address(), period);
            release(Removed { ipa, level, dirty: old.is_dirty(), accessed: old.was_accessed(), frame });
        }
    }

    /// Clears what was claimed, taking each table's lock once.
    fn finish_claimed(&self, reader: &Reader<'_>, claimed: &[Claimed]) -> Result<(), Corrupt> {
        let walk = self.read_write(reader);
        let table_of = |&(ipa, level, _): &Claimed| (level, M::Granule::table_base(ipa, level));
        for of_one_table in claimed.chunk_by(|one, next| table_of(one) == table_of(next)) {
            let Some(&(ipa, level, _)) = of_one_table.first() else { continue };
            let mut locked = walk.lock(ipa, level)?;
            for &(ipa, level, old) in of_one_table {
                self.finish(&mut locked, M::Granule::index(ipa, level), ipa, old);
            }
            self.hint_if_empty(&mut locked);
        }
        Ok(())
    }

    /// The end of one leaf: first the log, then the entry.
    fn finish(&self, locked: &mut Locked<'_, '_, A, M>, index: usize, ipa: Ipa, old: Descriptor) {
        if old.is_dirty() {
            self.log.publish(ipa, M::Granule::shift(locked.level()), M::Granule::PAGE_SHIFT);
        }
        locked.replace(index, locked.nothing());
    }

    /// Tells the reclaimer of a table that is empty now. A root is never reclaimed.
    pub(crate) fn hint_if_empty(&self, locked: &mut Locked<'_, '_, A, M>) {
        if locked.occupied() == 0 && locked.level() > self.tree.geometry.start_level() {
            self.reclaim.hint(locked.table());
        }
    }

    /// Locks each table that holds leaves of `range`, from low to high addresses, and shows it to `change` with the part of
    /// the range it covers, the first entry and how many. Holes above level 3 are skipped without a lock.
    pub(crate) fn for_each_locked<E: From<Corrupt>>(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        mut change: impl FnMut(&mut Locked<'_, 'h, A, M>, IpaRange, usize, usize) -> Result<(), (Ipa, E)>,
    ) -> Result<(), (Ipa, E)> {
        let shown = |locked: &mut Locked<'_, 'h, A, M>, visit: &Visit<'_>| {
            change(locked, visit.range, visit.first, visit.count)
        };
        self.for_each_locked_if(reader, range, |_| true, |_| true, shown)
    }

    /// The same, of the tables that are `wanted` by what is known of them, and `concerned` by where they are.
    #[inline(always)]
    pub(crate) fn for_each_locked_if<E: From<Corrupt>>(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        wanted: impl Fn(&Table<'_>) -> bool,
        concerned: impl Fn(&Visit<'_>) -> bool,
        mut change: impl FnMut(&mut Locked<'_, 'h, A, M>, &Visit<'_>) -> Result<(), (Ipa, E)>,
    ) -> Result<(), (Ipa, E)> {
        let looking = self.read_only(reader);
        let walk = self.read_write(reader);
        let corrupt = |corrupt: Corrupt| (corrupt.ipa, E::from(corrupt));
        let mut rest = Some(range);
        while let Some(left) = rest {
            // A hole is skipped at the level it begins at; then the lock is taken on what was found.
            let mut result = Ok(());
            let mut resume = None;
            let each = |visit: &Visit<'_>| {
                if !concerned(visit) {
                    return true;
                }
                let level = visit.table.level;
                let mut locked = match walk.revalidated(visit) {
                    Some(locked) => Ok(locked),
                    None => walk.lock(visit.range.start(), level),
                };
                result = match &mut locked {
                    Err(found) => Err(corrupt(*found)),
                    Ok(locked) if locked.level() == level && !locked.has_tables(visit.first, visit.count) => {
                        change(locked, visit)
                    }
                    Ok(_) => {
                        // The table was detached since, or another linked in it: look again.
                        resume = Some(visit.range.start());
                        return false;
                    }
                };
                result.is_ok()
            };
            looking.visit(left, &wanted, each).map_err(corrupt)?;
            result?;
            reader.count().revalidation_retries(u64::from(resume.is_some()));
            rest = resume.and_then(|at| left.starting_at(at));
        }
        Ok(())
    }
}

impl Unmapped {
    /// So many, that were as `old`.
    fn add(&mut self, old: Descriptor, count: usize) {
        self.leaves += count as u64;
        self.dirty += if old.is_dirty() { count as u64 } else { 0 };
    }
}

/// The `count` entries from `first` on, with the first address of the range that each translates.
#[inline(always)]
pub(crate) fn entries<G: Granule>(
    start: Ipa,
    level: Level,
    first: usize,
    count: usize,
) -> impl Iterator<Item = (usize, Ipa)> {
    let base = start.align_down(G::shift(level));
    (0..count).map(move |n| {
        let ipa = base.offset((n as u64) << G::shift(level));
        (first + n, if n == 0 { start } else { ipa })
    })
}

/// The first address of the range that the entry at `index` translates, of those from `first` on that begin with `start`.
#[inline(always)]
pub(crate) fn ipa_of<G: Granule>(start: Ipa, level: Level, first: usize, index: usize) -> Ipa {
    start.align_down(G::shift(level)).offset(((index - first) as u64) << G::shift(level)).max(start)
}

/// Whether `part` covers all that the entry for `ipa` translates.
#[inline(always)]
pub(crate) fn covers<G: Granule>(part: IpaRange, ipa: Ipa, level: Level) -> bool {
    part.contains(ipa.align_down(G::shift(level))) && part.contains(G::entry_last(ipa, level))
}
