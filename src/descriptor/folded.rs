//! Several entries at once: what all of them have, and what any of them has. Most tables are of one kind all over, and then one
//! look at the fold spares a look at each.

use super::{ADDRESS, AF, DBM, Descriptor, S2AP_WRITE, SOFT_DIRTY, TABLE_OR_PAGE, VALID};
use crate::addr::Level;
use crate::geometry::granule::Granule;

/// What all of some entries have, and what any of them has.
#[derive(Clone, Copy)]
pub(crate) struct Folded {
    all: u64,
    any: u64,
}

impl Folded {
    /// Of no entries.
    pub(crate) const NONE: Self = Self { all: u64::MAX, any: 0 };

    /// And of this one, too.
    #[inline(always)]
    pub(crate) const fn and(self, entry: Descriptor) -> Self {
        Self { all: self.all & entry.0, any: self.any | entry.0 }
    }

    /// Whether any is dirty.
    #[inline(always)]
    pub(crate) const fn is_any_dirty(self) -> bool {
        self.any & (S2AP_WRITE | SOFT_DIRTY) != 0
    }

    /// Whether any has, or had before it became a marker, a dirty state that the hardware updates.
    #[inline(always)]
    pub(crate) const fn has_any_dbm(self) -> bool {
        self.any & DBM != 0
    }

    /// Whether all are accessed, or none is; `None` if it is some.
    #[inline(always)]
    pub(crate) const fn accessed(self) -> Option<bool> {
        match (self.all & AF != 0, self.any & AF != 0) {
            (true, _) => Some(true),
            (_, false) => Some(false),
            _ => None,
        }
    }

    /// Whether nothing is mapped and nothing kept in any.
    #[inline(always)]
    pub(crate) const fn is_nothing(self) -> bool {
        self.any == 0
    }

    /// The block that these leaves make, the first of which is `first`: accessed if any is, and dirty if any is. The hardware does not
    /// note stores to it. `None` if the write permission of one was taken for now: a block could not tell.
    pub(crate) fn whole(self, first: Descriptor) -> Option<Descriptor> {
        if first.is_writable() && self.any & SOFT_DIRTY != 0 {
            return None;
        }
        Some(Descriptor(first.0 & !(TABLE_OR_PAGE | DBM) | self.any & (AF | S2AP_WRITE | SOFT_DIRTY)))
    }
}

/// Leaves that follow on one another, in what they map and how.
pub(crate) struct Run {
    /// What the next one has to be, but for its state.
    next: u64,
    step: u64,
    differs: u64,
}

impl Run {
    /// What may differ: the access flag, and all that has to do with dirty state.
    const STATE: u64 = AF | S2AP_WRITE | SOFT_DIRTY | DBM;

    /// The run that `first` begins, from its `nth` leaf on, each of `1 << shift` bytes.
    #[inline(always)]
    pub(crate) const fn from(first: Descriptor, shift: u32, nth: usize) -> Self {
        Self { next: first.0.wrapping_add((nth as u64) << shift), step: 1 << shift, differs: 0 }
    }

    #[inline(always)]
    pub(crate) const fn add(&mut self, leaf: Descriptor) {
        self.differs |= leaf.0 ^ self.next;
        self.next = self.next.wrapping_add(self.step);
    }

    /// Whether all that were added follow on.
    #[inline(always)]
    pub(crate) const fn is_unbroken(&self) -> bool {
        self.differs & !Self::STATE == 0
    }
}

/// The leaves of one level: the bits that each of them has set, and those that none has.
#[derive(Clone, Copy)]
pub(crate) struct LeafForm {
    set: u64,
    clear: u64,
}

impl LeafForm {
    /// Those of `level` that map frames below `pa_size`, a power of two.
    #[inline(always)]
    pub(crate) fn new<G: Granule>(level: Level, pa_size: u64) -> Self {
        let stray = ADDRESS & !(pa_size - 1) | ADDRESS & (G::entry_size(level) - 1);
        match level {
            Level::L3 => Self { set: VALID | TABLE_OR_PAGE, clear: stray },
            _ if level >= G::FIRST_BLOCK_LEVEL => Self { set: VALID, clear: TABLE_OR_PAGE | stray },
            // There are none.
            _ => Self { set: VALID, clear: VALID },
        }
    }

    /// Those of them that were written.
    #[inline(always)]
    pub(crate) const fn written(self) -> Self {
        Self { set: self.set | S2AP_WRITE, ..self }
    }

    /// The bits in which a leaf may not differ from another of them, if both are of one kind: all but those of a frame's address.
    #[inline(always)]
    pub(crate) const fn kind_bits(self) -> u64 {
        !ADDRESS | self.clear
    }

    /// Whether `folded` is of such leaves alone.
    #[inline(always)]
    pub(crate) const fn is_of_all(self, folded: Folded) -> bool {
        folded.all & self.set == self.set && folded.any & self.clear == 0
    }

