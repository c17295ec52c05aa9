//! The shape of tables and what 64 bits mean to the hardware, from the Arm ARM alone: written a second time here, so that the
//! checker does not repeat a mistake of the library's.

use crate::arch::Stage2Registers;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// MemAttr, SH, nT and Contiguous: what may not differ between two entries for one address (R_WHZWS).
const NEEDS_BREAK: u64 = 0b1111 << 2 | 0b11 << 8 | 1 << 52;
const AF: u64 = 1 << 10;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
const DBM: u64 = 1 << 51;

/// The level of pages.
pub(super) const LEAF: u8 = 3;

/// The granule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// log2 of the bytes of a page.
    pub page_shift: u32,
    /// log2 of the descriptors of a table.
    pub index_bits: u32,
}

impl Shape {
    /// log2 of the bytes that an entry of `level` translates.
    pub(super) fn shift(self, level: u8) -> u32 {
        self.page_shift + u32::from(LEAF - level) * self.index_bits
    }

    pub(super) fn entries(self) -> usize {
        1 << self.index_bits
    }

    pub(super) fn page(self) -> u64 {
        1 << self.page_shift
    }

    /// The granule as TG and TTL encode it.
    pub(super) fn code(self) -> u64 {
        match self.page_shift {
            12 => 0b01,
            14 => 0b10,
            _ => 0b11,
        }
    }
}

/// A root, as VTCR_EL2 and VTTBR_EL2 describe it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Root {
    pub(super) pa: u64,
    pub(super) vmid: u16,
    pub(super) level: u8,
    /// log2 of the bytes that all of it translates.
    pub(super) bits: u32,
    /// HA and HD.
    pub(super) updates: (bool, bool),
}

impl Root {
    /// `None` where no root is loaded.
    pub(super) fn of(registers: Stage2Registers, shape: Shape) -> Option<Self> {
        let Stage2Registers { vtcr, vttbr, .. } = registers;
        let pa = vttbr & 0x0000_ffff_ffff_fffe;
        if pa == 0 {
            return None;
        }
        let (lowest, sl0) = (if shape.page_shift == 12 { 2u64 } else { 3 }, vtcr >> 6 & 0b11);
        // With the 4K granule 0b11 is level 3 (FEAT_TTST).
        let level = if shape.page_shift == 12 && sl0 == 0b11 { 3 } else { lowest.saturating_sub(sl0) };
        let vmid = (vttbr >> 48) as u16;
        let vmid = if vtcr & 1 << 19 != 0 { vmid } else { vmid & 0xff };
        let updates = (vtcr & 1 << 21 != 0, vtcr & 1 << 22 != 0);
        Some(Self { pa, vmid, level: level as u8, bits: 64 - (vtcr & 0x3f) as u32, updates })
    }

    /// Concatenated tables.
    pub(super) fn tables(self, shape: Shape) -> u64 {
        1 << self.bits.saturating_sub(shape.shift(self.level) + shape.index_bits)
    }
}

/// What a descriptor is to the hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    Invalid,
    Table(u64),
    Leaf(u64),
}

/// Whether the hardware takes it for something, at some level.
pub(super) fn is_valid(value: u64) -> bool {
    value & VALID != 0
}

pub(super) fn meaning(value: u64, level: u8, shape: Shape) -> Meaning {
    let address = value & ADDRESS & !(shape.page() - 1);
    match (is_valid(value), value & TABLE_OR_PAGE != 0) {
        (false, _) => Meaning::Invalid,
        (true, true) if level < LEAF => Meaning::Table(address),
        (true, true) => Meaning::Leaf(address),
        (true, false) if level == 1 || level == 2 => Meaning::Leaf(address & !((1 << shape.shift(level)) - 1)),
        // Reserved.
        (true, false) => Meaning::Invalid,
    }
}

/// Whether two valid entries for one address at one level may not both be in TLBs.
pub(super) fn conflict(one: u64, other: u64, level: u8, shape: Shape) -> bool {
    match (meaning(one, level, shape), meaning(other, level, shape)) {
        (Meaning::Table(one), Meaning::Table(other)) => one != other,
        (Meaning::Leaf(here), Meaning::Leaf(there)) => here != there || (one ^ other) & NEEDS_BREAK != 0,
        (Meaning::Invalid, _) | (_, Meaning::Invalid) => false,
        _ => true,
    }
}

/// What the guest tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Load,
    /// A store.
    Store,
    /// An instruction fetch.
    Fetch,
    /// A walk of its own tables, at the address itself: not translated by stage 1.
    Stage1Walk,
    /// The same, to set an access flag of its own.
    Stage1Update,
}

impl Access {
    /// Whether it needs the write permission.
    pub(in crate::model) fn writes(self) -> bool {
        matches!(self, Self::Store | Self::Stage1Update)
    }
}

/// A valid leaf as the hardware uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::model) struct Leaf(u64);

impl Leaf {
    pub(super) fn new(value: u64) -> Self {
        Self(value)
    }

    pub(in crate::model) fn raw(self) -> u64 {
        self.0
    }

    /// The block or page of `1 << shift` bytes.
    pub(in crate::model) fn frame(self, shift: u32) -> u64 {
        self.0 & ADDRESS & !((1 << shift) - 1)
    }

    /// Whether S2AP and XN\[1:0\] let it pass; a fetch is EL1's.
    pub(in crate::model) fn permits(self, access: Access) -> bool {
        match access {
            Access::Load | Access::Stage1Walk => self.0 & S2AP_READ != 0,
            Access::Store | Access::Stage1Update => self.0 & S2AP_WRITE != 0,
            Access::Fetch => matches!(self.0 >> 53 & 0b11, 0b00 | 0b11),
        }
    }

    pub(in crate::model) fn is_accessed(self) -> bool {
        self.0 & AF != 0
    }

    pub(in crate::model) fn with_accessed(self) -> Self {
        Self(self.0 | AF)
    }

    /// Whether the hardware may give the write permission itself.
    pub(in crate::model) fn has_dbm(self) -> bool {
        self.0 & DBM != 0
    }

    pub(in crate::model) fn with_write(self) -> Self {
        Self(self.0 | S2AP_WRITE)
    }

    pub(in crate::model) fn is_the_same_but_for_updates(self, value: u64) -> bool {
        (self.0 ^ value) & !(AF | S2AP_WRITE) == 0
    }
}
