//! What a leaf grants: permissions, memory type, shareability; and how a tree encodes it.
//!
//! The encoding of MemAttr depends on FEAT_S2FWB and that of XN on FEAT_XNX: [`Format`] is the choice one tree has
//! made, the same for all its leaves.

use super::{
    AF, CONTIGUOUS, DBM, Descriptor, MEM_ATTR_SHIFT, S2AP_SHIFT, SH_SHIFT, SOFT_DIRTY, SOFT_WRITABLE, TABLE_OR_PAGE,
    VALID, XN_SHIFT,
};
use crate::addr::{Level, Pa};

/// Stage-2 data access permissions, S2AP\[1:0\] (Arm ARM D8.4.2, "stage 2 data access permissions").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum S2Ap {
    /// No access.
    None = 0b00,
    /// Reads only.
    ReadOnly = 0b01,
    /// Writes only.
    WriteOnly = 0b10,
    /// Reads and writes.
    ReadWrite = 0b11,
}

impl S2Ap {
    pub(super) const fn from_bits(bits: u64) -> Self {
        match bits & 0b11 {
            0b00 => Self::None,
            0b01 => Self::ReadOnly,
            0b10 => Self::WriteOnly,
            _ => Self::ReadWrite,
        }
    }
}

/// Stage-2 execute-never, XN\[1:0\] (Arm ARM D8.4.2). Without FEAT_XNX only [`Xn::Execute`] and
/// [`Xn::Never`] exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Xn {
    /// Executable at EL1 and EL0.
    Execute = 0b00,
    /// Executable at EL0 only.
    El0Only = 0b01,
    /// Not executable.
    #[default]
    Never = 0b10,
    /// Executable at EL1 only.
    El1Only = 0b11,
}

impl Xn {
    pub(super) const fn from_bits(bits: u64) -> Self {
        match bits & 0b11 {
            0b00 => Self::Execute,
            0b01 => Self::El0Only,
            0b10 => Self::Never,
            _ => Self::El1Only,
        }
    }
}

/// SH\[1:0\].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Shareability {
    /// Non-shareable (also the reserved value 0b01).
    Non = 0b00,
    /// Outer Shareable.
    Outer = 0b10,
    /// Inner Shareable.
    #[default]
    Inner = 0b11,
}

impl Shareability {
    pub(super) const fn from_bits(bits: u64) -> Self {
        match bits & 0b11 {
            0b10 => Self::Outer,
            0b11 => Self::Inner,
            _ => Self::Non,
        }
    }
}

/// The memory type stage 2 asks for, combined by the hardware with stage 1's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MemoryType {
    /// Normal, Inner and Outer Write-Back Cacheable. With FWB it is that whatever stage 1 says.
    #[default]
    Normal,
    /// Normal, Non-cacheable.
    NormalNonCacheable,
    /// Device-nGnRnE.
    DeviceNGnRnE,
    /// Device-nGnRE.
    DeviceNGnRE,
    /// Device-nGRE.
    DeviceNGRE,
    /// Device-GRE.
    DeviceGRE,
}

impl MemoryType {
    /// MemAttr\[3:0\] (Arm ARM D8.6.5 without, D8.6.6 with FEAT_S2FWB).
    const fn bits(self, fwb: bool) -> u64 {
        match (self, fwb) {
            (Self::Normal, false) => 0b1111,
            (Self::Normal, true) => 0b0110,
            (Self::NormalNonCacheable, _) => 0b0101,
            (Self::DeviceNGnRnE, _) => 0b0000,
            (Self::DeviceNGnRE, _) => 0b0001,
            (Self::DeviceNGRE, _) => 0b0010,
            (Self::DeviceGRE, _) => 0b0011,
        }
    }

    const fn from_bits(bits: u8, fwb: bool) -> Option<Self> {
        match (bits, fwb) {
            (0b1111, false) | (0b0110, true) => Some(Self::Normal),
            (0b0101, _) => Some(Self::NormalNonCacheable),
            (0b0000, _) => Some(Self::DeviceNGnRnE),
            (0b0001, _) => Some(Self::DeviceNGnRE),
            (0b0010, _) => Some(Self::DeviceNGRE),
            (0b0011, _) => Some(Self::DeviceGRE),
            _ => None,
        }
    }

