//! All leaves of one table at once: which are young, and to make them old.
//!
//! Young is what has the access flag. A look takes no lock; to make old takes the table's, and changes each leaf by what
//! [`Locked::replace_leaf`] does: where the hardware may write to it, by read-modify-write, so that the dirty state it sets meanwhile
//! stays. What is no leaf just now, but was one and will be (a block that is being split, a frozen root's), keeps its flag: it is
//! seen, and left alone.

use super::{Locked, Reserved, Tree, Visit};
use crate::addr::Level;
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Folded, Kind, LeafForm, Marker};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::sync::{Ordering, Word};

/// A bit for each of the entries of a word, from the one at its base on.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ages {
    /// It maps something.
    pub(crate) mapped: u64,
    /// And that is young.
    pub(crate) young: u64,
    /// It must not be.
    reserved: u64,
}

impl Ages {
    fn and_from(self, at: usize, more: Self) -> Self {
        Self {
            mapped: self.mapped | more.mapped << at,
            young: self.young | more.young << at,
            reserved: self.reserved | more.reserved << at,
        }
    }

    fn within(self, shown: u64) -> Self {
        Self { mapped: self.mapped & shown, young: self.young & shown, reserved: self.reserved & shown }
    }
}

/// What was made old in a table.
#[derive(Clone, Copy, Default)]
pub(crate) struct MadeOld {
    /// How many leaves.
    pub(crate) count: usize,
    /// The index of the first; and that after the last, 0 if there was none.
    pub(crate) first: usize,
    pub(crate) end: usize,
}

impl MadeOld {
    fn add(&mut self, index: usize) {
        self.count += 1;
        self.first = if self.end == 0 { index } else { self.first };
        self.end = index + 1;
    }
}

/// Entries that are folded before one of them is looked at.
const STEP: usize = 8;

/// Entries that have a bit each of one word.
const fn word<G: Granule>() -> usize {
    if G::ENTRIES < 64 { G::ENTRIES } else { 64 }
}

impl Visit<'_> {
    /// The bases of the words in which the entries are that are shown.
    fn bases<G: Granule>(&self) -> impl Iterator<Item = usize> + use<G> {
        let end = (self.first + self.count).div_ceil(word::<G>());
        (self.first / word::<G>()..end).map(|nth| nth * word::<G>())
    }

    /// A bit for each entry of the word at `base` that is shown and of which the range covers all: it cuts the first and the last at
    /// most.
    fn whole<G: Granule>(&self, base: usize) -> u64 {
        let within = (1 << G::shift(self.table.level)) - 1;
        let first = self.first + usize::from(self.range.start().raw() & within != 0);
        let end = self.first + self.count - usize::from(self.range.last().raw() & within != within);
        let below = |index: usize| match index.saturating_sub(base) {
            bits @ 0..64 => (1 << bits) - 1,
            _ => u64::MAX,
        };
        below(end) & !below(first)
    }

    /// Shows `found` the words of the entries that are shown, up to the first that has something young: its base, and what is mapped.
    /// The base of that one. Nothing is locked.
    ///
    /// Plain loads: what they find is a bit each. What is done next is ordered by its own fence or lock.
    pub(crate) fn until_young<A: Arch, M: TableMemory>(
        &self,
        tree: &Tree<'_, A, M>,
        mut found: impl FnMut(usize, Ages),
    ) -> Result<Option<usize>, Reserved> {
        for base in self.bases::<M::Granule>() {
            let (ages, is_sound) = self.ages(tree, base);
            if ages.young != 0 {
                return Ok(Some(base));
            }
            found(base, ages);
            is_sound?;
        }
        Ok(None)
    }

    /// Shows `found` all words: their base, what is mapped and what of that is young. Nothing need be locked.
    pub(crate) fn for_each_age<A: Arch, M: TableMemory>(
        &self,
        tree: &Tree<'_, A, M>,
        mut found: impl FnMut(usize, Ages),
    ) -> Result<(), Reserved> {
        self.bases::<M::Granule>().try_for_each(|base| {
            let (ages, is_sound) = self.ages(tree, base);
            found(base, ages);
            is_sound
        })
    }

    /// Of the entries of the word at `base` that are shown: up to one that must not be.
    fn ages<A: Arch, M: TableMemory>(&self, tree: &Tree<'_, A, M>, base: usize) -> (Ages, Result<(), Reserved>) {
        let (level, form) = (self.table.level, tree.leaf_form(self.table.level));
        let entries = self.table.page.entries.get(base..base + word::<M::Granule>()).unwrap_or(&[]);
        let (steps, rest) = entries.as_chunks::<STEP>();
        let mut ages = Ages::default();
        for (nth, step) in steps.iter().enumerate() {
            ages = ages.and_from(nth * STEP, ages_of_step(tree, level, form, step));
        }
        // The smallest tables alone have a rest.
        if !rest.is_empty() {
            ages = ages.and_from(steps.len() * STEP, ages_one_by_one(tree, level, form, rest));
        }
        let ages = ages.within(self.shown::<M::Granule>(base));
        match ages.reserved {
            0 => (ages, Ok(())),
            reserved => {
                let first = reserved.trailing_zeros();
                (ages.within((1 << first) - 1), Err(Reserved(base + first as usize)))
            }
        }
    }
}

