//! Stage-2 descriptors: the 64 bits that both we and the hardware read.
//!
//! A valid descriptor is Arm's (Arm ARM D8.3, "VMSAv8-64 translation table format descriptors"). An invalid one (bit 0
//! clear) is ours but for that bit: it is [`Descriptor::NONE`], or a *marker*, which keeps what the valid entry said and why it is
//! not valid now.
//!
//! | bits | valid leaf | marker |
//! |---|---|---|
//! | 0 | 1 | 0 |
//! | 1 | page or table / block | kept |
//! | 5:2 | MemAttr | kept |
//! | 7:6 | S2AP; bit 7 is write permission and so *dirty* | kept: dirty is the same bit |
//! | 9:8, 10 | SH, AF | kept |
//! | 47:12 | output address | kept |
//! | 51 | DBM | kept |
//! | 52, 54:53 | Contiguous, XN | kept |
//! | 55 | software: the guest may write here | kept |
//! | 58:56 | 0 | why: [`Marker`] |
//! | 63 | software: dirty without write permission | kept |
//!
//! A [`Marker::Removing`] never becomes valid again: it keeps the output address, the memory type, the dirty state and, in bit 6, the access
//! flag, and bits 11:8, 55:48 and 62:59 say which CPU removes it.
//!
//! # Dirty
//! Write permission, S2AP\[1\], *is* dirty, always, logging or not. A writable page is *writable-dirty* (bit 7 set) or
//! *writable-clean* (bit 7 clear, bit 55 set); what the guest may not write has both clear. A page that is dirty and loses its write
//! permission, or that has new content and never had it, is dirty by bit 63, until it is cleaned as all others are. Where this tree lets the hardware
//! manage dirty state, writable-clean also has DBM set and the hardware sets bit 7; elsewhere the first write faults.

mod attributes;
mod bbm;
mod folded;

pub use attributes::{Attributes, Format, MemoryType, Permissions, S2Ap, Shareability, Xn};
pub use bbm::needs_break;
pub(crate) use folded::{Folded, LeafForm, Run};

use core::fmt;

use crate::addr::{Level, Pa};

const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
const MEM_ATTR_SHIFT: u32 = 2;
const MEM_ATTR: u64 = 0b1111 << MEM_ATTR_SHIFT;
const S2AP_SHIFT: u32 = 6;
const S2AP_WRITE: u64 = 1 << 7;
const SH_SHIFT: u32 = 8;
const AF: u64 = 1 << 10;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const DBM: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;
const XN_SHIFT: u32 = 53;
/// The access flag of what is being removed.
const REMOVED_AF: u64 = 1 << 6;
const SOFT_WRITABLE: u64 = 1 << 55;
const SOFT_DIRTY: u64 = 1 << 63;
const MARKER_SHIFT: u32 = 56;
const MARKER: u64 = 0b111 << MARKER_SHIFT;

/// A descriptor of a stage-2 table: see the [module](self).
#[doc(alias("pte", "pmd", "pud", "pgd"))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Descriptor(u64);

/// Why an entry that holds something is not valid now. Whoever meets a marker waits or takes its fault again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Marker {
    /// The root entry of a frozen guest: everything below is as it was.
    Frozen = 1,
    /// The break of a break-before-make: the make follows.
    Breaking = 2,
    /// Unmapped, but not yet invalidated: some CPU may still use it through its TLB.
    Removing = 3,
    /// Unmapped and invalidated; one unmapper is handing the frame back.
    Claimed = 4,
    /// An empty table was taken out here and some walk cache may still lead to it: nothing is mapped, and another table
    /// follows only after the flush.
    Detached = 5,
    /// The table behind it is being collapsed to a block: for software everything below is as it was.
    Collapsing = 6,
}

/// What a descriptor is, given the level it was found at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Kind {
    /// Nothing.
    Invalid,
    /// Something, but not valid now.
    Marker(Marker),
    /// The next table is at this address.
    Table(Pa),
    /// A block (levels 1 and 2).
    Block(Pa),
    /// A page (level 3).
    Page(Pa),
    /// Reserved by the architecture at this level, or a marker nobody makes: never followed.
    Reserved,
}

impl Descriptor {
    /// Invalid, and nothing is kept.
    pub const NONE: Self = Self(0);

    /// The bits that say all but which frame or table it is.
    pub(crate) const ALL_BUT_ADDRESS: u64 = !ADDRESS;

    /// The descriptor with these 64 bits.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64 bits.
    #[inline(always)]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// A table descriptor: the next table is at `table`.
    #[inline(always)]
    pub const fn table(table: Pa) -> Self {
        Self(table.raw() & ADDRESS | TABLE_OR_PAGE | VALID)
    }