    /// Whether it is Normal memory, which instructions are fetched from: an instruction cache may hold Non-cacheable memory,
    /// too.
    #[inline]
    pub const fn is_normal(self) -> bool {
        matches!(self, Self::Normal | Self::NormalNonCacheable)
    }
}

/// What the guest may do. Every mapping can be read: a stage-2 mapping without read permission cannot hold tables
/// of stage 1 and no caller has wanted one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Permissions {
    /// Stores, and stage 1's hardware updates.
    pub write: bool,
    /// Instruction fetches.
    pub execute: Xn,
}

impl Permissions {
    /// Reads only.
    pub const R: Self = Self { write: false, execute: Xn::Never };
    /// Reads and writes.
    pub const RW: Self = Self { write: true, execute: Xn::Never };
    /// Reads and fetches.
    pub const RX: Self = Self { write: false, execute: Xn::Execute };
    /// Everything.
    pub const RWX: Self = Self { write: true, execute: Xn::Execute };

    /// Whether all that `self` grants `other` grants too.
    #[inline]
    pub fn within(self, other: Self) -> bool {
        (!self.write || other.write)
            && (self.execute == Xn::Never || other.execute == Xn::Execute || self.execute == other.execute)
    }
}

/// What a mapping grants and how its memory behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Attributes {
    /// What the guest may do.
    pub permissions: Permissions,
    /// The memory type.
    pub memory: MemoryType,
    /// The shareability of Normal memory; Device memory is always Outer Shareable.
    pub shareability: Shareability,
}

impl Attributes {
    /// Normal Write-Back, Inner Shareable memory.
    pub const fn normal(permissions: Permissions) -> Self {
        Self { permissions, memory: MemoryType::Normal, shareability: Shareability::Inner }
    }

    /// A device that is passed through: Device-nGnRE, never executable.
    pub const fn device(write: bool) -> Self {
        Self {
            permissions: Permissions { write, execute: Xn::Never },
            memory: MemoryType::DeviceNGnRE,
            shareability: Shareability::Outer,
        }
    }
}

/// How one tree encodes its leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Format {
    /// HCR_EL2.FWB is set: stage 2's memory type overrides stage 1's.
    pub fwb: bool,
    /// FEAT_XNX: XN has two bits.
    pub xnx: bool,
    /// Leaves the guest may write have DBM: where VTCR_EL2.HD is set the hardware manages their dirty state.
    pub dbm: bool,
}

impl Format {
    /// A leaf for `level` that maps `pa`, accessed; dirty or clean as said.
    #[inline]
    pub const fn leaf(self, level: Level, pa: Pa, attributes: Attributes, dirty: bool) -> Descriptor {
        let page = matches!(level, Level::L3);
        let permissions = attributes.permissions;
        let mut raw = pa.raw() | VALID | AF;
        if page {
            raw |= TABLE_OR_PAGE;
        }
        raw |= attributes.memory.bits(self.fwb) << MEM_ATTR_SHIFT;
        raw |= (attributes.shareability as u64) << SH_SHIFT;
        raw |= self.permission_bits(permissions, dirty);
        Descriptor(raw)
    }

    /// `leaf` with other permissions; its dirty state stays.
    #[inline]
    pub const fn with_permissions(self, leaf: Descriptor, permissions: Permissions) -> Descriptor {
        const PERMISSION_BITS: u64 = 0b11 << S2AP_SHIFT | 0b11 << XN_SHIFT | DBM | SOFT_WRITABLE | SOFT_DIRTY;
        // What the hardware may note it goes on noting.
        let format = Self { dbm: self.dbm || leaf.has_dbm(), ..self };
        Descriptor(leaf.0 & !PERMISSION_BITS | format.permission_bits(permissions, leaf.is_dirty()))
    }

    const fn permission_bits(self, permissions: Permissions, dirty: bool) -> u64 {
        let mut bits = (S2Ap::ReadOnly as u64) << S2AP_SHIFT;
        if permissions.write {
            bits |= SOFT_WRITABLE;
            if dirty {
                bits |= (S2Ap::WriteOnly as u64) << S2AP_SHIFT;
            }
            if self.dbm {
                bits |= DBM;
            }
        } else if dirty {
            bits |= SOFT_DIRTY;
        }
        let xn = match (permissions.execute, self.xnx) {
            (xn, true) => xn as u64,
            (Xn::Execute, false) => Xn::Execute as u64,
            // Less than asked rather than more: one bit cannot tell EL0 from EL1.
            (_, false) => Xn::Never as u64,
        };
        bits | xn << XN_SHIFT
    }

