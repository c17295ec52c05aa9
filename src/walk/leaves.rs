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

use super::rw::Stores;
use super::{Locked, Tree, Visit};
use crate::addr::Pa;
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Folded, Kind, LeafForm};
use crate::geometry::granule::Granule;
use crate::memory::{Groups, OwnTables, Stripped, TableMemory};
use crate::quiescence::Reader;
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

/// Entries that are looked at together: as many as are in a group, but not too many for the registers.
const fn step<G: Granule>() -> usize {
    1 << if Groups::shift::<G>() < 3 { Groups::shift::<G>() } else { 3 }
}

/// Entries that have a bit each of one word.
const fn word<G: Granule>() -> usize {
    if G::ENTRIES < 64 { G::ENTRIES } else { 64 }
}

/// A bit for each entry of a step.
const fn whole_step<G: Granule>() -> u64 {
    (1 << step::<G>()) - 1
}

/// The places of the steps in the word at `base` that have an entry in `groups`.
#[inline(always)]
fn steps<G: Granule>(groups: Groups, base: usize) -> impl Iterator<Item = usize> {
    // Where a step is a group, the word's groups are bits that stand together.
    let mut left = if 1 << Groups::shift::<G>() == step::<G>() {
        groups.bits() >> (base >> Groups::shift::<G>()) & u64::MAX >> (64 - word::<G>() / step::<G>())
    } else {
        let of_group = |at: usize| groups.bits() >> ((base + at) >> Groups::shift::<G>()) & 1;
        (0..word::<G>() / step::<G>()).fold(0, |bits, nth| bits | of_group(nth * step::<G>()) << nth)
    };
    core::iter::from_fn(move || {
        let nth = left.trailing_zeros() as usize;
        left &= left.checked_sub(1)?;
        Some(nth * step::<G>())
    })
}

impl Visit<'_> {
    /// The bases of the words in which the entries are that are shown.
    #[inline(always)]
    fn words<G: Granule>(&self) -> impl Iterator<Item = usize> + use<G> {
        let end = (self.first + self.count).div_ceil(word::<G>());
        (self.first / word::<G>()..end).map(|nth| nth * word::<G>())
    }

    /// A bit for each entry of the word at `base` that is shown.
    #[inline(always)]
    pub(crate) fn shown<G: Granule>(&self, base: usize) -> u64 {
        if self.is_all_of_table::<G>() {
            return u64::MAX;
        }
        let (before, until) = (self.first.saturating_sub(base), self.first + self.count - base);
        let bits = if until < 64 { (1 << until) - 1 } else { u64::MAX };
        bits >> before << before
    }

    /// Calls `found` with the index of an entry, and a bit for each leaf from there on that is dirty: of those shown, in
    /// groups that may be dirty.
    ///
    /// Plain loads: what they find is a bit each. What is done next is ordered by its own fence or lock.
    #[inline(never)]
    pub(crate) fn for_each_dirty<A: Arch, M: TableMemory>(
        &self,
        tree: &Tree<'_, A, M>,
        mut found: impl FnMut(usize, u64),
    ) -> Result<(), Reserved> {
        let level = self.table.level;
        let form = tree.leaf_form(level);
        let may_be = self.table.may_be_dirty();
        for base in self.words::<M::Granule>() {
            // Where everything may be dirty much of it is, or nothing: then a word is looked at as one.
            let whole = (may_be == Groups::ALL).then(|| self.table.page.entries.get(base..base + word::<M::Granule>()));
            let mut bits = match whole.flatten().and_then(|entries| dirty_bits(entries, form)) {
                Some(bits) => bits,
                None => {
                    let mut bits = 0;
                    for at in steps::<M::Granule>(may_be, base) {
                        bits |= self.dirty_in_step(tree, base + at, form)? << at;
                    }
                    bits
                }
            };
            bits &= self.shown::<M::Granule>(base);
            if bits != 0 {
                found(base, bits);
            }
        }
        Ok(())
    }

    /// A bit for each leaf of the step at `start` that is dirty.
    #[inline(always)]
    fn dirty_in_step<A: Arch, M: TableMemory>(
        &self,
        tree: &Tree<'_, A, M>,
        start: usize,
        form: LeafForm,
    ) -> Result<u64, Reserved> {
        let entries = self.table.page.entries.get(start..start + step::<M::Granule>());
        match entries.and_then(|entries| entries.first_chunk()).and_then(|entries| dirty_bits_of_some(entries, form)) {
            Some(bits) => Ok(bits),
            None => self.look_closely(tree, start),
        }
    }

    /// The same, where not all that is dirty is a leaf now; or steps are small.
    #[cold]
    fn look_closely<A: Arch, M: TableMemory>(&self, tree: &Tree<'_, A, M>, start: usize) -> Result<u64, Reserved> {
        let level = self.table.level;
        (0..step::<M::Granule>()).try_fold(0, |bits, nth| {
            let entry = self.table.read(start + nth);
            let is_dirty = entry.is_dirty() && entry.is_leaf(level);
            match tree.kind(entry, level) {
                Kind::Reserved if entry.is_dirty() => Err(Reserved(start + nth)),
                _ => Ok(bits | u64::from(is_dirty) << nth),
            }
        })
    }
}