    /// Whether the hardware may use it.
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Whether nothing is mapped and nothing is kept.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// What it is, in a table of `level`.
    #[inline(always)]
    pub const fn kind(self, level: Level) -> Kind {
        let leaf_level = matches!(level, Level::L3);
        if self.is_none() {
            return Kind::Invalid;
        }
        if !self.is_valid() {
            return match self.marker() {
                // Made of a table's entry, and of nothing else.
                Some(Marker::Collapsing) if self.next_table(level).is_none() => Kind::Reserved,
                Some(marker) => Kind::Marker(marker),
                None => Kind::Reserved,
            };
        }
        match (self.0 & TABLE_OR_PAGE != 0, leaf_level) {
            (true, true) => Kind::Page(self.address()),
            (true, false) => Kind::Table(self.address()),
            (false, false) if !matches!(level, Level::L0) => Kind::Block(self.address()),
            (false, _) => Kind::Reserved,
        }
    }

    /// The table it points to, in a table of `level`; a table behind a [`Marker::Frozen`] or a [`Marker::Collapsing`] too:
    /// software goes on looking where the hardware must not.
    #[inline(always)]
    pub const fn next_table(self, level: Level) -> Option<Pa> {
        let is_behind = match self.marker() {
            Some(Marker::Frozen | Marker::Collapsing) => true,
            Some(_) => false,
            None => self.is_valid(),
        };
        let through = is_behind && self.0 & TABLE_OR_PAGE != 0;
        if through && !matches!(level, Level::L3) { Some(self.address()) } else { None }
    }

    /// Whether the hardware goes on in the table it points to, in a table above level 3.
    #[inline(always)]
    pub(crate) const fn is_valid_table(self) -> bool {
        self.0 & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE
    }

    /// Whether it maps memory, or did before it became a marker, in a table of `level`.
    #[inline(always)]
    pub const fn is_leaf(self, level: Level) -> bool {
        !self.is_none() && self.next_table(level).is_none() && !matches!(self.marker(), Some(Marker::Detached))
    }

    /// The output address, of a marker too.
    #[inline(always)]
    pub const fn address(self) -> Pa {
        Pa::new(self.0 & ADDRESS)
    }

    /// Why it is not valid now, if it is a marker.
    #[inline(always)]
    pub const fn marker(self) -> Option<Marker> {
        if self.is_valid() {
            return None;
        }
        match (self.0 & MARKER) >> MARKER_SHIFT {
            1 => Some(Marker::Frozen),
            2 => Some(Marker::Breaking),
            3 => Some(Marker::Removing),
            4 => Some(Marker::Claimed),
            5 => Some(Marker::Detached),
            6 => Some(Marker::Collapsing),
            _ => None,
        }
    }

    /// The same content, not valid, for the reason `why`.
    #[inline(always)]
    pub const fn into_marker(self, why: Marker) -> Self {
        Self(self.0 & !(VALID | MARKER) | (why as u64) << MARKER_SHIFT)
    }

    /// The frame, its memory type, dirty state and access flag, being removed by the CPU numbered `remover`.
    #[inline(always)]
    pub const fn into_removing(self, remover: u16) -> Self {
        let cpu = remover as u64;
        let remover = (cpu & 0xff) << 48 | (cpu >> 8 & 0xf) << 59 | (cpu >> 12) << 8;
        let accessed = if self.is_accessed() { REMOVED_AF } else { 0 };
        Self(self.0 & (ADDRESS | MEM_ATTR | S2AP_WRITE | SOFT_DIRTY) | accessed | remover).into_marker(Marker::Removing)
    }

    /// Of what is being removed, or handed back: whether an access had gone through it.
    #[inline(always)]
    pub const fn was_accessed(self) -> bool {
        self.0 & REMOVED_AF != 0
    }

    /// The number of the CPU that removes it, if it is a [`Marker::Removing`].
    #[inline(always)]
    pub const fn remover(self) -> Option<u16> {
        match self.marker() {
            Some(Marker::Removing) => {
                Some((self.0 >> 48 & 0xff | (self.0 >> 59 & 0xf) << 8 | (self.0 >> 8 & 0xf) << 12) as u16)
            }
            _ => None,
        }
    }

    /// Whether it is a [`Marker::Removing`].
    #[inline(always)]
    pub(crate) const fn is_removing(self) -> bool {
        matches!(self.marker(), Some(Marker::Removing))
    }

