//! Which entries of a table may be dirty, by groups: a word of metadata that spares a scan the rest of the table.

use crate::geometry::granule::Granule;

/// Some of a table's groups of entries. A group is a 64th of the table, and one entry at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Groups(u64);

impl Groups {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(u64::MAX);

    /// Those with these bits, the lowest group first.
    #[inline(always)]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// log2 of the entries of a group.
    #[inline(always)]
    pub(crate) const fn shift<G: Granule>() -> u32 {
        G::INDEX_BITS.saturating_sub(6)
    }

    /// The group of the entry at `index`.
    #[inline(always)]
    pub(crate) const fn of<G: Granule>(index: usize) -> Self {
        Self(1 << (index >> Self::shift::<G>() & 63))
    }

    /// Those of the entries from `first` to `last`.
    #[inline(always)]
    pub(crate) const fn covering<G: Granule>(first: usize, last: usize) -> Self {
        Self(u64::MAX << (first >> Self::shift::<G>() & 63) & u64::MAX >> (63 - (last >> Self::shift::<G>() & 63)))
    }

    /// Those of which all entries are among the first `count`.
    #[inline(always)]
    pub(crate) const fn within<G: Granule>(count: usize) -> Self {
        match count >> Self::shift::<G>() {
            groups @ 0..64 => Self((1 << groups) - 1),
            _ => Self::ALL,
        }
    }

    #[inline(always)]
    pub(crate) const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    #[inline(always)]
    pub(crate) const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    #[inline(always)]
    pub(crate) const fn and(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    #[inline(always)]
    pub(crate) const fn contains(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    #[inline(always)]
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them: itself, and the index of its first entry.
    #[inline(always)]
    pub(crate) fn each<G: Granule>(self) -> impl Iterator<Item = (Self, usize)> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let group = left.trailing_zeros();
            left &= left.checked_sub(1)?;
            Some((Self(1 << group), (group as usize) << Self::shift::<G>()))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::geometry::granule::{Granule4K, Granule16K, Granule64K, GranuleTiny};
    use std::vec::Vec;

    fn every_entry_is_in_the_group_that_begins_before_it<G: Granule>() {
        let firsts: Vec<_> = Groups::ALL.each::<G>().take_while(|&(_, first)| first < G::ENTRIES).collect();
        for index in 0..G::ENTRIES {
            let (group, _) = *firsts.iter().rev().find(|&&(_, first)| first <= index).unwrap();
            assert_eq!(Groups::of::<G>(index), group);
            assert!(Groups::covering::<G>(0, index).contains(group));
            assert!(Groups::covering::<G>(index, G::ENTRIES - 1).contains(group));
        }
    }

    #[test]
    fn groups_cover_the_tables_of_each_granule() {
        every_entry_is_in_the_group_that_begins_before_it::<Granule4K>();
        every_entry_is_in_the_group_that_begins_before_it::<Granule16K>();
        every_entry_is_in_the_group_that_begins_before_it::<Granule64K>();
        every_entry_is_in_the_group_that_begins_before_it::<GranuleTiny>();
    }

    #[test]
    fn a_group_is_within_a_count_that_has_its_last_entry() {
        assert!(Groups::within::<Granule4K>(7).is_empty());
        assert_eq!(Groups::within::<Granule4K>(23).bits(), 0b11);
        assert_eq!(Groups::within::<Granule4K>(512), Groups::ALL);
        assert!(Groups::within::<Granule64K>(127).is_empty());
    }

    #[test]
    fn a_run_of_entries_is_in_the_groups_from_its_first_to_its_last() {
        assert_eq!(Groups::covering::<Granule4K>(0, 511), Groups::ALL);
        assert_eq!(Groups::covering::<Granule4K>(7, 8).bits(), 0b11);
        assert_eq!(Groups::covering::<Granule4K>(504, 511).bits(), 1 << 63);
        assert_eq!(Groups::covering::<GranuleTiny>(1, 1).bits(), 0b10);
        assert!(Groups::NONE.is_empty() && Groups::NONE.each::<Granule4K>().next().is_none());
    }
}