    /// Whether `entry` is one.
    #[inline(always)]
    pub(crate) const fn is_of(self, entry: Descriptor) -> bool {
        self.is_of_all(Folded::NONE.and(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Pa;
    use crate::descriptor::{Attributes, Format, Marker, Permissions};
    use crate::geometry::granule::{Granule4K, Granule64K};

    const PA_SIZE: u64 = 1 << 40;

    fn leaf(level: Level, pa: u64, dirty: bool) -> Descriptor {
        Format { dbm: true, ..Format::default() }.leaf(level, Pa::new(pa), Attributes::normal(Permissions::RW), dirty)
    }

    #[test]
    fn a_page_is_a_leaf_of_level_3_and_a_block_of_its_own() {
        let form = |level| LeafForm::new::<Granule4K>(level, PA_SIZE);
        let page = leaf(Level::L3, 0x4000_1000, false);
        assert!(form(Level::L3).is_of(page) && !form(Level::L2).is_of(page));
        let block = leaf(Level::L2, 0x4000_0000, false);
        assert!(form(Level::L2).is_of(block) && !form(Level::L3).is_of(block));
        assert!(form(Level::L1).is_of(block), "a multiple of 1 GiB");
        assert!(!form(Level::L0).is_of(block), "there are no blocks at level 0");
        assert!(!LeafForm::new::<Granule64K>(Level::L1, PA_SIZE).is_of(block), "nor at level 1 with 64K");
    }

    #[test]
    fn what_is_misaligned_too_far_a_table_a_marker_or_nothing_is_no_leaf() {
        let form = LeafForm::new::<Granule4K>(Level::L2, PA_SIZE);
        let good = leaf(Level::L2, 0x20_0000, true);
        assert!(form.is_of(good));
        for other in [
            leaf(Level::L2, 0x20_1000, true),
            leaf(Level::L2, PA_SIZE, true),
            Descriptor::table(Pa::new(0x20_0000)),
            good.into_marker(Marker::Breaking),
            Descriptor::NONE,
        ] {
            assert!(!form.is_of(other));
            assert!(
                !form.is_of_all(Folded::NONE.and(good).and(other))
                    && !form.is_of_all(Folded::NONE.and(other).and(good))
            );
        }
    }

    #[test]
    fn a_fold_says_of_any_what_holds_of_one() {
        let (clean, dirty) = (leaf(Level::L3, 0, false), leaf(Level::L3, 0x1000, true));
        let both = Folded::NONE.and(clean).and(dirty);
        assert!(both.is_any_dirty() && both.has_any_dbm());
        assert!(!Folded::NONE.and(clean).is_any_dirty());
        assert!(!Folded::NONE.and(clean.without_dbm()).has_any_dbm());
        assert!(Folded::NONE.and(dirty.with_write_protection()).is_any_dirty());
    }

    #[test]
    fn written_leaves_are_told_from_others() {
        let (clean, dirty) = (leaf(Level::L3, 0, false), leaf(Level::L3, 0x1000, true));
        let form = LeafForm::new::<Granule4K>(Level::L3, PA_SIZE);
        let both = Folded::NONE.and(clean).and(dirty);
        assert!(form.is_of_all(both) && !form.written().is_of_all(both));
        assert!(form.written().is_of(dirty) && !form.written().is_of(clean));
    }

    #[test]
    fn leaves_of_one_kind_differ_in_their_frames_alone() {
        let form = LeafForm::new::<Granule4K>(Level::L3, PA_SIZE);
        let like = leaf(Level::L3, 0x4000_0000, true);
        let differs = |other: Descriptor| (other.raw() ^ like.raw()) & form.kind_bits() != 0;
        assert!(!differs(leaf(Level::L3, 0x7fff_f000, true)));
        for other in [leaf(Level::L3, 0x4000_0000, false), like.with_old(), like.without_dbm(), Descriptor::NONE] {
            assert!(differs(other), "{other:?}");
        }
        assert!(differs(leaf(Level::L3, PA_SIZE, true)), "no frame");
    }

    #[test]
    fn a_run_is_unbroken_whatever_was_accessed_or_written_in_it() {
        let first = leaf(Level::L3, 0x20_0000, false);
        let unbroken = |second: Descriptor| {
            let mut run = Run::from(first, 12, 0);
            run.add(first);
            run.add(second);
            run.is_unbroken()
        };
        let second = leaf(Level::L3, 0x20_1000, false);
        for second in [second, second.with_dirty(), second.with_old(), second.without_dbm()] {
            assert!(unbroken(second));
        }
        let read_only =
            Format::default().leaf(Level::L3, Pa::new(0x20_1000), Attributes::normal(Permissions::R), false);
        for other in
            [leaf(Level::L3, 0x20_2000, false), Descriptor::NONE, read_only, second.into_marker(Marker::Breaking)]
        {
            assert!(!unbroken(other));
        }
    }
}
