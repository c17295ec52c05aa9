//! A set of small numbers in no order: any of them is found, put in, taken out, or chosen by chance, in a few steps.

use core::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;

/// The numbers, in memory that its maker owns.
pub(super) struct Set {
    /// The first `count` are the numbers.
    members: &'static [AtomicU64],
    /// Of each number, its place in `members`, counted from 1; 0 if it is not in the set.
    places: &'static [AtomicU64],
    count: usize,
}

impl Set {
    /// An empty one, for numbers below the length of both slices, which are all zero.
    pub(super) fn new(members: &'static [AtomicU64], places: &'static [AtomicU64]) -> Self {
        Self { members, places, count: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Puts it in; `false` if it is there.
    pub(super) fn insert(&mut self, number: usize) -> bool {
        if self.places[number].load(Ordering::Relaxed) != 0 {
            return false;
        }
        self.put(self.count, number);
        self.count += 1;
        true
    }

    /// Takes it out, if it is there.
    pub(super) fn remove(&mut self, number: usize) {
        let Some(place) = self.places[number].swap(0, Ordering::Relaxed).checked_sub(1) else { return };
        self.count -= 1;
        let last = self.members[self.count].load(Ordering::Relaxed) as usize;
        if last != number {
            self.put(place as usize, last);
        }
    }

    /// Takes any of them out.
    pub(super) fn take(&mut self, random: &mut Rng) -> Option<usize> {
        let last = self.count.checked_sub(1)?;
        let chosen = self.members[random.usize(..=last)].load(Ordering::Relaxed) as usize;
        self.remove(chosen);
        Some(chosen)
    }

    fn put(&self, place: usize, number: usize) {
        self.members[place].store(number as u64, Ordering::Relaxed);
        self.places[number].store(place as u64 + 1, Ordering::Relaxed);
    }
}
