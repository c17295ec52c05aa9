//! When a change of a descriptor takes break-before-make (rule 6): the one predicate, [`needs_break`].
//!
//! FEAT_BBM would spare some changes the break; nothing here makes use of it. Its nT, bit 16 of a block, is never set,
//! and taken for a bit of the address.

use super::{CONTIGUOUS, Descriptor, Kind, MEM_ATTR_SHIFT, SH_SHIFT};
use crate::addr::Level;

/// Whether `old` must be broken, and invalidated, before `new` takes its place in a table of `level`: Arm ARM R_WHZWS,
/// D8.16.1 "Using break-before-make when updating translation table entries".
///
/// The rule is about a valid entry that becomes another valid entry. What is not valid is in no TLB, or is the break.
///
/// | change | break | why |
/// |---|---|---|
/// | block to table, table to block | yes | block size: R_WHZWS |
/// | one table to another | yes | output addresses and block sizes below it |
/// | output address | yes | R_WHZWS, if either is writable or the contents differ: the latter no descriptor tells |
/// | memory type, cacheability (MemAttr) | yes | R_WHZWS |
/// | shareability (SH) | yes | R_WHZWS, with the memory type |
/// | Contiguous | yes | block size, as a TLB sees it |
/// | S2AP, XN | no | permissions; stricter ones hold only after an invalidation |
/// | AF, DBM, dirty state | no | likewise |
/// | software bits | no | the hardware ignores them |
#[doc(alias = "is_bbm_safe")]
#[inline]
pub const fn needs_break(old: Descriptor, new: Descriptor, level: Level) -> bool {
    const MEMORY: u64 = 0b1111 << MEM_ATTR_SHIFT | 0b11 << SH_SHIFT | CONTIGUOUS;
    let moved = old.address().raw() != new.address().raw();
    match (old.kind(level), new.kind(level)) {
        (Kind::Table(_), Kind::Table(_)) => moved,
        (Kind::Table(_), Kind::Block(_)) | (Kind::Block(_), Kind::Table(_)) => true,
        (Kind::Page(_), Kind::Page(_)) | (Kind::Block(_), Kind::Block(_)) => moved || (old.0 ^ new.0) & MEMORY != 0,
        // One of the two is not valid, or reserved, which is the same to the hardware.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Pa;
    use crate::descriptor::{Attributes, Format, Marker, MemoryType, Permissions, Shareability};

    const FRAME: Pa = Pa::new(0x4000_0000);
    const NORMAL: Attributes = Attributes::normal(Permissions::RW);

    fn leaf(level: Level, pa: Pa, attributes: Attributes) -> Descriptor {
        Format { dbm: true, xnx: true, ..Format::default() }.leaf(level, pa, attributes, false)
    }

    fn either_way(one: Descriptor, other: Descriptor, level: Level) -> bool {
        let there = needs_break(one, other, level);
        assert_eq!(there, needs_break(other, one, level));
        there
    }

    #[test]
    fn from_and_to_invalid_there_is_nothing_to_break() {
        let page = leaf(Level::L3, FRAME, NORMAL);
        let table = Descriptor::table(FRAME);
        for (valid, level) in [(page, Level::L3), (table, Level::L2), (leaf(Level::L2, FRAME, NORMAL), Level::L2)] {
            assert!(!either_way(valid, Descriptor::NONE, level));
            for why in [
                Marker::Frozen,
                Marker::Breaking,
                Marker::Removing,
                Marker::Claimed,
                Marker::Detached,
                Marker::Collapsing,
            ] {
                assert!(!either_way(valid, valid.into_marker(why), level));
            }
        }
    }

    #[test]
    fn between_table_and_block_and_between_tables_there_is() {
        let table = Descriptor::table(FRAME);
        assert!(either_way(table, leaf(Level::L2, FRAME, NORMAL), Level::L2));
        assert!(either_way(table, Descriptor::table(FRAME.offset(0x1000)), Level::L2));
        assert!(!needs_break(table, table, Level::L2));
    }

    #[test]
    fn another_address_memory_type_shareability_or_contiguity_is_a_break() {
        for level in [Level::L2, Level::L3] {
            let old = leaf(level, FRAME, NORMAL);
            assert!(either_way(old, leaf(level, FRAME.offset(0x20_0000), NORMAL), level));
            for memory in [MemoryType::NormalNonCacheable, MemoryType::DeviceNGnRE] {
                assert!(either_way(old, leaf(level, FRAME, Attributes { memory, ..NORMAL }), level));
            }
            for shareability in [Shareability::Non, Shareability::Outer] {
                assert!(either_way(old, leaf(level, FRAME, Attributes { shareability, ..NORMAL }), level));
            }
            assert!(either_way(old, Format::default().with_contiguous(old), level));
        }
    }

    #[test]
    fn permissions_access_flag_dirty_state_and_software_bits_are_none() {
        let format = Format { xnx: true, ..Format::default() };
        for level in [Level::L2, Level::L3] {
            let old = leaf(level, FRAME, NORMAL);
            assert!(old.has_dbm());
            for permissions in [Permissions::R, Permissions::RW, Permissions::RX, Permissions::RWX] {
                // Without DBM, which `old` has.
                assert!(!either_way(old, format.with_permissions(old, permissions), level));
            }
            let dirty = old.with_dirty();
            for new in [dirty, dirty.with_write_protection(), old.with_old()] {
                assert_ne!(new, old);
                assert!(!either_way(old, new, level));
            }
        }
    }
}