/// Entries that are folded before one of them is looked at.
const FOLD: usize = 8;

/// A bit for each of `entries`, 64 at most, that is a dirty leaf; `None` if one is dirty and no leaf, or there are too few to fold.
///
/// Not inlined: alone it has registers for all of a fold.
#[inline(never)]
fn dirty_bits(entries: &[Word], form: LeafForm) -> Option<u64> {
    let (folds, rest) = entries.as_chunks::<FOLD>();
    if !rest.is_empty() || folds.is_empty() {
        return None;
    }
    let mut bits = 0;
    for some in folds {
        // The first entry's bit moves down to its place.
        bits >>= FOLD;
        let folded = some.iter().fold(Folded::NONE, |folded, entry| folded.and(glance(entry)));
        if !folded.is_any_dirty() {
            continue;
        }
        if form.written().is_of_all(folded) {
            bits |= u64::MAX << (64 - FOLD);
            continue;
        }
        bits |= dirty_bits_of_some(some, form)? << (64 - FOLD);
    }
    Some(bits >> (64 - folds.len() * FOLD))
}

/// The same of a few that are not alike.
#[inline(always)]
fn dirty_bits_of_some(entries: &[Word; FOLD], form: LeafForm) -> Option<u64> {
    let mut bits = 0;
    for (nth, entry) in entries.iter().enumerate() {
        let entry = glance(entry);
        if entry.is_dirty() {
            bits |= 1 << nth;
            if !form.is_of(entry) {
                return None;
            }
        }
    }
    Some(bits)
}

