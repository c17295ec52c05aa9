//! TLB invalidate operations for stage 2 and their operands (Arm ARM D8.17, "TLB maintenance").
//!
//! An operation by IPA is for all entries that hold the translation of that address at stage 2 *alone*; combined
//! stage-1-and-2 entries are cached by VA, which is why `VMALLE1` has to follow (rule 7 of the design).

use crate::addr::{Ipa, Level};

/// Which CPUs an invalidation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Scope {
    /// This CPU: the form without suffix.
    Local,
    /// All CPUs of the Inner Shareable domain: the IS form.
    InnerShareable,
}

/// A TLB invalidate instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Tlbi {
    /// `IPAS2E1`: stage-2 entries of all levels, table entries among them, for one address. With the leaf's level
    /// (FEAT_TTL) it is for leaves of that level only; never to be given after a table entry was changed.
    Ipa {
        /// An address in the page or block.
        ipa: Ipa,
        /// The TTL field of the operand, from [`ttl`].
        ttl: u8,
        /// Who.
        scope: Scope,
    },
    /// `RIPAS2E1`: the same for a range (FEAT_TLBIRANGE).
    IpaRange {
        /// Where and how far.
        operand: RangeOperand,
        /// Who.
        scope: Scope,
    },
    /// `VMALLE1`: stage-1 and combined entries of the VMID.
    Vmalle1 {
        /// Who.
        scope: Scope,
    },
    /// `VMALLS12E1`: all entries of the VMID.
    Vmalls12e1 {
        /// Who.
        scope: Scope,
    },
    /// `ALLE1`: all entries of all VMIDs.
    Alle1 {
        /// Who.
        scope: Scope,
    },
}

/// The TTL field (FEAT_TTL): granule and level of a leaf; 0 is "any level", right everywhere.
#[inline]
pub const fn ttl(page_shift: u32, leaf: Option<Level>) -> u8 {
    let Some(level) = leaf else { return 0 };
    granule_field(page_shift) << 2 | level as u8
}

/// The granule as TTL and TG encode it: 1, 2, 3 for 4K, 16K, 64K.
#[inline]
const fn granule_field(page_shift: u32) -> u8 {
    match page_shift {
        12 => 0b01,
        14 => 0b10,
        _ => 0b11,
    }
}

/// The operand of `TLBI IPAS2E1`: TTL\[47:44\], IPA\[51:12\] in \[39:0\].
#[inline]
pub const fn ipa_operand(ipa: Ipa, ttl: u8) -> u64 {
    (ttl as u64) << 44 | (ipa.raw() >> 12) & ((1 << 40) - 1)
}

/// The operand of a range invalidation: `(num + 1) << (5 * scale + 1)` pages from a base on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RangeOperand {
    /// The first address.
    pub base: Ipa,
    /// log2 of the page's bytes.
    pub page_shift: u32,
    /// SCALE, 0 to 3.
    pub scale: u8,
    /// NUM, 0 to 31.
    pub num: u8,
    /// TTL\[1:0\], the leaf's level; 0 is "any".
    pub level: u8,
}

impl RangeOperand {
    /// The largest range with `scale` that is not more than `pages` from `base` on, and how many pages it covers;
    /// `None` if `pages` is too few for that scale.
    #[inline]
    pub const fn largest(
        base: Ipa,
        page_shift: u32,
        pages: u64,
        scale: u8,
        leaf: Option<Level>,
    ) -> Option<(Self, u64)> {
        let unit = 5 * scale as u32 + 1;
        let units = pages >> unit;
        if units == 0 {
            return None;
        }
        let units = if units > 32 { 32 } else { units };
        let level = match leaf {
            Some(level) => level as u8,
            None => 0,
        };
        Some((Self { base, page_shift, scale, num: (units - 1) as u8, level }, units << unit))
    }

    /// The pages covered.
    #[inline]
    pub const fn pages(self) -> u64 {
        (self.num as u64 + 1) << (5 * self.scale as u32 + 1)
    }

    /// TG\[47:46\], SCALE\[45:44\], NUM\[43:39\], TTL\[38:37\], BaseADDR\[36:0\] in units of the granule.
    #[inline]
    pub const fn raw(self) -> u64 {
        (granule_field(self.page_shift) as u64) << 46
            | (self.scale as u64 & 3) << 44
            | (self.num as u64 & 31) << 39
            | (self.level as u64 & 3) << 37
            | (self.base.raw() >> self.page_shift) & ((1 << 37) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_never_more_than_asked_and_at_most_32_units_of_its_scale() {
        for pages in [1u64, 2, 3, 63, 64, 65, 511, 512, 4096, 1 << 18, 1 << 22] {
            for scale in 0..4 {
                if let Some((operand, covered)) = RangeOperand::largest(Ipa::new(0), 12, pages, scale, None) {
                    assert!(covered <= pages && covered == operand.pages());
                    assert!(operand.num < 32);
                }
            }
        }
        assert_eq!(RangeOperand::largest(Ipa::new(0), 12, 1, 0, None), None);
    }

    #[test]
    fn operands_have_their_fields_where_the_arm_arm_has_them() {
        assert_eq!(ipa_operand(Ipa::new(0x4000_3000), ttl(12, Some(Level::L3))), 0b0111 << 44 | 0x40003);
        assert_eq!(ipa_operand(Ipa::new(0x4000_3000), ttl(12, None)), 0x40003);
        let (operand, pages) = RangeOperand::largest(Ipa::new(0x20_0000), 12, 512, 1, Some(Level::L3)).unwrap();
        assert_eq!(pages, 512);
        assert_eq!(operand.raw(), 0b01 << 46 | 1 << 44 | 7 << 39 | 3 << 37 | 0x200);
    }
}
