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

    /// Whether all have the bit that says written.
    #[inline(always)]
    pub(crate) const fn are_all_written(self) -> bool {
        self.all & S2AP_WRITE != 0
    }

    /// Whether any has, or had before it became a marker, a dirty state that the hardware updates.
    #[inline(always)]
    pub(crate) const fn has_any_dbm(self) -> bool {
        self.any & DBM != 0
    }

    /// Whether the hardware has nothing to write to any of them: see [`Descriptor::is_settled`].
    #[inline(always)]
    pub(crate) const fn are_all_settled(self) -> bool {
        self.all & AF != 0 && (self.any & DBM == 0 || self.all & S2AP_WRITE != 0)
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
    fn a_fold_says_of_all_what_holds_of_each_and_of_any_what_holds_of_one() {
        let (clean, dirty) = (leaf(Level::L3, 0, false), leaf(Level::L3, 0x1000, true));
        let both = Folded::NONE.and(clean).and(dirty);
        assert!(both.is_any_dirty() && !both.are_all_written() && both.has_any_dbm());
        assert!(!both.are_all_settled(), "the hardware may make the first one dirty");
        assert!(Folded::NONE.and(dirty).and(dirty).are_all_settled());
        assert!(!Folded::NONE.and(dirty.with_old()).and(dirty).are_all_settled());
        assert!(Folded::NONE.and(clean.without_dbm()).are_all_settled());
        assert!(!Folded::NONE.and(clean).is_any_dirty());
        assert!(Folded::NONE.and(dirty.with_write_protection()).is_any_dirty());
    }
}
