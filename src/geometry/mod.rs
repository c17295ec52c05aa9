//! The geometry of a tree: how many bits it translates, where its walks start, how many tables its root has.
//!
//! [`Geometry`] is computed once, from the [`Features`] of all CPUs, and is right from then on: the size of the IPA
//! space is one that these CPUs can translate, the number of levels is the fewest, and `VTCR_EL2` says the same. A
//! walk asks it at which level to start and in which of up to 16 concatenated root tables; below the root, the index
//! arithmetic is the [`Granule`]'s alone.
//!
//! Fewest levels, because every level costs a memory access of a TLB miss: where the level above the start would
//! resolve four bits or fewer, stage 2 lets up to 16 tables of the start level stand one after the other instead
//! (Arm ARM, "Concatenated translation tables"). But never fewer than two levels, so that every leaf table has a
//! parent, and a guest of 32 bits with 64K pages can have blocks.
//!
//! Output addresses have 48 bits at most: a CPU with more (FEAT_LPA, FEAT_LPA2) is used as one with 48.

pub mod features;
pub mod granule;
pub mod vtcr;

use core::fmt;
use core::marker::PhantomData;

pub use features::{BbmLevel, Features, GranuleSupport, HardwareUpdate, IdRegisters, PaRange};
#[cfg(any(test, loom, shuttle, feature = "model"))]
pub use granule::GranuleTiny;
pub use granule::{Granule, Granule4K, Granule16K, Granule64K};
pub use vtcr::{Vtcr, Vttbr, VttbrError};

use crate::addr::{Ipa, IpaRange, Level, Pa};

/// The smallest IPA size, in bits: any guest wants 4 GiB, and every CPU and granule can translate it.
pub const MIN_IPA_BITS: u8 = 32;
/// The largest IPA size, in bits, without 52-bit descriptors.
pub const MAX_IPA_BITS: u8 = 48;

/// log2 of the most tables that a root can be made of.
const MAX_ROOT_ORDER: u32 = 4;
/// The fewest levels of a tree.
const MIN_LEVELS: u32 = 2;
/// The largest output address: what descriptors and `VTTBR_EL2` hold without their 52-bit forms.
const MAX_PA_RANGE: PaRange = PaRange::Bits48;

/// What a tree may choose beside its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct GeometryOptions {
    /// What the hardware is to update by itself.
    pub hardware_update: HardwareUpdate,
}

impl GeometryOptions {
    /// With the hardware updating `hardware_update` by itself.
    #[must_use]
    pub const fn with_hardware_update(self, hardware_update: HardwareUpdate) -> Self {
        Self { hardware_update }
    }
}

/// Why there is no such geometry on these CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum GeometryError {
    /// The IPA size is below [`MIN_IPA_BITS`].
    IpaTooSmall {
        /// The smallest size, in bits.
        min: u8,
    },
    /// The IPA size is above [`MAX_IPA_BITS`] or above the physical address size of the CPUs.
    IpaTooLarge {
        /// The largest size on these CPUs, in bits.
        max: u8,
    },
    /// Some CPU does not support the granule at stage 2.
    GranuleUnsupported,
    /// Some CPU cannot update what was asked for.
    HardwareUpdateUnsupported {
        /// What all CPUs can update.
        available: HardwareUpdate,
    },
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IpaTooSmall { min } => write!(f, "the IPA size must have {min} bits at least"),
            Self::IpaTooLarge { max } => write!(f, "the IPA size must have {max} bits at most on these CPUs"),
            Self::GranuleUnsupported => f.write_str("not every CPU supports the granule at stage 2"),
            Self::HardwareUpdateUnsupported { available } => {
                write!(f, "the hardware updates no more than {available:?}")
            }
        }
    }
}

impl core::error::Error for GeometryError {}

/// The shape of a tree of granule `G`, and with it `VTCR_EL2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Geometry<G: Granule> {
    vtcr: Vtcr,
    ipa_bits: u8,
    root_order: u8,
    start_level: Level,
    pa_range: PaRange,
    hardware_update: HardwareUpdate,
    granule: PhantomData<G>,
}

impl<G: Granule> Geometry<G> {
    /// The geometry for a guest with `ipa_bits` of IPA on CPUs that have `features`, with the fewest levels.
    ///
    /// # Errors
    /// - [`GeometryError::GranuleUnsupported`] if the CPUs do not have `G` at stage 2.
    /// - [`GeometryError::IpaTooSmall`] below [`MIN_IPA_BITS`].
    /// - [`GeometryError::IpaTooLarge`] above [`MAX_IPA_BITS`], or above the physical address size: with EL1 in AArch64
    ///   a `VTCR_EL2.T0SZ` below 64 - PAMax faults or is taken for that (Arm ARM, `AArch64.S2MinTxSZ`).
    /// - [`GeometryError::HardwareUpdateUnsupported`] if the options ask for more than the CPUs can update.
    pub fn new(ipa_bits: u8, features: &Features, options: GeometryOptions) -> Result<Self, GeometryError> {
        if features.granule::<G>() == GranuleSupport::Unsupported {
            return Err(GeometryError::GranuleUnsupported);
        }
        if ipa_bits < MIN_IPA_BITS {
            return Err(GeometryError::IpaTooSmall { min: MIN_IPA_BITS });
        }
        let pa_range = features.pa_range().min(MAX_PA_RANGE);
        let max = pa_range.bits().min(MAX_IPA_BITS);
        if ipa_bits > max {
            return Err(GeometryError::IpaTooLarge { max });
        }
        if options.hardware_update > features.hardware_update() {
            return Err(GeometryError::HardwareUpdateUnsupported { available: features.hardware_update() });
        }
        let levels = (ipa_bits as u32 - MAX_ROOT_ORDER - G::PAGE_SHIFT).div_ceil(G::INDEX_BITS).max(MIN_LEVELS);
        Ok(Self::with_levels(ipa_bits, levels, pa_range, features.vmid16(), options.hardware_update))
    }

