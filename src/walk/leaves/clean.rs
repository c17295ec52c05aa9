//! Leaves are cleaned, under the table's lock.
//!
//! # When a group is clean (rule 10)
//! With the lock, leaves are cleaned; of a group in which then nothing is dirty, nor can become so without the lock, the metadata
//! *notes* that. It is published, so that scans skip the group, after a flush and with the lock again, for the groups of which
//! nothing else was noted meanwhile. What DBM was taken from the hardware may still make dirty until the flush, and nobody notes
//! that: then the entries are looked at again.

use super::{FOLD, Reserved, word};
use crate::addr::Pa;
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Folded, Kind, LeafForm};
use crate::geometry::granule::Granule;
use crate::memory::{Groups, OwnTables, Stripped, TableMemory};
use crate::quiescence::Reader;
use crate::sync::{Ordering, Word, load_owned};
use crate::tlb::Flushed;
use crate::walk::{Locked, Tree, Visit};

/// What a leaf is that was cleaned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cleaning {
    /// The next store faults.
    Protect,
    /// As before: the hardware notes the next store, or it faults.
    Keep,
    /// The hardware notes the next store.
    Arm,
}

/// What was done to some leaves of a table.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cleaned {
    /// How many were dirty and are clean.
    pub(crate) count: usize,
    /// The index of the first that was changed; and that after the last, 0 if none was.
    pub(crate) first: usize,
    pub(crate) end: usize,
}

impl Cleaned {
    /// `count` from `first` on were changed, and were `dirty`.
    #[inline(always)]
    fn add(&mut self, first: usize, count: usize, dirty: bool) {
        self.count += if dirty { count } else { 0 };
        self.first = if self.end == 0 { first } else { self.first };
        self.end = first + count;
    }
}

impl<A: Arch, M: TableMemory> Locked<'_, '_, A, M> {
    /// Cleans leaves of those `visit` shows, in `groups`: those that `selected` has bits for, given the index of a word's first
    /// entry. A group of which none is selected is not looked at. Of those that are clean then this is noted, for
    /// [`publish_clean`].
    #[inline(always)]
    pub(crate) fn clean_leaves(
        &mut self,
        visit: &Visit<'_>,
        groups: Groups,
        how: Cleaning,
        selected: impl Fn(usize) -> u64,
    ) -> Result<Cleaned, Reserved> {
        match how {
            Cleaning::Protect => {
                self.guarded.armed = false;
                self.change_leaves(visit, groups, selected, |leaf| leaf.with_clean().without_dbm())
            }
            Cleaning::Keep => self.change_leaves(visit, groups, selected, Descriptor::with_clean),
            Cleaning::Arm => {
                self.table.page.meta.note_dirty(&mut self.guarded, groups);
                self.change_leaves(visit, groups, selected, |leaf| leaf.with_clean().with_dbm())
            }
        }
    }

    /// The same, of what `change` makes of a leaf. Not inlined: alone it has registers for its loops.
    #[inline(never)]
    fn change_leaves(
        &mut self,
        visit: &Visit<'_>,
        groups: Groups,
        selected: impl Fn(usize) -> u64,
        change: impl Fn(Descriptor) -> Descriptor + Copy,
    ) -> Result<Cleaned, Reserved> {
        let mut cleaned = Cleaned::default();
        let form = self.tree.leaf_form(self.level());
        // What everything is wanted of comes first, and most often it is all.
        let mut clean = self.change_first(visit, groups, &selected, change, &mut cleaned);
        let mut touched = Groups::NONE;
        let first = visit.first.max(cleaned.end) / word::<M::Granule>();
        for base in
            (first..(visit.first + visit.count).div_ceil(word::<M::Granule>())).map(|nth| nth * word::<M::Granule>())
        {
            let bits = selected(base) & visit.shown::<M::Granule>(base);
            touched = touched.with(self.change_some(base, bits, groups, form, change, &mut cleaned)?);
        }
        for (group, start) in touched.each::<M::Granule>() {
            let end = start + (1 << Groups::shift::<M::Granule>());
            let now = self.table.page.entries.get(start..end).map_or(Folded::NONE, fold);
            if !now.is_any_dirty() && !now.has_any_dbm() {
                clean = clean.with(group);
            }
        }
        self.guarded.dirty = self.guarded.dirty.without(clean);
        Ok(cleaned)
    }

    /// Changes the first leaves of a table that is wanted as a whole, as many as are wanted word by word and are alike. The groups in
    /// which then nothing can become dirty without the lock.
    #[inline(always)]
    fn change_first(
        &mut self,
        visit: &Visit<'_>,
        groups: Groups,
        selected: impl Fn(usize) -> u64,
        change: impl Fn(Descriptor) -> Descriptor,
        cleaned: &mut Cleaned,
    ) -> Groups {
        if !visit.is_all_of_table::<M::Granule>() || groups != Groups::ALL {
            return Groups::NONE;
        }
        let words = visit.words::<M::Granule>().take_while(|&base| selected(base) == u64::MAX).count();
        let Some(alike) = self.change_alike(0, words * word::<M::Granule>(), change) else { return Groups::NONE };
        cleaned.add(0, alike.count, alike.old.is_dirty());
        // Of a group that is larger than a fold the rest may be dirty.
        if alike.new.has_dbm() { Groups::NONE } else { Groups::within::<M::Granule>(alike.count) }
    }

