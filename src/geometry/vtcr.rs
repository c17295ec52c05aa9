//! `VTCR_EL2` and `VTTBR_EL2` as values (Arm ARM, the register descriptions).
//!
//! Only the parent module makes a [`Vtcr`] or a [`Vttbr`], out of a geometry that it has checked; nothing here writes
//! a register.

use tock_registers::register_bitfields;

use super::features::{HardwareUpdate, PaRange};
use super::granule::{Granule, Granule4K};
use crate::addr::{Level, Pa};

register_bitfields! {u64,
    pub(super) VTCR_EL2 [
        RES1 OFFSET(31) NUMBITS(1) [],
        HD OFFSET(22) NUMBITS(1) [],
        HA OFFSET(21) NUMBITS(1) [],
        VS OFFSET(19) NUMBITS(1) [],
        PS OFFSET(16) NUMBITS(3) [],
        TG0 OFFSET(14) NUMBITS(2) [],
        SH0 OFFSET(12) NUMBITS(2) [InnerShareable = 0b11],
        ORGN0 OFFSET(10) NUMBITS(2) [WriteBackAllocate = 0b01],
        IRGN0 OFFSET(8) NUMBITS(2) [WriteBackAllocate = 0b01],
        SL0 OFFSET(6) NUMBITS(2) [],
        T0SZ OFFSET(0) NUMBITS(6) [],
    ],
    pub(super) VTTBR_EL2 [
        VMID OFFSET(48) NUMBITS(16) [],
        BADDR OFFSET(1) NUMBITS(47) [],
        CNP OFFSET(0) NUMBITS(1) [],
    ],
}

/// A value of `VTCR_EL2`.
///
/// Walks are Normal, inner shareable, write-back and write-allocating, as EL2's own accesses to the tables are.
/// `HWU*` are 0, so that the software bits of descriptors mean nothing to the hardware; `NSW` and `NSA` are 0, as the
/// tables of a Non-secure guest require; `DS` is 0: no 52-bit descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Vtcr(u64);

impl Vtcr {
    pub(super) fn new<G: Granule>(
        ipa_bits: u8,
        start_level: Level,
        pa_range: PaRange,
        vmid16: bool,
        update: HardwareUpdate,
    ) -> Self {
        Self(
            (VTCR_EL2::RES1::SET
                + VTCR_EL2::HD.val((update == HardwareUpdate::AccessFlagAndDirty) as u64)
                + VTCR_EL2::HA.val((update != HardwareUpdate::None) as u64)
                + VTCR_EL2::VS.val(vmid16 as u64)
                + VTCR_EL2::PS.val(pa_range as u64)
                + VTCR_EL2::TG0.val(G::TG0)
                + VTCR_EL2::SH0::InnerShareable
                + VTCR_EL2::ORGN0::WriteBackAllocate
                + VTCR_EL2::IRGN0::WriteBackAllocate
                + VTCR_EL2::SL0.val(sl0::<G>(start_level))
                + VTCR_EL2::T0SZ.val(64 - ipa_bits as u64))
            .value,
        )
    }

    /// The value to write to the register.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether VMIDs have 16 bits (`VS`).
    #[inline]
    pub fn vmid16(self) -> bool {
        VTCR_EL2::VS.is_set(self.0)
    }
}

/// `VTCR_EL2.SL0` for a walk that starts at `level`: it counts upwards from level 2 with the 4K granule (where level
/// 3, FEAT_TTST's, wraps to 0b11), from level 3 with the others.
const fn sl0<G: Granule>(level: Level) -> u64 {
    let lowest: u64 = if G::TG0 == Granule4K::TG0 { 2 } else { 3 };
    lowest.wrapping_sub(level as u64) & 0b11
}

/// A value of `VTTBR_EL2`: a root and the VMID under which its entries are cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Vttbr(u64);

impl Vttbr {
    /// From a root that is aligned to its own size and below 2^48, and a VMID of the width of `VTCR_EL2.VS`.
    pub(super) fn new(root: Pa, vmid: u16, common_not_private: bool) -> Self {
        Self(
            (VTTBR_EL2::VMID.val(vmid as u64)
                + VTTBR_EL2::BADDR.val(root.raw() >> 1)
                + VTTBR_EL2::CNP.val(common_not_private as u64))
            .value,
        )
    }

    /// The value to write to the register.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The VMID.
    #[inline]
    pub const fn vmid(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The physical address of the first root table.
    #[inline]
    pub fn root(self) -> Pa {
        Pa::new(VTTBR_EL2::BADDR.read(self.0) << 1)
    }
}

/// Why a root or a VMID does not fit a geometry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum VttbrError {
    /// The root is not aligned to the size of all its concatenated tables.
    RootMisaligned {
        /// The root.
        root: Pa,
        /// log2 of the alignment asked for.
        alignment: u32,
    },
    /// The root lies, if only with its end, outside the physical address size.
    RootBeyondPaSize {
        /// The root.
        root: Pa,
        /// Bits of the physical address size.
        pa_bits: u8,
    },
    /// The VMID needs more than the 8 bits that the CPUs have.
    VmidTooWide {
        /// The VMID.
        vmid: u16,
    },
}

impl core::fmt::Display for VttbrError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::RootMisaligned { root, alignment } => write!(f, "root {root} is not aligned to 2^{alignment} bytes"),
            Self::RootBeyondPaSize { root, pa_bits } => {
                write!(f, "root {root} does not fit {pa_bits} bits of physical address")
            }
            Self::VmidTooWide { vmid } => write!(f, "VMID {vmid} does not fit 8 bits"),
        }
    }
}

impl core::error::Error for VttbrError {}
