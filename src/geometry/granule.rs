//! The granule: the size of a page and of a table, and with it all index arithmetic.
//!
//! A table of the granule `G` is one page of `1 << G::PAGE_SHIFT` bytes and holds `1 << G::INDEX_BITS`
//! descriptors; each level resolves `INDEX_BITS` bits of the address. The three granules of the architecture
//! differ in these two numbers and in the value of `VTCR_EL2.TG0`; everything else follows. The granule is a type,
//! so that shifts and masks are constants where a walk uses them.

use crate::addr::{Ipa, Level};

mod sealed {
    pub trait Sealed {}
}

/// A translation granule of the architecture (Arm ARM D8.2).
pub trait Granule: sealed::Sealed + Copy + Send + Sync + core::fmt::Debug + 'static {
    /// log2 of the bytes of a page, and of a table.
    const PAGE_SHIFT: u32;
    /// log2 of the descriptors of a table: the address bits one level resolves.
    const INDEX_BITS: u32;
    /// The value of `VTCR_EL2.TG0`.
    const TG0: u64;

    /// The first level that has blocks, without the 52-bit forms of descriptors (Arm ARM D8.3, "VMSAv8-64 translation table format descriptors").
    const FIRST_BLOCK_LEVEL: Level = if Self::PAGE_SHIFT == 12 { Level::L1 } else { Level::L2 };

    /// Bytes of a page.
    const PAGE_SIZE: u64 = 1 << Self::PAGE_SHIFT;
    /// Descriptors of a table.
    const ENTRIES: usize = 1 << Self::INDEX_BITS;

    /// log2 of the bytes that one entry of a table of `level` covers.
    #[inline(always)]
    fn shift(level: Level) -> u32 {
        Self::PAGE_SHIFT + level.levels_below() * Self::INDEX_BITS
    }

    /// The bytes that one entry of a table of `level` covers.
    #[inline(always)]
    fn entry_size(level: Level) -> u64 {
        1 << Self::shift(level)
    }

    /// The index of the entry for `ipa` in its table of `level`. Concatenated roots are indexed by
    /// [`Geometry::root_index`](crate::geometry::Geometry::root_index) first.
    #[inline(always)]
    fn index(ipa: Ipa, level: Level) -> usize {
        (ipa.raw() >> Self::shift(level)) as usize & (Self::ENTRIES - 1)
    }

    /// The first address that the table of `level` over `ipa` covers.
    #[inline(always)]
    fn table_base(ipa: Ipa, level: Level) -> Ipa {
        ipa.align_down(Self::shift(level) + Self::INDEX_BITS)
    }

    /// The last address that the table of `level` over `ipa` covers.
    #[inline(always)]
    fn table_last(ipa: Ipa, level: Level) -> Ipa {
        Ipa::new(ipa.raw() | ((1 << (Self::shift(level) + Self::INDEX_BITS)) - 1))
    }

    /// The last address that the entry for `ipa` in its table of `level` covers.
    #[inline(always)]
    fn entry_last(ipa: Ipa, level: Level) -> Ipa {
        Ipa::new(ipa.raw() | (Self::entry_size(level) - 1))
    }
}

macro_rules! granule {
    ($(#[$doc:meta])* $name:ident, $page_shift:expr, $index_bits:expr, $tg0:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl Granule for $name {
            const PAGE_SHIFT: u32 = $page_shift;
            const INDEX_BITS: u32 = $index_bits;
            const TG0: u64 = $tg0;
        }
    };
}

granule! {
    /// 4 KiB pages, 512 descriptors a table; blocks of 2 MiB and 1 GiB.
    Granule4K, 12, 9, 0b00
}
granule! {
    /// 16 KiB pages, 2048 descriptors a table; blocks of 32 MiB.
    Granule16K, 14, 11, 0b10
}
granule! {
    /// 64 KiB pages, 8192 descriptors a table; blocks of 512 MiB.
    Granule64K, 16, 13, 0b01
}
#[cfg(any(test, loom, shuttle, feature = "model"))]
granule! {
    /// 4 KiB pages, but tables of two descriptors only: small enough for a model checker to see all of a tree.
    /// No hardware has it.
    GranuleTiny, 12, 1, 0b00
}
