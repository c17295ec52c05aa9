//! The read-write walk: locks one table, once it is sure to be the right one.
//!
//! # Protocol
//! 1. Descend as the read-only walk does, keeping the address and the *value* of the descriptor that led to the table.
//! 2. Lock the table.
//! 3. Re-read that descriptor and compare. A table descriptor is only ever cleared with the child's lock held (rule 3), so
//!    whoever holds the child's lock and finds the parent unchanged holds a table that is linked, and stays so until he
//!    unlocks. Compare the table's owner and base too.
//! 4. Unchanged: [`Locked`], the only type that can store, is handed out. Changed: unlock and begin again from the root.
//!    After [`OPTIMISTIC_TRIES`] the locks are coupled down from the root instead, so that the walk cannot fail.
//!
//! The read section spans all of it, so that the table cannot have been freed and recycled between 1 and 3: an equal value
//! means the same table, not another one at the same place (no ABA).
//!
//! To compare the *leaf* with an old value would prove nothing: a detached table is all none.

use super::{Position, Table, Tree, Visit, descend};
use crate::addr::{Ipa, Level, Pa};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Kind, Marker, needs_break};
use crate::error::Corrupt;
use crate::geometry::granule::Granule;
use crate::memory::{Groups, Guarded, OwnTables, Place, SpareTable, Stripped, TableMemory, TableState};
use crate::quiescence::Reader;
use crate::sync::{MutexGuard, Ordering, load_owned};
use crate::tlb::Flushed;

/// How often a walk starts over before it couples locks.
const OPTIMISTIC_TRIES: usize = 4;

/// A read-write walk.
#[doc(alias = "pte_offset_map_rw_nolock")]
pub(crate) struct ReadWrite<'r, 'h, A: Arch, M: TableMemory> {
    tree: &'r Tree<'h, A, M>,
    section: &'r Reader<'r>,
}

/// A table, locked and revalidated: the right to store to it.
pub(crate) struct Locked<'r, 'h, A: Arch, M: TableMemory> {
    pub(super) tree: &'r Tree<'h, A, M>,
    pub(super) table: Table<'r>,
    pub(super) guarded: MutexGuard<'r, Guarded>,
    /// The entry the walk was for.
    pub(crate) index: usize,
}

/// When a valid leaf may be stored to, by who holds its table's lock; at other times it changes by read-modify-write (rule 1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stores {
    /// Always: the hardware writes to none.
    Always,
    /// If the hardware has nothing to write to it.
    ToSettled,
    /// Never: some TLB may have a leaf with the DBM that was taken from it, and the hardware make it dirty.
    Never,
}

impl Stores {
    #[inline(always)]
    pub(super) fn allow(self, is_settled: bool) -> bool {
        self == Self::Always || (self == Self::ToSettled && is_settled)
    }
}

/// A table that was taken out of its tree: the hardware and readers may still be looking at it.
#[must_use = "an unlinked table has to go through the reclaimer"]
pub(crate) struct UnlinkedTable(pub(crate) Pa);

/// Why a table was not taken out of its tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// It is not empty any more; it may be hinted again.
    InUse,
    /// Its parent is frozen; it may be tried again after the thaw.
    Frozen,
    /// Its parent does not point to it.
    Elsewhere,
}

impl<'r, 'h, A: Arch, M: TableMemory> ReadWrite<'r, 'h, A, M> {
    /// Begins a walk of `tree` in the read section of `section`.
    #[inline(always)]
    pub(crate) fn new(tree: &'r Tree<'h, A, M>, section: &'r Reader<'r>) -> Self {
        section.count().walks_read_write(1);
        Self { tree, section }
    }

    /// Locks the table of level `stop` on the way to `ipa`, or the deepest there is above it.
    #[inline(always)]
    pub(crate) fn lock(&self, ipa: Ipa, stop: Level) -> Result<Locked<'r, 'h, A, M>, Corrupt> {
        for _ in 0..OPTIMISTIC_TRIES {
            let found = descend(self.tree, self.section, ipa, stop)?;
            if let Some(guarded) = self.lock_found(&found) {
                return self.admit(ipa, found, guarded);
            }
        }
        // Named one by one: what is returned in memory is not what the way above keeps in registers.
        let Locked { tree, table, guarded, index } = self.couple(ipa, stop)?;
        Ok(Locked { tree, table, guarded, index })
    }

    /// Locks the table that a read-only walk of this read section has shown; `None` if it is not there any more.
    #[inline(always)]
    pub(crate) fn revalidated(&self, visit: &Visit<'r>) -> Option<Locked<'r, 'h, A, M>> {
        let found = Position {
            table: visit.table,
            index: visit.first,
            value: Descriptor::NONE,
            is_there: true,
            parent: visit.parent,
        };
        self.at(visit.range.start(), &found)
    }

    /// Locks the table at which a read-only walk of this read section towards `ipa` has ended; `None` if it is not there any more.
    #[inline(always)]
    pub(crate) fn at(&self, ipa: Ipa, found: &Position<'r>) -> Option<Locked<'r, 'h, A, M>> {
        let guarded = self.lock_found(found)?;
        if found.table.is_at(self.tree, ipa) {
            Some(Locked { tree: self.tree, table: found.table, guarded, index: found.index })
        } else {
            drop(guarded);
            None
        }
    }