/// Most often all are leaves and alike, or nothing.
#[inline(always)]
fn ages_of_step<A: Arch, M: TableMemory>(
    tree: &Tree<'_, A, M>,
    level: Level,
    form: LeafForm,
    step: &[Word; STEP],
) -> Ages {
    const ALL: u64 = (1 << STEP) - 1;
    let folded = step.iter().fold(Folded::NONE, |folded, entry| folded.and(glance(entry)));
    if form.is_of_all(folded)
        && let Some(accessed) = folded.accessed()
    {
        return Ages { mapped: ALL, young: if accessed { ALL } else { 0 }, reserved: 0 };
    }
    if folded.is_nothing() {
        return Ages::default();
    }
    ages_one_by_one(tree, level, form, step)
}

/// Of each entry by itself.
fn ages_one_by_one<A: Arch, M: TableMemory>(
    tree: &Tree<'_, A, M>,
    level: Level,
    form: LeafForm,
    entries: &[Word],
) -> Ages {
    let mut ages = Ages::default();
    for (nth, entry) in entries.iter().enumerate() {
        let entry = glance(entry);
        let kind = if form.is_of(entry) { None } else { Some(tree.kind(entry, level)) };
        let is_mapped = match kind {
            None => true,
            Some(Kind::Marker(Marker::Breaking | Marker::Frozen)) => {
                entry.is_leaf(level) && !entry.from_marker().is_none()
            }
            // Where the access flag was there is another bit now in what is being removed.
            Some(_) => false,
        };
        let of_one = Ages {
            mapped: u64::from(is_mapped),
            young: u64::from(is_mapped && entry.is_accessed()),
            reserved: u64::from(kind == Some(Kind::Reserved)),
        };
        ages = ages.and_from(nth, of_one);
    }
    ages
}

#[inline(always)]
fn glance(entry: &Word) -> Descriptor {
    Descriptor::from_raw(entry.load(Ordering::Relaxed))
}

impl<A: Arch, M: TableMemory> Locked<'_, '_, A, M> {
    /// Makes old what is young of the leaves that `visit` shows from the word at `from` on, but for those of which its range covers a
    /// part, and shows `found` what was there, as [`Visit::for_each_age`] does.
    pub(crate) fn make_old(
        &mut self,
        visit: &Visit<'_>,
        from: usize,
        mut found: impl FnMut(usize, Ages),
    ) -> (MadeOld, Result<(), Reserved>) {
        let mut made_old = MadeOld::default();
        let form = self.tree.leaf_form(self.level());
        for base in visit.bases::<M::Granule>().filter(|&base| base >= from) {
            let (ages, is_sound) = visit.ages(self.tree, base);
            let mut left = ages.young & visit.whole::<M::Granule>(base);
            while left != 0 {
                let index = base + left.trailing_zeros() as usize;
                left &= left - 1;
                if form.is_of(self.read(index)) {
                    self.replace_leaf(index, Descriptor::with_old);
                    made_old.add(index);
                }
            }
            found(base, ages);
            if is_sound.is_err() {
                return (made_old, is_sound);
            }
        }
        (made_old, Ok(()))
    }
}