#[inline(always)]
fn glance(entry: &Word) -> Descriptor {
    Descriptor::from_raw(entry.load(Ordering::Relaxed))
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
        let mut cleaned = match how {
            Cleaning::Protect => {
                self.guarded.armed = false;
                self.change_leaves(visit, groups, selected, |leaf| leaf.with_clean().without_dbm())
            }
            Cleaning::Keep => self.change_leaves(visit, groups, selected, Descriptor::with_clean),
            Cleaning::Arm => {
                self.table.page.meta.note_dirty(&mut self.guarded, groups);
                self.change_leaves(visit, groups, selected, |leaf| leaf.with_clean().with_dbm())
            }
        }?;
        cleaned.stripped = self.expect_flush();
        Ok(cleaned)
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
        let wanted = |base: usize| selected(base) & visit.shown::<M::Granule>(base);
        // What everything is wanted of comes first, and most often it is all.
        let (mut touched, mut left) = self.change_first(visit, groups, wanted, form, change, &mut cleaned);
        for base in visit.words::<M::Granule>() {
            if base + word::<M::Granule>() <= cleaned.end {
                continue;
            }
            let bits = wanted(base);
            if bits == 0 {
                continue;
            }
            for at in steps::<M::Granule>(groups, base) {
                let wanted = bits >> at & whole_step::<M::Granule>();
                if wanted != 0 {
                    let group = Groups::of::<M::Granule>(base + at);
                    touched = touched.with(group);
                    if self.change_step(base + at, wanted, form, change, &mut cleaned)? {
                        left = left.with(group);
                    }
                }
            }
        }
        let clean = touched.without(left);
        if 1 << Groups::shift::<M::Granule>() == step::<M::Granule>() {
            self.guarded.dirty = self.guarded.dirty.without(clean);
        } else {
            // The other steps of those groups were not looked at.
            for (group, start) in clean.each::<M::Granule>() {
                let end = start + (1 << Groups::shift::<M::Granule>());
                let rest = self.table.page.entries.get(start..end).map_or(Folded::NONE, fold);
                if !rest.is_any_dirty() && !rest.has_any_dbm() {
                    self.guarded.dirty = self.guarded.dirty.without(group);
                }
            }
        }
        Ok(cleaned)
    }

    /// Changes the first leaves that are shown, as many as are wanted word by word and are alike. Which groups those are, and in which of
    /// them something can become dirty without the lock.
    #[inline(always)]
    fn change_first(
        &mut self,
        visit: &Visit<'_>,
        groups: Groups,
        wanted: impl Fn(usize) -> u64,
        form: LeafForm,
        change: impl Fn(Descriptor) -> Descriptor,
        cleaned: &mut Cleaned,
    ) -> (Groups, Groups) {
        let whole = |base: &usize| {
            let of_word = Groups::covering::<M::Granule>(*base, base + word::<M::Granule>() - 1);
            wanted(*base) == u64::MAX && groups.contains(of_word)
        };
        let count = visit.words::<M::Granule>().take_while(whole).count() * word::<M::Granule>();
        let entries = self.table.page.entries.get(visit.first..visit.first + count).unwrap_or(&[]);
        let Some(form) = self.form_of_alike(form, visit.first).filter(|_| !entries.is_empty()) else {
            return (Groups::NONE, Groups::NONE);
        };
        let alike = change_alike(entries, form, change);
        if alike.count == 0 {
            return (Groups::NONE, Groups::NONE);
        }
        cleaned.add(visit.first, alike.count, alike.dirty);
        let done = Groups::covering::<M::Granule>(visit.first, visit.first + alike.count - 1);
        if alike.armed {
            return (done, done);
        }
        if alike.had_dbm {
            self.guarded.stripped = Stripped::Cached;
        }
        (done, Groups::NONE)
    }

    /// What those leaves are, of `form`, that are in the state of the one at `index` and may be stored to.
    #[inline(always)]
    fn form_of_alike(&self, form: LeafForm, index: usize) -> Option<LeafForm> {
        let form = if self.read(index).is_dirty() { form.written() } else { form.clean() };
        match self.stores() {
            Stores::Always => Some(form),
            Stores::ToSettled => Some(form.settled()),
            Stores::Never => None,
        }
    }

    /// Whether anything in the step is dirty still, or can become so without the lock.
    #[inline(always)]
    fn change_step(
        &mut self,
        start: usize,
        selected: u64,
        form: LeafForm,
        change: impl Fn(Descriptor) -> Descriptor + Copy,
        cleaned: &mut Cleaned,
    ) -> Result<bool, Reserved> {
        let Some(entries) = self.table.page.entries.get(start..start + step::<M::Granule>()) else { return Ok(false) };
        let mut rest = selected;
        while rest != 0 {
            let nth = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let Some(entry) = entries.get(nth) else { break };
            let old = Descriptor::from_raw(load_owned(entry));
            if !form.is_of(old) {
                match self.kind(start + nth) {
                    Kind::Reserved => return Err(Reserved(start + nth)),
                    _ => continue,
                }
            }
            let new = change(old);
            if new == old {
                continue;
            }
            let mut dirty = old.is_dirty();
            if !old.has_dbm() && !new.has_dbm() && self.stores().allow(old.is_settled()) {
                entry.store(new.raw(), Ordering::Relaxed);
            } else {
                dirty = self.replace_leaf(start + nth, change).is_dirty();
            }
            cleaned.add(start + nth, 1, dirty);
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
}

/// Entries of one kind and one state, that were changed.
struct Alike {
    count: usize,
    /// They were dirty.
    dirty: bool,
    /// One had DBM.
    had_dbm: bool,
    /// One has it now.
    armed: bool,
}

/// Changes the first of `entries`, a table's whose lock is held: as many as are leaves of `form`.
///
/// Not inlined: alone it has registers for all of a fold.
#[inline(never)]
fn change_alike(entries: &[Word], form: LeafForm, change: impl Fn(Descriptor) -> Descriptor) -> Alike {
    let (mut count, mut before, mut after) = (0, Folded::NONE, Folded::NONE);
    for some in entries.as_chunks::<FOLD>().0 {
        let mut leaves = [Descriptor::NONE; FOLD];
        let mut folded = Folded::NONE;
        for (leaf, entry) in leaves.iter_mut().zip(some) {
            *leaf = Descriptor::from_raw(load_owned(entry));
            folded = folded.and(*leaf);
        }
        if !form.is_of_all(folded) {
            break;
        }
        for (leaf, entry) in leaves.iter().zip(some) {
            let new = change(*leaf);
            after = after.and(new);
            // What is behind a leaf was published when that was installed.
            entry.store(new.raw(), Ordering::Relaxed);
        }
        before = before.with(folded);
        count += FOLD;
    }
    Alike { count, dirty: before.is_any_dirty(), had_dbm: before.has_any_dbm(), armed: after.has_any_dbm() }
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
