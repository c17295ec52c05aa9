//! What a TLB invalidate instruction surely covers, from its bits (Arm ARM, the register-operand descriptions of the `TLBI`
//! instructions).

use super::event::{Instruction, Invalidate};
use super::shape::{LEAF, Meaning, Shape, meaning};
use super::tlb::{Cached, Place};

/// What is covered of stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Coverage {
    /// Combined entries of the VMID.
    Combined,
    /// Everything of the VMID.
    Vmid,
    /// Everything.
    All,
    /// Entries of the VMID for an address of a range.
    Range {
        first: u64,
        last: u64,
        /// Leaves of this level alone.
        level: Option<u8>,
        /// Leaves alone.
        leaf_only: bool,
    },
    /// Nothing that one could rely on.
    Nothing,
}

impl Coverage {
    pub(super) fn of(operation: Invalidate, shape: Shape) -> Self {
        let leaf_only = matches!(operation.instruction, Instruction::Ipas2le1 | Instruction::Ripas2le1);
        match operation.instruction {
            Instruction::Vmalle1 => Self::Combined,
            Instruction::Vmalls12e1 => Self::Vmid,
            Instruction::Alle1 => Self::All,
            Instruction::Ipas2e1 | Instruction::Ipas2le1 => Self::one(operation.operand, shape, leaf_only),
            Instruction::Ripas2e1 | Instruction::Ripas2le1 => Self::range(operation.operand, shape, leaf_only),
        }
    }

    /// IPA\[51:12\] in bits 39:0, TTL in bits 47:44: TTL\[3:2\] is the granule, 0 for "any level"; TTL\[1:0\] the level.
    fn one(operand: u64, shape: Shape, leaf_only: bool) -> Self {
        let first = (operand & ((1 << 40) - 1)) << 12;
        let ttl = operand >> 44 & 0b1111;
        let level = match (ttl >> 2, ttl & 0b11) {
            (0, _) => None,
            (granule, _) if granule != shape.code() => return Self::Nothing,
            // Reserved, and treated as no hint, without LPA2.
            (_, 0) => None,
            (_, level) => Some(level as u8),
        };
        Self::Range { first, last: first, level, leaf_only }
    }

    /// BaseADDR in bits 36:0, in granules; TTL in 38:37; NUM in 43:39; SCALE in 45:44; TG in 47:46.
    fn range(operand: u64, shape: Shape, leaf_only: bool) -> Self {
        if operand >> 46 & 0b11 != shape.code() {
            return Self::Nothing;
        }
        let first = (operand & ((1 << 37) - 1)) << shape.page_shift;
        let (num, scale) = (operand >> 39 & 0b1_1111, operand >> 44 & 0b11);
        let bytes = (num + 1) << (5 * scale + 1) << shape.page_shift;
        let level = match operand >> 37 & 0b11 {
            0 => None,
            level => Some(level as u8),
        };
        Self::Range { first, last: first + (bytes - 1), level, leaf_only }
    }

    /// Whether a cached descriptor is covered, as far as VMIDs are the same.
    pub(super) fn covers(self, place: Place, cached: &Cached, shape: Shape) -> bool {
        match self {
            Self::Combined | Self::Nothing => false,
            Self::Vmid | Self::All => true,
            Self::Range { first, last, level, leaf_only } => {
                let end = place.ipa + ((1 << shape.shift(place.level)) - 1);
                let is_table = matches!(meaning(cached.value, place.level, shape), Meaning::Table(_));
                let at_level = match level {
                    None => !(leaf_only && is_table),
                    Some(level) => !is_table && level == place.level,
                };
                place.level <= LEAF && place.ipa <= last && first <= end && at_level
            }
        }
    }
}