    fn with_levels(
        ipa_bits: u8,
        levels: u32,
        pa_range: PaRange,
        vmid16: bool,
        hardware_update: HardwareUpdate,
    ) -> Self {
        let start_level = match levels {
            0 | 1 => Level::L3,
            2 => Level::L2,
            3 => Level::L1,
            _ => Level::L0,
        };
        let one_table_bits = G::shift(start_level) + G::INDEX_BITS;
        Self {
            vtcr: Vtcr::new::<G>(ipa_bits, start_level, pa_range, vmid16, hardware_update),
            ipa_bits,
            root_order: (ipa_bits as u32).saturating_sub(one_table_bits) as u8,
            start_level,
            pa_range,
            hardware_update,
            granule: PhantomData,
        }
    }

    /// The bits of an IPA.
    #[inline]
    pub const fn ipa_bits(&self) -> u8 {
        self.ipa_bits
    }

    /// The bytes of the IPA space.
    #[inline]
    pub const fn ipa_size(&self) -> u64 {
        1 << self.ipa_bits
    }

    /// The bits of an output address (`VTCR_EL2.PS`).
    #[inline]
    pub const fn pa_bits(&self) -> u8 {
        self.pa_range.bits()
    }

    /// The bytes of the physical address space.
    #[inline]
    pub const fn pa_size(&self) -> u64 {
        1 << self.pa_range.bits()
    }

    /// The level of the root's tables, where walks start.
    #[inline]
    pub const fn start_level(&self) -> Level {
        self.start_level
    }

    /// log2 of the number of concatenated root tables: 0 to 4.
    #[inline]
    pub const fn root_order(&self) -> u32 {
        self.root_order as u32
    }

    /// The number of concatenated root tables: 1 to 16.
    #[inline]
    pub const fn root_tables(&self) -> usize {
        1 << self.root_order
    }

    /// Which of the root's tables translates `ipa`: always below [`root_tables`](Self::root_tables), whatever `ipa` is.
    #[inline(always)]
    pub fn root_index(&self, ipa: Ipa) -> usize {
        if self.root_order == 0 {
            return 0;
        }
        (ipa.raw() >> (G::shift(self.start_level) + G::INDEX_BITS)) as usize & (self.root_tables() - 1)
    }

    /// What the hardware updates in this tree's descriptors.
    #[inline]
    pub const fn hardware_update(&self) -> HardwareUpdate {
        self.hardware_update
    }

    /// Whether all of `range` can be translated.
    #[inline]
    pub const fn contains(&self, range: IpaRange) -> bool {
        range.last().raw() < self.ipa_size()
    }

    /// Whether CPUs with `features` can use it, and its VMIDs are as wide as theirs: a tree whose `VTCR_EL2.VS` says 8 bits
    /// while 16-bit VMIDs are given out would share TLB entries with others.
    pub fn suits(&self, features: &Features) -> bool {
        let vmids_fit = self.vtcr.vmid16() || !features.vmid16();
        vmids_fit && self.pa_range <= features.pa_range() && self.hardware_update <= features.hardware_update()
    }

    /// The value of `VTCR_EL2`.
    #[inline]
    pub const fn vtcr(&self) -> Vtcr {
        self.vtcr
    }

    /// The value of `VTTBR_EL2` for a tree with its root tables from `root` on. `common_not_private` sets `CnP`: ask
    /// for it only where all CPUs have [`Features::common_not_private`] and load the same tree under this VMID.
    ///
    /// # Errors
    /// - [`VttbrError::RootMisaligned`] if `root` is not aligned to the size of all root tables together.
    /// - [`VttbrError::RootBeyondPaSize`] if they do not lie below the physical address size.
    /// - [`VttbrError::VmidTooWide`] if `vmid` has more bits than `VTCR_EL2.VS` says.
    pub fn vttbr(&self, root: Pa, vmid: u16, common_not_private: bool) -> Result<Vttbr, VttbrError> {
        let alignment = G::PAGE_SHIFT + self.root_order();
        if !root.is_aligned(alignment) {
            return Err(VttbrError::RootMisaligned { root, alignment });
        }
        // Aligned to its size, the root ends below the power of two that it starts below.
        if root.raw() >= self.pa_size() {
            return Err(VttbrError::RootBeyondPaSize { root, pa_bits: self.pa_bits() });
        }
        if !self.vtcr.vmid16() && vmid > u8::MAX as u16 {
            return Err(VttbrError::VmidTooWide { vmid });
        }
        Ok(Vttbr::new(root, vmid, common_not_private))
    }
}

#[cfg(any(test, loom, shuttle, feature = "model"))]
impl Geometry<GranuleTiny> {
    /// A tree of `levels` levels of two-entry tables under `1 << root_order` root tables, for model checkers; `None`
    /// unless there are 1 to 4 levels and up to 16 root tables.
    pub fn tiny(levels: u32, root_order: u32) -> Option<Self> {
        Self::tiny_with(levels, root_order, HardwareUpdate::None)
    }

    /// The same, with the hardware updating `hardware_update` by itself.
    pub fn tiny_with(levels: u32, root_order: u32, hardware_update: HardwareUpdate) -> Option<Self> {
        if !(1..=4).contains(&levels) || root_order > MAX_ROOT_ORDER {
            return None;
        }
        let ipa_bits = GranuleTiny::PAGE_SHIFT + levels * GranuleTiny::INDEX_BITS + root_order;
        Some(Self::with_levels(ipa_bits as u8, levels, PaRange::Bits32, true, hardware_update))
    }
}

#[cfg(test)]
mod tests;
