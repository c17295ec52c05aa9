//! Which leaves of a table are dirty: looks, and that is all.

use super::{FOLD, Reserved, steps, word};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Folded, Kind, LeafForm};
use crate::geometry::granule::Granule;
use crate::memory::{Groups, TableMemory};
use crate::sync::{Ordering, Word};
use crate::walk::{Tree, Visit};

impl Visit<'_> {
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
        let form = tree.leaf_form(self.table.level);
        let may_be = self.table.may_be_dirty();
        let mut words = [0; BATCH];
        let mut unclear = 0;
        for (nth, base) in self.words::<M::Granule>().enumerate() {
            if nth % BATCH == 0 {
                unclear = dirty_words::<M::Granule>(self.table.page.entries, base, may_be, form, &mut words);
            }
            let mut bits = words.get(nth % BATCH).copied().unwrap_or(0);
            if unclear >> (nth % BATCH) & 1 != 0 {
                bits = self.look_closely(tree, base, may_be)?;
            }
            bits &= self.shown::<M::Granule>(base);
            if bits != 0 {
                found(base, bits);
            }
        }
        Ok(())
    }

    /// A bit for each leaf of the word at `base` that is dirty, where not all that is dirty is a leaf now, or words are small.
    #[cold]
    fn look_closely<A: Arch, M: TableMemory>(
        &self,
        tree: &Tree<'_, A, M>,
        base: usize,
        may_be: Groups,
    ) -> Result<u64, Reserved> {
        let level = self.table.level;
        (0..word::<M::Granule>()).try_fold(0, |bits, nth| {
            let index = base + nth;
            if !may_be.contains(Groups::of::<M::Granule>(index)) {
                return Ok(bits);
            }
            let entry = self.table.read(index);
            let is_dirty = entry.is_dirty() && entry.is_leaf(level);
            match tree.kind(entry, level) {
                Kind::Reserved if entry.is_dirty() => Err(Reserved(index)),
                _ => Ok(bits | u64::from(is_dirty) << nth),
            }
        })
    }
}

/// Words that are filled at once: those of a table, with the 4K granule.
const BATCH: usize = 8;

/// Fills `words` with a bit for each leaf of `entries` that is dirty, from that at `base` on, in groups that may be dirty. Returns a bit for
/// each word that takes a closer look: something is dirty there and no leaf, or there are too few entries to fold.
///
/// Not inlined: alone it has registers for all of a fold.
#[inline(never)]
fn dirty_words<G: Granule>(
    entries: &[Word],
    base: usize,
    may_be: Groups,
    form: LeafForm,
    words: &mut [u64; BATCH],
) -> u64 {
    let mut unclear = 0;
    let all = entries.get(base..).unwrap_or(&[]).as_chunks::<64>().0;
    for (nth, word) in words.iter_mut().enumerate() {
        let Some(entries) = all.get(nth) else {
            unclear |= 1 << nth;
            continue;
        };
        let folds = entries.as_chunks::<FOLD>().0;
        let bits = if may_be == Groups::ALL {
            folds.iter().enumerate().try_fold(0, |bits, (nth, some)| {
                // Most often nothing is dirty, or all.
                let folded = some.iter().fold(Folded::NONE, |folded, entry| folded.and(glance(entry)));
                Some(if !folded.is_any_dirty() {
                    bits
                } else if some.last().is_some_and(|last| glance(last).is_dirty()) && form.written().is_of_all(folded) {
                    bits | 0xff << (nth * FOLD)
                } else {
                    bits | dirty_bits(some, form)? << (nth * FOLD)
                })
            })
        } else {
            steps::<G>(may_be, base + nth * 64).try_fold(0, |bits, at| {
                Some(bits | folds.get(at / FOLD).map_or(Some(0), |some| dirty_bits(some, form))? << at)
            })
        };
        *word = bits.unwrap_or(0);
        unclear |= u64::from(bits.is_none()) << nth;
    }
    unclear
}

/// A bit for each of `entries` that is a dirty leaf; `None` if one is dirty and no leaf.
#[inline(always)]
fn dirty_bits(entries: &[Word; FOLD], form: LeafForm) -> Option<u64> {
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