    /// Changes the leaves from `base` on that have a bit in `bits` and are in `groups`. The groups in which any was asked for
    /// and that may be clean now.
    #[inline(always)]
    fn change_some(
        &mut self,
        base: usize,
        bits: u64,
        groups: Groups,
        form: LeafForm,
        change: impl Fn(Descriptor) -> Descriptor + Copy,
        cleaned: &mut Cleaned,
    ) -> Result<Groups, Reserved> {
        let (mut touched, mut armed) = (Groups::NONE, Groups::NONE);
        let mut rest = bits;
        while rest != 0 {
            let index = base + rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let group = Groups::of::<M::Granule>(index);
            let Some(entry) = self.table.page.entries.get(index).filter(|_| groups.contains(group)) else { continue };
            touched = touched.with(group);
            let old = Descriptor::from_raw(load_owned(entry));
            if !form.is_of(old) {
                self.check_unusual(index)?;
                continue;
            }
            let new = change(old);
            if new.has_dbm() {
                armed = armed.with(group);
            }
            if new == old {
                continue;
            }
            // The group is noted already if the hardware may make it dirty again.
            let dirty = if old.has_dbm() == new.has_dbm() && self.stores().allow(old.is_settled()) {
                entry.store(new.raw(), Ordering::Relaxed);
                old.is_dirty()
            } else {
                self.change_unsettled(index, change).is_dirty()
            };
            cleaned.add(index, 1, dirty);
        }
        Ok(touched.without(armed))
    }

    /// Not inlined: so that what comes before has registers for all it needs.
    #[inline(never)]
    fn change_unsettled(&mut self, index: usize, change: impl Fn(Descriptor) -> Descriptor) -> Descriptor {
        self.replace_leaf(index, change)
    }

    /// Of what is no leaf.
    #[cold]
    fn check_unusual(&self, index: usize) -> Result<(), Reserved> {
        if self.kind(index) == Kind::Reserved { Err(Reserved(index)) } else { Ok(()) }
    }

    /// The hardware notes stores to all leaves that the guest may write.
    pub(crate) fn arm(&mut self) {
        if self.guarded.armed {
            return;
        }
        self.guarded.armed = true;
        let form = self.tree.leaf_form(self.level());
        let mut at = 0;
        while at < M::Granule::ENTRIES {
            // No further than to the end of a word: up to there it is noted that something may be dirty.
            let left = word::<M::Granule>() - at % word::<M::Granule>();
            if let Some(changed) = self.change_alike(at, left, Descriptor::with_dbm) {
                at += changed.count;
                continue;
            }
            for index in at..(at + FOLD).min(M::Granule::ENTRIES) {
                let leaf = self.read(index);
                if form.is_of(leaf) && leaf.is_writable() && !leaf.has_dbm() {
                    self.change_unsettled(index, Descriptor::with_dbm);
                }
            }
            at += FOLD;
        }
    }

    /// It notes them no more; whether there is anything to flush.
    pub(crate) fn disarm(&mut self) -> bool {
        self.guarded.armed = false;
        let form = self.tree.leaf_form(self.level());
        for index in 0..M::Granule::ENTRIES {
            let leaf = self.read(index);
            if form.is_of(leaf) && leaf.has_dbm() {
                self.replace_leaf(index, Descriptor::without_dbm);
            }
        }
        self.expect_flush()
    }

    /// A harvester flushes after this. Whether DBM was taken from leaves of the table, by others perhaps, and no flush is known to have
    /// come after: then it has to be one for all that others have taken.
    pub(crate) fn expect_flush(&mut self) -> bool {
        if self.guarded.stripped == Stripped::Cached {
            self.guarded.stripped = Stripped::Flushing;
        }
        self.guarded.stripped == Stripped::Flushing
    }
}

/// After the harvester's flush: scans skip what is noted as clean in the table at `table`, which was cleaned in this read section.
/// Should it have been taken out since, nobody minds.
#[inline(always)]
pub(crate) fn publish_clean<A: Arch, M: TableMemory>(
    tree: &Tree<'_, A, M>,
    _section: &Reader<'_>,
    table: Pa,
    _after: &Flushed,
) {
    let Some(page) = tree.mmu.memory.page(table) else { return };
    let mut guarded = page.meta.lock();
    match guarded.stripped {
        Stripped::No => {}
        Stripped::Flushing => {
            guarded.stripped = Stripped::No;
            guarded.dirty = look_for_dirty::<M::Granule>(page.entries);
        }
        // Taken since the flush: the next harvest's.
        Stripped::Cached => return,
    }
    page.meta.publish_clean(&guarded);
}

/// The groups of `entries`, a table's whose lock is held, in which something is dirty, or can become so without the lock.
#[cold]
fn look_for_dirty<G: Granule>(entries: &[Word]) -> Groups {
    entries.iter().enumerate().fold(Groups::NONE, |dirty, (index, entry)| {
        let entry = fold(core::slice::from_ref(entry));
        if entry.is_any_dirty() || entry.has_any_dbm() { dirty.with(Groups::of::<G>(index)) } else { dirty }
    })
}

/// Of a table whose lock is held.
#[inline(always)]
fn fold(entries: &[Word]) -> Folded {
    entries.iter().fold(Folded::NONE, |folded, entry| folded.and(Descriptor::from_raw(load_owned(entry))))
}