    /// What a marker stands for, valid again; [`Self::NONE`] if it stands for nothing.
    #[inline(always)]
    pub const fn from_marker(self) -> Self {
        let content = self.0 & !MARKER;
        if content == 0 { Self::NONE } else { Self(content | VALID) }
    }

    /// Of a block, the leaf of the level below, `child`, at `offset` from its beginning.
    #[inline(always)]
    pub const fn part(self, child: Level, offset: u64) -> Self {
        let page = if matches!(child, Level::L3) { TABLE_OR_PAGE } else { 0 };
        Self((self.0 | page).wrapping_add(offset))
    }

    /// Whether the page was written since it was last cleaned. True of markers too.
    #[inline(always)]
    pub const fn is_dirty(self) -> bool {
        self.0 & (S2AP_WRITE | SOFT_DIRTY) != 0
    }

    /// Whether a store of the guest passes, without a fault.
    #[inline(always)]
    pub const fn grants_write(self) -> bool {
        self.0 & (S2AP_WRITE | VALID) == S2AP_WRITE | VALID
    }

    /// Write permission taken, dirty as it was.
    #[inline(always)]
    pub const fn with_write_protection(self) -> Self {
        let dirty = if self.is_dirty() { SOFT_DIRTY } else { 0 };
        Self(self.0 & !S2AP_WRITE | dirty)
    }

    /// Whether the guest may write here: at once if it is dirty, after a fault or through DBM if it is clean.
    #[inline(always)]
    pub const fn is_writable(self) -> bool {
        self.0 & SOFT_WRITABLE != 0
    }

    /// Whether an access went through it (the access flag).
    #[inline(always)]
    pub const fn is_accessed(self) -> bool {
        self.0 & AF != 0
    }

    /// Whether the hardware may set the dirty bit.
    #[inline(always)]
    pub const fn has_dbm(self) -> bool {
        self.0 & (DBM | VALID) == DBM | VALID
    }

    /// DBM, if the guest may write here: the hardware notes the first store. Nothing else changes.
    #[inline(always)]
    pub const fn with_dbm(self) -> Self {
        if self.is_writable() { Self(self.0 | DBM) } else { self }
    }

    /// No DBM: the first store to a clean page faults. Nothing else changes.
    #[inline(always)]
    pub const fn without_dbm(self) -> Self {
        Self(self.0 & !DBM)
    }

