//! All leaves of one table at once: which are dirty, and to clean them.
//!
//! Goes by the table's groups ([`Groups`]), and in those by *steps* of a few entries, which are folded
//! ([`Folded`]) before any is looked at alone.
//!
//! # When a group is clean (rule 10)
//! With the lock, leaves are cleaned; of a group in which then nothing is dirty, nor can become so without the lock, the metadata
//! *notes* that. It is published, so that scans skip the group, after a flush and with the lock again, for the groups of which
//! nothing else was noted meanwhile. What DBM was taken from the hardware may still make dirty until the flush, and nobody notes
//! that: then the entries are looked at again.

use super::{Locked, Tree, Visit};
use crate::addr::Level;
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Folded, Kind};
use crate::geometry::granule::Granule;
use crate::memory::{Groups, Stripped, TableMemory};
use crate::sync::{Ordering, Word, load_owned};
use crate::tlb::Flushed;

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

/// The entry at this index is no leaf and nothing else that may be there.
pub(crate) struct Reserved(pub(crate) usize);

/// What was done to some leaves of a table.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cleaned {
    /// How many were dirty and are clean.
    pub(crate) count: usize,
    /// DBM was taken from leaves of the table, by whomever: the flush has to be one for all that others have taken.
    pub(crate) stripped: bool,
    /// The indices of the first and the last that were changed; nothing, if none was.
    pub(crate) span: Option<(usize, usize)>,
}

impl Cleaned {
    /// `count` from `first` on were changed, and were `dirty`.
    #[inline(always)]
    fn add(&mut self, first: usize, count: usize, dirty: bool) {
        self.count += if dirty { count } else { 0 };
        self.span = Some((self.span.map_or(first, |(first, _)| first), first + count - 1));
    }
}

/// Entries that are looked at together, and have a bit each: as many as are in a group, but not too many for the registers.
const fn step<G: Granule>() -> usize {
    1 << if Groups::shift::<G>() < 3 { Groups::shift::<G>() } else { 3 }
}

/// The indices at which the steps of the group begin whose first entry is `start`.
#[inline(always)]
fn steps<G: Granule>(start: usize) -> impl Iterator<Item = usize> {
    (start..start + (1 << Groups::shift::<G>())).step_by(step::<G>())
}

/// A bit for each entry of the step that begins at `base`.
#[inline(always)]
const fn whole_step<G: Granule>() -> u64 {
    (1 << step::<G>()) - 1
}

impl Visit<'_> {
    /// A bit for each entry of the step that begins at `base` that is among those shown.
    #[inline(always)]
    pub(crate) fn within<G: Granule>(&self, base: usize) -> u64 {
        let (first, end) = (self.first, self.first + self.count);
        if base >= first && base + step::<G>() <= end {
            return whole_step::<G>();
        }
        let before = first.saturating_sub(base).min(step::<G>());
        let until = end.saturating_sub(base).min(step::<G>());
        ((1 << until) - 1) & !((1 << before) - 1)
    }

    /// Calls `found` with the index of an entry, and a bit for each leaf from there on that is dirty: of those shown, in
    /// groups that may be dirty.
    ///
    /// Plain loads: what they find is a bit each. What is done next is ordered by its own fence or lock.
    #[inline(always)]
    pub(crate) fn for_each_dirty<A: Arch, M: TableMemory>(
        &self,
        tree: &Tree<'_, A, M>,
        mut found: impl FnMut(usize, u64),
    ) -> Result<(), Reserved> {
        let (table, level) = (self.table, self.table.level);
        let form = tree.leaf_form(level);
        let shown = self.groups::<M::Granule>();
        let may_be = table.may_be_dirty();
        // Where everything may be dirty much of it is, or nothing: one look at the fold tells.
        let all = may_be == Groups::ALL;
        for (_, start) in may_be.and(shown).each::<M::Granule>() {
            for base in steps::<M::Granule>(start) {
                let Some(entries) = table.page.entries.get(base..base + step::<M::Granule>()) else { continue };
                let read = |entry: &Word| Descriptor::from_raw(entry.load(Ordering::Relaxed));
                if all {
                    let folded = entries.iter().fold(Folded::NONE, |folded, entry| folded.and(read(entry)));
                    if !folded.is_any_dirty() {
                        continue;
                    }
                    if folded.are_all_written() && form.is_of_all(folded) {
                        found(base, self.within::<M::Granule>(base));
                        continue;
                    }
                }
                let mut bits = 0;
                for (nth, entry) in entries.iter().enumerate() {
                    let entry = read(entry);
                    if entry.is_dirty()
                        && (form.is_of(entry) || is_dirty_leaf(tree, entry, level).ok_or(Reserved(base + nth))?)
                    {
                        bits |= 1 << nth;
                    }
                }
                bits &= self.within::<M::Granule>(base);
                if bits != 0 {
                    found(base, bits);
                }
            }
        }
        Ok(())
    }
}

/// Whether `entry`, which has a dirty state and is no valid leaf, was a leaf before it became a marker; `None` if it is reserved.
#[cold]
fn is_dirty_leaf<A: Arch, M: TableMemory>(tree: &Tree<'_, A, M>, entry: Descriptor, level: Level) -> Option<bool> {
    (tree.kind(entry, level) != Kind::Reserved).then(|| entry.is_leaf(level))
}