    /// Steps 2 and 3: the lock of the table that was found; `None` if its parent does not lead there any more.
    #[inline(always)]
    fn lock_found(&self, found: &Position<'r>) -> Option<MutexGuard<'r, Guarded>> {
        let guarded = found.table.page.meta.lock();
        if found.parent.is_none_or(|parent| parent.is_unchanged()) {
            return Some(guarded);
        }
        drop(guarded);
        self.section.count().revalidation_retries(1);
        None
    }

    /// Takes each lock before letting go of the one above: nothing on the path can be detached meanwhile.
    #[cold]
    fn couple(&self, ipa: Ipa, stop: Level) -> Result<Locked<'r, 'h, A, M>, Corrupt> {
        self.section.count().coupled_walks(1);
        let mut table = self.tree.root_table(ipa)?;
        let mut guarded = table.page.meta.lock();
        loop {
            let index = M::Granule::index(ipa, table.level);
            let value = table.read(index);
            if table.level < stop
                && let Some(child) = self.tree.child(ipa, table.level, value)?
            {
                // Nobody takes it out while its parent is locked. Before its lock is waited for: this CPU may hold that.
                if !child.is_at(self.tree, ipa) {
                    return Err(Corrupt { ipa, level: table.level });
                }
                let below = child.page.meta.lock();
                guarded = below;
                table = child;
            } else {
                return self.admit(ipa, Position { table, index, value, is_there: true, parent: None }, guarded);
            }
        }
    }

    /// The parent says this is the table; does the table say so too? If not, somebody else wrote the parent.
    #[inline(always)]
    fn admit(
        &self,
        ipa: Ipa,
        found: Position<'r>,
        guarded: MutexGuard<'r, Guarded>,
    ) -> Result<Locked<'r, 'h, A, M>, Corrupt> {
        if found.table.is_at(self.tree, ipa) {
            Ok(Locked { tree: self.tree, table: found.table, guarded, index: found.index })
        } else {
            drop(guarded);
            Err(self.tree.blame(ipa))
        }
    }
}

impl<'r, A: Arch, M: TableMemory> Locked<'r, '_, A, M> {
    /// The table's level.
    #[inline(always)]
    pub(crate) fn level(&self) -> Level {
        self.table.level
    }