    /// Whether the hardware has nothing to write to this leaf: it sets the access flag, and S2AP\[1\] where DBM is, and clears neither.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.is_accessed() && (self.0 & DBM == 0 || self.0 & S2AP_WRITE != 0)
    }

    /// Whether the contiguous hint is set.
    #[inline(always)]
    pub const fn is_contiguous(self) -> bool {
        self.0 & CONTIGUOUS != 0
    }

    /// Write permission given: writable-dirty. Nothing else changes.
    #[inline(always)]
    pub const fn with_dirty(self) -> Self {
        Self(self.0 & !SOFT_DIRTY | S2AP_WRITE)
    }

    /// Clean, and so without write permission: writable-clean, or read-only as it was.
    #[inline(always)]
    pub const fn with_clean(self) -> Self {
        Self(self.0 & !(S2AP_WRITE | SOFT_DIRTY))
    }

    /// The access flag set.
    #[inline(always)]
    pub const fn with_accessed(self) -> Self {
        Self(self.0 | AF)
    }

    /// The access flag clear.
    #[inline(always)]
    pub const fn with_old(self) -> Self {
        Self(self.0 & !AF)
    }

    /// S2AP.
    #[inline]
    pub const fn s2ap(self) -> S2Ap {
        S2Ap::from_bits(self.0 >> S2AP_SHIFT)
    }

    /// XN\[1:0\].
    #[inline]
    pub const fn xn(self) -> Xn {
        Xn::from_bits(self.0 >> XN_SHIFT)
    }

    /// SH\[1:0\].
    #[inline]
    pub const fn shareability(self) -> Shareability {
        Shareability::from_bits(self.0 >> SH_SHIFT)
    }

    /// MemAttr\[3:0\] as they stand: what they mean depends on FWB, see [`Format::memory_type`].
    #[inline]
    pub const fn mem_attr(self) -> u8 {
        (self.0 >> MEM_ATTR_SHIFT) as u8 & 0xf
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_bits_are_a_table_above_and_a_page_at_level_3() {
        let entry = Descriptor::table(Pa::new(0x8000_1000));
        assert_eq!(entry.kind(Level::L2), Kind::Table(Pa::new(0x8000_1000)));
        assert_eq!(entry.kind(Level::L3), Kind::Page(Pa::new(0x8000_1000)));
        assert_eq!(entry.next_table(Level::L3), None);
    }

    #[test]
    fn a_block_where_the_architecture_has_none_is_reserved() {
        let block = Descriptor::from_raw(0x4000_0001);
        assert_eq!(block.kind(Level::L0), Kind::Reserved);
        assert_eq!(block.kind(Level::L2), Kind::Block(Pa::new(0x4000_0000)));
        assert_eq!(block.kind(Level::L3), Kind::Reserved);
    }

    #[test]
    fn software_looks_through_a_frozen_table_and_one_that_is_collapsing_and_through_no_other_marker() {
        let table = Descriptor::table(Pa::new(0x8000_1000));
        for why in [Marker::Frozen, Marker::Collapsing] {
            assert_eq!(table.into_marker(why).next_table(Level::L1), Some(Pa::new(0x8000_1000)));
        }
        for why in [Marker::Breaking, Marker::Removing, Marker::Claimed] {
            assert_eq!(table.into_marker(why).next_table(Level::L1), None);
        }
    }

    #[test]
    fn where_a_table_was_detached_nothing_is_mapped_and_nobody_looks_further() {
        let table = Pa::new(0x8000_1000);
        let detached = Descriptor::table(table).into_marker(Marker::Detached);
        assert_eq!(detached.kind(Level::L2), Kind::Marker(Marker::Detached));
        assert_eq!(detached.address(), table, "the reclaimer knows it by that");
        assert!(!detached.is_none(), "no other table takes the place before the flush");
        assert!(!detached.is_valid() && !detached.is_dirty());
        for level in [Level::L0, Level::L1, Level::L2] {
            assert_eq!(detached.next_table(level), None);
            assert!(!detached.is_leaf(level));
        }
        assert_eq!(detached.remover(), None);
    }

    #[test]
    fn write_protection_keeps_the_dirty_state_and_cleaning_ends_it() {
        let dirty = Descriptor::table(Pa::new(0x1000)).with_dirty();
        let protected = dirty.with_write_protection();
        assert!(protected.is_dirty() && !protected.grants_write());
        assert!(!protected.with_clean().is_dirty());
        assert_eq!(protected.with_dirty(), dirty);
        let clean = dirty.with_clean();
        assert_eq!(clean.with_write_protection(), clean);
    }

    #[test]
    fn a_frozen_hole_thaws_to_a_hole() {
        let hole = Descriptor::NONE.into_marker(Marker::Frozen);
        assert!(!hole.is_none());
        assert_eq!(hole.from_marker(), Descriptor::NONE);
    }

    proptest! {
        #[test]
        fn a_marker_keeps_everything_a_leaf_says(
            page in 0u64..1 << 36, write: bool, dirty: bool, accessed: bool, fwb: bool, xnx: bool,
        ) {
            let format = Format { fwb, xnx, ..Format::default() };
            let attributes = Attributes::normal(if write { Permissions::RWX } else { Permissions::RX });
            let mut leaf = format.leaf(Level::L3, Pa::new(page << 12), attributes, dirty);
            if !accessed {
                leaf = leaf.with_old();
            }
            for why in [Marker::Frozen, Marker::Breaking] {
                let marker = leaf.into_marker(why);
                prop_assert!(!marker.is_valid());
                prop_assert_eq!(marker.marker(), Some(why));
                prop_assert_eq!(marker.address(), leaf.address());
                prop_assert_eq!(marker.is_dirty(), dirty);
                prop_assert_eq!(marker.from_marker(), leaf);
            }
        }

        #[test]
        fn what_is_being_removed_keeps_its_frame_dirty_state_and_access_flag_and_knows_its_remover(
            page in 0u64..1 << 36, write: bool, dirty: bool, accessed: bool, remover: u16,
        ) {
            let attributes = Attributes::normal(if write { Permissions::RWX } else { Permissions::RX });
            let leaf = Format::default().leaf(Level::L3, Pa::new(page << 12), attributes, dirty);
            let removing = (if accessed { leaf } else { leaf.with_old() }).into_removing(remover);
            prop_assert_eq!(removing.kind(Level::L3), Kind::Marker(Marker::Removing));
            prop_assert_eq!(removing.remover(), Some(remover));
            for marker in [removing, removing.into_marker(Marker::Claimed)] {
                prop_assert_eq!(marker.address(), leaf.address());
                prop_assert_eq!(marker.is_dirty(), dirty);
                prop_assert_eq!(marker.was_accessed(), accessed);
                prop_assert_eq!(marker.mem_attr(), leaf.mem_attr());
            }
            prop_assert_eq!(removing.into_marker(Marker::Claimed).remover(), None);
        }
    }
}