impl<A: Arch, M: TableMemory> Locked<'_, '_, A, M> {
    /// Cleans leaves of `groups`: those that `selected` has bits for, given the index of a step's first entry. A group of which
    /// none is selected is not looked at. Of those that are clean then this is noted, for [`Self::publish_clean`].
    #[inline(always)]
    pub(crate) fn clean_leaves(
        &mut self,
        groups: Groups,
        how: Cleaning,
        selected: impl Fn(usize) -> u64,
    ) -> Result<Cleaned, Reserved> {
        let mut cleaned = match how {
            Cleaning::Protect => {
                self.guarded.armed = false;
                self.change_leaves(groups, selected, |leaf| leaf.with_clean().without_dbm())
            }
            Cleaning::Keep => self.change_leaves(groups, selected, Descriptor::with_clean),
            Cleaning::Arm => {
                self.table.page.meta.note_dirty(&mut self.guarded, groups);
                self.change_leaves(groups, selected, |leaf| leaf.with_clean().with_dbm())
            }
        }?;
        cleaned.stripped = self.expect_flush();
        Ok(cleaned)
    }

    #[inline(always)]
    fn change_leaves(
        &mut self,
        groups: Groups,
        selected: impl Fn(usize) -> u64,
        change: impl Fn(Descriptor) -> Descriptor + Copy,
    ) -> Result<Cleaned, Reserved> {
        let mut cleaned = Cleaned::default();
        for (group, start) in groups.each::<M::Granule>() {
            if steps::<M::Granule>(start).all(|base| selected(base) == 0) {
                continue;
            }
            let mut left = false;
            for base in steps::<M::Granule>(start) {
                left |= self.change_step(base, selected(base), change, &mut cleaned)?;
            }
            if !left {
                self.guarded.dirty = self.guarded.dirty.without(group);
            }
        }
        Ok(cleaned)
    }

    /// Whether anything in the step is dirty still, or can become so without the lock.
    #[inline(always)]
    fn change_step(
        &mut self,
        base: usize,
        selected: u64,
        change: impl Fn(Descriptor) -> Descriptor + Copy,
        cleaned: &mut Cleaned,
    ) -> Result<bool, Reserved> {
        let Some(entries) = self.table.page.entries.get(base..base + step::<M::Granule>()) else { return Ok(false) };
        let form = self.tree.leaf_form(self.level());
        if selected == whole_step::<M::Granule>() {
            let before = fold(entries);
            let of_one_state = before.are_all_written() || !before.is_any_dirty();
            if of_one_state && form.is_of_all(before) && self.is_ours_alone(before.are_all_settled()) {
                let mut armed = false;
                for entry in entries {
                    let new = change(Descriptor::from_raw(load_owned(entry)));
                    armed |= new.has_dbm();
                    // What is behind a leaf was published when that was installed.
                    entry.store(new.raw(), Ordering::Relaxed);
                }
                if before.has_any_dbm() && !armed {
                    self.guarded.stripped = Stripped::Cached;
                }
                cleaned.add(base, entries.len(), before.is_any_dirty());
                return Ok(armed);
            }
        }
        let mut rest = selected;
        while rest != 0 {
            let index = base + rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let old = self.read(index);
            if !form.is_of(old) {
                match self.kind(index) {
                    Kind::Reserved => return Err(Reserved(index)),
                    _ => continue,
                }
            }
            if change(old) != old {
                let old = self.replace_leaf(index, change);
                cleaned.add(index, 1, old.is_dirty());
            }
        }
        let after = fold(entries);
        Ok(after.is_any_dirty() || after.has_any_dbm())
    }

    /// The hardware notes stores to all leaves that the guest may write.
    pub(crate) fn arm(&mut self) {
        if self.guarded.armed {
            return;
        }
        self.guarded.armed = true;
        self.table.page.meta.note_dirty(&mut self.guarded, Groups::ALL);
        let form = self.tree.leaf_form(self.level());
        for index in 0..M::Granule::ENTRIES {
            let leaf = self.read(index);
            if form.is_of(leaf) && leaf.is_writable() && !leaf.has_dbm() {
                self.replace_leaf(index, Descriptor::with_dbm);
            }
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

    /// A harvester flushes after this; whether DBM was taken, by others perhaps, that no flush is known to have come after.
    fn expect_flush(&mut self) -> bool {
        if self.guarded.stripped == Stripped::Cached {
            self.guarded.stripped = Stripped::Flushing;
        }
        self.guarded.stripped == Stripped::Flushing
    }

    /// After the harvester's flush: scans skip what is noted as clean.
    #[inline(always)]
    pub(crate) fn publish_clean(&mut self, _after: &Flushed) {
        match self.guarded.stripped {
            Stripped::No => {}
            Stripped::Flushing => {
                self.guarded.stripped = Stripped::No;
                self.guarded.dirty = self.look_for_dirty();
            }
            // Taken since the flush: the next harvest's.
            Stripped::Cached => return,
        }
        self.table.page.meta.publish_clean(&self.guarded);
    }

    /// The groups in which something is dirty, or can become so without the lock.
    #[cold]
    fn look_for_dirty(&self) -> Groups {
        let mut dirty = Groups::NONE;
        for (index, entry) in self.table.page.entries.iter().enumerate() {
            let folded = fold(core::slice::from_ref(entry));
            if folded.is_any_dirty() || folded.has_any_dbm() {
                dirty = dirty.with(Groups::of::<M::Granule>(index));
            }
        }
        dirty
    }
}

/// Of a table whose lock is held.
#[inline(always)]
fn fold(entries: &[Word]) -> Folded {
    entries.iter().fold(Folded::NONE, |folded, entry| folded.and(Descriptor::from_raw(load_owned(entry))))
}