    /// The table, to be read.
    #[inline(always)]
    pub(crate) fn table(&self) -> Table<'r> {
        self.table
    }

    /// The entry at `index`.
    #[inline(always)]
    pub(crate) fn read(&self, index: usize) -> Descriptor {
        self.table.page.entries.get(index).map_or(Descriptor::NONE, |entry| Descriptor::from_raw(load_owned(entry)))
    }

    /// What the entry at `index` is.
    #[inline(always)]
    pub(crate) fn kind(&self, index: usize) -> Kind {
        self.tree.kind(self.read(index), self.table.level)
    }

    /// Whether any of the `count` entries from `first` on leads to a table.
    #[inline(always)]
    pub(crate) fn has_tables(&self, first: usize, count: usize) -> bool {
        let level = self.level();
        level < Level::LEAF && (first..first + count).any(|index| self.read(index).next_table(level).is_some())
    }

    /// How many entries hold something.
    #[inline(always)]
    pub(crate) fn occupied(&self) -> u16 {
        self.guarded.occupied
    }

    /// Replaces the entry at `index` and returns what was there: where the hardware may write it too, in one
    /// atomic exchange, so that no dirty bit it set is lost.
    #[inline(always)]
    pub(crate) fn replace(&mut self, index: usize, new: Descriptor) -> Descriptor {
        let Some(entry) = self.table.page.entries.get(index) else { return Descriptor::NONE };
        if new.is_dirty() || new.has_dbm() {
            self.table.page.meta.note_dirty(&mut self.guarded, Groups::of::<M::Granule>(index));
        }
        let old = if self.tree.hardware_writes {
            entry.swap(new.raw(), Ordering::AcqRel)
        } else {
            let old = load_owned(entry);
            // Release: a table that is linked is seen as it was prepared.
            entry.store(new.raw(), Ordering::Release);
            old
        };
        let old = Descriptor::from_raw(old);
        debug_assert!(!needs_break(old, new, self.table.level), "{old:?} to {new:?} without a break");
        // Saturating: an entry that somebody else wrote was never counted.
        match (old.is_none(), new.is_none()) {
            (true, false) => self.guarded.occupied = self.guarded.occupied.saturating_add(1),
            (false, true) => self.guarded.occupied = self.guarded.occupied.saturating_sub(1),
            _ => {}
        }
        old
    }

    /// Changes the valid leaf at `index` to what `change` makes of it, and returns what it was. Where the hardware may set
    /// its access flag or dirty bit meanwhile, `change` is applied to what the entry really held when it was replaced.
    #[inline(always)]
    pub(crate) fn replace_leaf(&mut self, index: usize, change: impl Fn(Descriptor) -> Descriptor) -> Descriptor {
        let Some(entry) = self.table.page.entries.get(index) else { return Descriptor::NONE };
        let mut old = self.read(index);
        loop {
            let new = change(old);
            debug_assert!(!needs_break(old, new, self.table.level), "{old:?} to {new:?} without a break");
            if new.is_dirty() || new.has_dbm() {
                self.table.page.meta.note_dirty(&mut self.guarded, Groups::of::<M::Granule>(index));
            }
            if old.has_dbm() && new.is_valid() && !new.has_dbm() {
                self.guarded.stripped = Stripped::Cached;
            }
            if self.stores().allow(old.is_settled()) {
                entry.store(new.raw(), Ordering::Release);
                return old;
            }
            // Only AF and S2AP[1] can have changed: twice at most.
            match entry.compare_exchange(old.raw(), new.raw(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return old,
                Err(now) => old = Descriptor::from_raw(now),
            }
        }
    }

    /// What may be stored to leaves that are valid.
    #[inline(always)]
    pub(super) fn stores(&self) -> Stores {
        match (self.tree.hardware_writes, self.guarded.stripped) {
            (false, _) => Stores::Always,
            (true, Stripped::No) => Stores::ToSettled,
            (true, _) => Stores::Never,
        }
    }

    /// Links `spare` as the table for `ipa` at `index`, which holds nothing. Publishing it takes a DSB ISHST after
    /// unlocking.
    pub(crate) fn link(&mut self, index: usize, ipa: Ipa, spare: SpareTable<'_, M>) {
        let Some(level) = self.level().child() else { return };
        let pa = spare.table();
        let Some(page) = self.tree.mmu.memory.page(pa) else { return };
        page.meta.adopt(self.tree.id, Place { base: M::Granule::table_base(ipa, level), level }, 0, Groups::NONE);
        self.replace(index, Descriptor::table(spare.into_linked()));
    }

    /// Ends the break of the block at `index`: in its place comes `spare`, filled with the parts of what the block was.
    /// Publishing it takes a DSB ISHST after unlocking.
    pub(crate) fn link_parts(&mut self, index: usize, ipa: Ipa, spare: SpareTable<'_, M>, _after: &Flushed) {
        let (whole, level) = (self.read(index), self.level());
        let Some(child) = level.child().filter(|_| whole.marker() == Some(Marker::Breaking)) else { return };
        let Some(page) = self.tree.mmu.memory.page(spare.table()) else { return };
        let whole = whole.from_marker();
        for (nth, entry) in page.entries.iter().enumerate() {
            let part = whole.part(child, (nth as u64) << M::Granule::shift(child));
            entry.store(part.raw(), Ordering::Relaxed);
        }
        let place = Place { base: M::Granule::table_base(ipa, child), level: child };
        let dirty = if whole.is_dirty() || whole.has_dbm() { Groups::ALL } else { Groups::NONE };
        page.meta.adopt(self.tree.id, place, M::Granule::ENTRIES as u16, dirty);
        let table = Descriptor::table(spare.into_linked());
        self.replace(index, if self.is_frozen_root() { table.into_marker(Marker::Frozen) } else { table });
    }

    /// A frozen root has neither holes nor tables: whatever could be linked there would run.
    pub(super) fn is_frozen_root(&self) -> bool {
        self.level() == self.tree.geometry.start_level() && self.tree.frozen.load(Ordering::Acquire)
    }

    /// What stands where nothing is mapped any more.
    pub(crate) fn nothing(&self) -> Descriptor {
        if self.is_frozen_root() { Descriptor::NONE.into_marker(Marker::Frozen) } else { Descriptor::NONE }
    }

    /// Takes `child` out if the entry at `index` points to it and it is empty; both locks are held when the entry changes. A
    /// marker stands in its place until [`Self::finish_detach`], since another table must not follow before the flush.
    pub(crate) fn detach_empty(&mut self, index: usize, child: Pa) -> Result<UnlinkedTable, Kept> {
        let entry = self.read(index);
        let page = self.tree.mmu.memory.page(child).ok_or(Kept::Elsewhere)?;
        if entry.next_table(self.level()) != Some(child) {
            return Err(Kept::Elsewhere);
        }
        if !entry.is_valid() {
            return Err(Kept::Frozen);
        }
        let below = page.meta.lock();
        if below.occupied != 0 {
            // Under its lock, so that whoever empties it next can hint it again.
            page.meta.set_state(TableState::Live);
            return Err(Kept::InUse);
        }
        let marker = entry.into_marker(Marker::Detached);
        page.meta.set_state(TableState::Unlinked);
        self.replace(index, marker);
        // Not before: a walk that is still on its way here takes a table without owner for another's, if its parent is unchanged.
        page.meta.disown();
        drop(below);
        Ok(UnlinkedTable(child))
    }

    /// After the flush: the place of `child` is free.
    pub(crate) fn finish_detach(&mut self, index: usize, child: Pa, _after: &Flushed) {
        let entry = self.read(index);
        if entry.marker() != Some(Marker::Detached) || entry.address() != child {
            return;
        }
        self.replace(index, self.nothing());
    }
}