    /// The permissions a leaf or a marker stands for: what the guest gets, at once or after a fault.
    #[inline]
    pub const fn permissions(self, leaf: Descriptor) -> Permissions {
        Permissions { write: leaf.is_writable(), execute: leaf.xn() }
    }

    /// The memory type of a leaf or a marker; `None` for an encoding that [`Self::leaf`] does not make.
    #[inline]
    pub const fn memory_type(self, leaf: Descriptor) -> Option<MemoryType> {
        MemoryType::from_bits(leaf.mem_attr(), self.fwb)
    }

    /// `leaf` with the contiguous hint, one of a whole group.
    #[inline]
    pub const fn with_contiguous(self, leaf: Descriptor) -> Descriptor {
        Descriptor(leaf.0 | CONTIGUOUS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_of_a_leaf_are_the_ones_the_arm_arm_gives() {
        let format = Format::default();
        let rwx = Attributes::normal(Permissions::RWX);
        let page = format.leaf(Level::L3, Pa::new(0x8000_0000), rwx, true);
        // V, page, WB WB, RW, Inner Shareable, AF; software writable
        assert_eq!(page.raw(), 0x8000_0000 | 0b11 | 0xf << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10 | 1 << 55);
        let block = format.leaf(Level::L2, Pa::new(0x8000_0000), Attributes::device(false), false);
        assert_eq!(block.raw(), 0x8000_0000 | 0b01 | 0b0001 << 2 | 0b01 << 6 | 0b10 << 8 | 1 << 10 | 0b10 << 53);
        let fwb = Format { fwb: true, ..format };
        assert_eq!(fwb.leaf(Level::L3, Pa::new(0), rwx, true).mem_attr(), 0b0110);
    }

    #[test]
    fn without_xnx_a_half_executable_page_is_not_executable() {
        let permissions = Permissions { write: false, execute: Xn::El0Only };
        let attributes = Attributes::normal(permissions);
        let one_bit = Format::default().leaf(Level::L3, Pa::new(0), attributes, false);
        assert_eq!(one_bit.xn(), Xn::Never);
        let two_bits = Format { xnx: true, ..Format::default() }.leaf(Level::L3, Pa::new(0), attributes, false);
        assert_eq!(two_bits.xn(), Xn::El0Only);
    }

    #[test]
    fn writable_clean_has_no_write_permission_and_knows_it_may_have_it() {
        let clean = Format::default().leaf(Level::L3, Pa::new(0), Attributes::normal(Permissions::RW), false);
        assert_eq!(clean.s2ap(), S2Ap::ReadOnly);
        assert!(clean.is_writable() && !clean.is_dirty() && !clean.has_dbm());
        assert_eq!(clean.with_dirty().s2ap(), S2Ap::ReadWrite);
        let hardware = Format { dbm: true, ..Format::default() };
        assert!(hardware.leaf(Level::L3, Pa::new(0), Attributes::normal(Permissions::RW), false).has_dbm());
    }

    #[test]
    fn what_the_guest_may_not_write_can_be_dirty_all_the_same() {
        let read_only = Format::default().leaf(Level::L3, Pa::new(0), Attributes::normal(Permissions::R), true);
        assert!(read_only.is_dirty() && !read_only.is_writable() && !read_only.grants_write());
        assert_eq!(read_only.s2ap(), S2Ap::ReadOnly);
        assert!(!read_only.with_clean().is_dirty());
    }

    #[test]
    fn other_permissions_keep_the_dirty_state() {
        let format = Format::default();
        let dirty = format.leaf(Level::L3, Pa::new(0x1000), Attributes::normal(Permissions::RW), true);
        let read_only = format.with_permissions(dirty, Permissions::R);
        assert!(read_only.is_dirty() && !read_only.grants_write());
        assert_eq!(format.with_permissions(read_only, Permissions::RW), dirty);
        let executable = format.with_permissions(dirty, Permissions::RWX);
        assert!(executable.is_dirty());
        assert_eq!(executable.address(), dirty.address());
        assert_eq!(executable.xn(), Xn::Execute);
    }
}
