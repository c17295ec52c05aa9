//! Runs of entries that are alike in all but their address: what becomes of them is found out for the first, and stored to all.

use super::FOLD;
use crate::addr::IpaRange;
use crate::arch::Arch;
use crate::descriptor::{Descriptor, LeafForm, needs_break};
use crate::geometry::granule::Granule;
use crate::memory::{Groups, Leaving, Stripped, TableMemory};
use crate::sync::{Ordering, Word, load_owned};
use crate::walk::Locked;

/// Leaves that were alike and were changed.
#[derive(Clone, Copy)]
pub(crate) struct Changed {
    pub(crate) count: usize,
    /// What the first was.
    pub(crate) old: Descriptor,
    /// What it is.
    pub(crate) new: Descriptor,
}

impl<A: Arch, M: TableMemory> Locked<'_, '_, A, M> {
    /// Changes the leaves from `first` on, `count` at most, to what `change` makes of the first: as many as are like that, by eights.
    /// `None` if they are not eight, or what they are the hardware may write to just now (rule 1). `change` lets the address be.
    #[inline(always)]
    pub(crate) fn change_alike(
        &mut self,
        first: usize,
        count: usize,
        change: impl Fn(Descriptor) -> Descriptor,
    ) -> Option<Changed> {
        let level = self.level();
        let form = self.tree.leaf_form(level);
        let old = self.read(first);
        if count < FOLD || !form.is_of(old) || !self.stores().allow(old.is_settled()) {
            return None;
        }
        let entries = self.table.page.entries.get(first..first + count)?;
        let new = change(old);
        debug_assert!(!needs_break(old, new, level), "{old:?} to {new:?} without a break");
        if new.is_valid() && (new.is_dirty() || new.has_dbm()) {
            let groups = Groups::covering::<M::Granule>(first, first + count - 1);
            self.table.page.meta.note_dirty(&mut self.guarded, groups);
        }
        let count = change_as_first(entries, form, old, new);
        if count != 0 && old.has_dbm() && new.is_valid() && !new.has_dbm() {
            self.guarded.stripped = Stripped::Cached;
        }
        (count != 0).then_some(Changed { count, old, new })
    }

    /// Goes along the `count` entries from `first` on, over `part`: calls `alike` with each run that `change` was applied to, and `other` with
    /// the index of every other entry. Where `part` cuts an entry there are no runs.
    #[inline(always)]
    pub(crate) fn change_runs<E>(
        &mut self,
        part: IpaRange,
        first: usize,
        count: usize,
        change: impl Fn(Descriptor) -> Descriptor,
        mut alike: impl FnMut(Changed),
        mut other: impl FnMut(&mut Self, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, end) = (first, first + count);
        let bytes = M::Granule::entry_size(self.level());
        let is_whole = (part.start().raw() | part.last().raw().wrapping_add(1)) & (bytes - 1) == 0;
        while at < end {
            if is_whole && let Some(changed) = self.change_alike(at, end - at, &change) {
                alike(changed);
                at += changed.count;
                continue;
            }
            let next = end.min(at + FOLD);
            (at..next).try_for_each(|index| other(self, index))?;
            at = next;
        }
        Ok(())
    }

    /// Notes that all entries were marked as being removed by `remover`, and that all of them were dirty or none.
    #[inline(always)]
    pub(crate) fn note_leaving(&mut self, remover: u16, dirty: bool) {
        self.guarded.leaving = Some(Leaving { remover, dirty });
    }

    /// Whether that is so, and they were dirty. From here on it is not known any more.
    #[inline(always)]
    pub(crate) fn take_leaving(&mut self, remover: u16) -> Option<bool> {
        self.guarded.leaving.take().filter(|leaving| leaving.remover == remover).map(|leaving| leaving.dirty)
    }

    /// Clears all entries, which were marked as being removed and not claimed since: they need not be looked at.
    pub(crate) fn clear_leaving(&mut self) {
        let (folds, rest) = self.table.page.entries.as_chunks::<FOLD>();
        let clear = |entry: &Word| {
            debug_assert!(Descriptor::from_raw(load_owned(entry)).remover().is_some(), "cleared without a mark");
            entry.store(Descriptor::NONE.raw(), Ordering::Relaxed);
        };
        folds.iter().for_each(|some| some.iter().for_each(clear));
        rest.iter().for_each(clear);
        self.guarded.occupied = 0;
    }

    /// Clears the entries from `first` on, `count` at most, that hold what the first holds but for its address, a marker; by eights. How
    /// many.
    #[inline(always)]
    pub(crate) fn clear_alike(&mut self, first: usize, count: usize) -> usize {
        let like = self.read(first);
        let entries = self.table.page.entries.get(first..first + count).unwrap_or(&[]);
        debug_assert!(!like.is_valid(), "{like:?} is cleared without a flush");
        let cleared = clear_as_first(entries, like);
        self.guarded.occupied = self.guarded.occupied.saturating_sub(cleared as u16);
        cleared
    }
}

/// Entries of a table whose lock is held; not inlined: alone it has registers for all of a fold.
#[inline(never)]
fn change_as_first(entries: &[Word], form: LeafForm, old: Descriptor, new: Descriptor) -> usize {
    let change = old.raw() ^ new.raw();
    let kind = form.kind_bits();
    let mut folds = 0;
    while let Some(some) = entries.as_chunks::<FOLD>().0.get(folds) {
        let leaves = some.each_ref().map(load_owned);
        if leaves.iter().fold(0, |differs, leaf| differs | leaf ^ old.raw()) & kind != 0 {
            break;
        }
        for (entry, leaf) in some.iter().zip(leaves) {
            // What is behind a leaf was published when that was installed.
            entry.store(leaf ^ change, Ordering::Relaxed);
        }
        folds += 1;
    }
    folds * FOLD
}

/// The same.
#[inline(never)]
fn clear_as_first(entries: &[Word], like: Descriptor) -> usize {
    let mut folds = 0;
    while let Some(some) = entries.as_chunks::<FOLD>().0.get(folds) {
        let differs = some.iter().fold(0, |differs, entry| differs | load_owned(entry) ^ like.raw());
        if differs & Descriptor::ALL_BUT_ADDRESS != 0 {
            break;
        }
        some.iter().for_each(|entry| entry.store(Descriptor::NONE.raw(), Ordering::Relaxed));
        folds += 1;
    }
    folds * FOLD
}
