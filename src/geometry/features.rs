//! What the library must know of the CPUs, as given values.
//!
//! Nothing here reads a register. Every CPU hands in its ID registers ([`IdRegisters`]); each set is decoded
//! ([`Features::from_id_registers`]), and the [`meet`](Features::meet) over all of them is what may be relied upon,
//! because a guest runs on any CPU and a broadcast TLBI reaches every one. Where a CPU promises more than it keeps,
//! the embedder, who knows its errata, takes features away; the one feature that is trusted only on the embedder's
//! word (FEAT_BBM) is off until vouched for.

use super::granule::Granule;

/// The ID registers of one CPU, as read at EL2 of that CPU (Arm ARM D24.2).
///
/// All zero is a valid CPU: Armv8.0 with 32-bit physical addresses, 4K and 64K granules and 8-bit VMIDs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IdRegisters {
    /// `CTR_EL0`.
    pub ctr_el0: u64,
    /// `ID_AA64ISAR0_EL1`.
    pub id_aa64isar0_el1: u64,
    /// `ID_AA64MMFR0_EL1`.
    pub id_aa64mmfr0_el1: u64,
    /// `ID_AA64MMFR1_EL1`.
    pub id_aa64mmfr1_el1: u64,
    /// `ID_AA64MMFR2_EL1`.
    pub id_aa64mmfr2_el1: u64,
}

/// The physical address size, valued as `ID_AA64MMFR0_EL1.PARange` and `VTCR_EL2.PS` are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum PaRange {
    /// 4 GiB.
    Bits32 = 0b000,
    /// 64 GiB.
    Bits36 = 0b001,
    /// 1 TiB.
    Bits40 = 0b010,
    /// 4 TiB.
    Bits42 = 0b011,
    /// 16 TiB.
    Bits44 = 0b100,
    /// 256 TiB.
    Bits48 = 0b101,
    /// 4 PiB (FEAT_LPA). A CPU with more is taken for this.
    Bits52 = 0b110,
}

impl PaRange {
    /// The number of address bits.
    #[inline]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits32 => 32,
            Self::Bits36 => 36,
            Self::Bits40 => 40,
            Self::Bits42 => 42,
            Self::Bits44 => 44,
            Self::Bits48 => 48,
            Self::Bits52 => 52,
        }
    }

    const fn from_field(field: u64) -> Self {
        match field {
            0b000 => Self::Bits32,
            0b001 => Self::Bits36,
            0b010 => Self::Bits40,
            0b011 => Self::Bits42,
            0b100 => Self::Bits44,
            0b101 => Self::Bits48,
            // Values to come only ever mean more.
            _ => Self::Bits52,
        }
    }
}

/// How far a granule is supported at stage 2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum GranuleSupport {
    /// Not at all.
    Unsupported,
    /// With addresses of up to 48 bits (64K granule: of up to what `PARange` says).
    Supported,
    /// With FEAT_LPA2 too, addresses of 52 bits.
    SupportedWithLpa2,
}

/// What the hardware updates in stage-2 descriptors by itself (FEAT_HAFDBS): what CPUs can do, and what a tree asks
/// for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum HardwareUpdate {
    /// Nothing: a clear Access flag faults, and so does a write to a writable-clean page.
    #[default]
    None,
    /// The Access flag (`VTCR_EL2.HA`).
    AccessFlag,
    /// The Access flag and, where DBM is set, `S2AP[1]` (`VTCR_EL2.{HA, HD}`).
    AccessFlagAndDirty,
}

/// How much of break-before-make a change of block size needs (FEAT_BBM).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum BbmLevel {
    /// The full sequence.
    #[default]
    Level0,
    /// The nT bit instead of an invalid entry.
    Level1,
    /// Neither: a direct change, perhaps with a TLB conflict abort.
    Level2,
}

/// What stage 2 may rely on, of one CPU or of all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Features {
    pa_range: PaRange,
    granule_4k: GranuleSupport,
    granule_16k: GranuleSupport,
    granule_64k: GranuleSupport,
    hardware_update: HardwareUpdate,
    bbm_reported: BbmLevel,
    bbm_vouched: BbmLevel,
    vmid16: bool,
    force_write_back: bool,
    level_hint: bool,
    range_tlbi: bool,
    outer_shareable_tlbi: bool,
    execute_never_by_el: bool,
    common_not_private: bool,
    vhe: bool,
    instruction_coherent: bool,
    data_coherent: bool,
    hpfar_trusted: bool,
    data_line_bytes: u32,
    instruction_line_bytes: u32,
}

/// The four-bit ID field at `shift`.
const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

/// Support of a granule at stage 2 from `ID_AA64MMFR0_EL1.TGran<n>_2`, where 0 refers to the `TGran<n>` of stage 1.
const fn stage2_granule(tgran_2: u64, stage1: GranuleSupport) -> GranuleSupport {
    match tgran_2 {
        0 => stage1,
        1 => GranuleSupport::Unsupported,
        2 => GranuleSupport::Supported,
        _ => GranuleSupport::SupportedWithLpa2,
    }
}

/// `TGran4` and `TGran64`: signed, negative for "not supported", so 1 (FEAT_LPA2) is support as 0 is.
const fn signed_granule(tgran: u64) -> GranuleSupport {
    match tgran {
        0 => GranuleSupport::Supported,
        1..=7 => GranuleSupport::SupportedWithLpa2,
        _ => GranuleSupport::Unsupported,
    }
}

/// `TGran16`: unsigned, 0 for "not supported".
const fn unsigned_granule(tgran: u64) -> GranuleSupport {
    match tgran {
        0 => GranuleSupport::Unsupported,
        1 => GranuleSupport::Supported,
        _ => GranuleSupport::SupportedWithLpa2,
    }
}

/// The bytes of the line that a field of `CTR_EL0` gives as log2 of words.
const fn line_bytes(log2_words: u64) -> u32 {
    4 << log2_words
}

impl Features {
    /// What the CPU with these ID registers has.
    pub fn from_id_registers(id: &IdRegisters) -> Self {
        let (mmfr0, mmfr1, mmfr2) = (id.id_aa64mmfr0_el1, id.id_aa64mmfr1_el1, id.id_aa64mmfr2_el1);
        let tlb = field(id.id_aa64isar0_el1, 56);
        Self {
            pa_range: PaRange::from_field(field(mmfr0, 0)),
            granule_4k: stage2_granule(field(mmfr0, 40), signed_granule(field(mmfr0, 28))),
            granule_16k: stage2_granule(field(mmfr0, 32), unsigned_granule(field(mmfr0, 20))),
            // FEAT_LPA2 does not concern 64K: no field has a value that says so.
            granule_64k: stage2_granule(field(mmfr0, 36), signed_granule(field(mmfr0, 24)))
                .min(GranuleSupport::Supported),
            hardware_update: match field(mmfr1, 0) {
                0 => HardwareUpdate::None,
                1 => HardwareUpdate::AccessFlag,
                _ => HardwareUpdate::AccessFlagAndDirty,
            },
            bbm_reported: match field(mmfr2, 52) {
                0 => BbmLevel::Level0,
                1 => BbmLevel::Level1,
                _ => BbmLevel::Level2,
            },
            bbm_vouched: BbmLevel::Level0,
            vmid16: field(mmfr1, 4) >= 2,
            force_write_back: field(mmfr2, 40) >= 1,
            level_hint: field(mmfr2, 48) >= 1,
            range_tlbi: tlb >= 2,
            outer_shareable_tlbi: tlb >= 1,
            execute_never_by_el: field(mmfr1, 28) >= 1,
            common_not_private: field(mmfr2, 0) >= 1,
            vhe: field(mmfr1, 8) >= 1,
            instruction_coherent: id.ctr_el0 >> 29 & 1 == 1,
            data_coherent: id.ctr_el0 >> 28 & 1 == 1,
            hpfar_trusted: true,
            data_line_bytes: line_bytes(field(id.ctr_el0, 16)),
            instruction_line_bytes: line_bytes(field(id.ctr_el0, 0)),
        }
    }

    /// What both have: the smaller of every size, and only the features of both. Line sizes are the smaller too, as
    /// a maintenance loop that runs on either must not step over a line.
    #[must_use]
    pub fn meet(self, other: Self) -> Self {
        Self {
            pa_range: self.pa_range.min(other.pa_range),
            granule_4k: self.granule_4k.min(other.granule_4k),
            granule_16k: self.granule_16k.min(other.granule_16k),
            granule_64k: self.granule_64k.min(other.granule_64k),
            hardware_update: self.hardware_update.min(other.hardware_update),
            bbm_reported: self.bbm_reported.min(other.bbm_reported),
            bbm_vouched: self.bbm_vouched.min(other.bbm_vouched),
            vmid16: self.vmid16 && other.vmid16,
            force_write_back: self.force_write_back && other.force_write_back,
            level_hint: self.level_hint && other.level_hint,
            range_tlbi: self.range_tlbi && other.range_tlbi,
            outer_shareable_tlbi: self.outer_shareable_tlbi && other.outer_shareable_tlbi,
            execute_never_by_el: self.execute_never_by_el && other.execute_never_by_el,
            common_not_private: self.common_not_private && other.common_not_private,
            vhe: self.vhe && other.vhe,
            instruction_coherent: self.instruction_coherent && other.instruction_coherent,
            data_coherent: self.data_coherent && other.data_coherent,
            hpfar_trusted: self.hpfar_trusted && other.hpfar_trusted,
            data_line_bytes: self.data_line_bytes.min(other.data_line_bytes),
            instruction_line_bytes: self.instruction_line_bytes.min(other.instruction_line_bytes),
        }
    }

    /// The physical address size.
    #[inline]
    pub const fn pa_range(&self) -> PaRange {
        self.pa_range
    }

    /// How far stage 2 supports the granule `G`.
    #[inline]
    pub const fn granule<G: Granule>(&self) -> GranuleSupport {
        match G::TG0 {
            0b01 => self.granule_64k,
            0b10 => self.granule_16k,
            _ => self.granule_4k,
        }
    }

    /// FEAT_VMID16: VMIDs have 16 bits, not 8.
    #[inline]
    pub const fn vmid16(&self) -> bool {
        self.vmid16
    }

    /// FEAT_HAFDBS: what the hardware can update.
    #[inline]
    pub const fn hardware_update(&self) -> HardwareUpdate {
        self.hardware_update
    }

    /// FEAT_S2FWB: stage 2 can make every guest access cacheable.
    #[inline]
    pub const fn force_write_back(&self) -> bool {
        self.force_write_back
    }

    /// FEAT_TTL: a TLBI can name the level of the entry.
    #[inline]
    #[doc(alias = "ttl")]
    pub const fn level_hint(&self) -> bool {
        self.level_hint
    }

    /// FEAT_TLBIRANGE: a TLBI can name a range.
    #[inline]
    pub const fn range_tlbi(&self) -> bool {
        self.range_tlbi
    }

    /// FEAT_TLBIOS: a TLBI can reach the outer shareable domain.
    #[inline]
    pub const fn outer_shareable_tlbi(&self) -> bool {
        self.outer_shareable_tlbi
    }

    /// FEAT_XNX: stage 2 has execute-never for EL1 and for EL0 apart.
    #[inline]
    #[doc(alias = "xnx")]
    pub const fn execute_never_by_el(&self) -> bool {
        self.execute_never_by_el
    }

    /// FEAT_TTCNP: CPUs can share TLB entries of one VTTBR_EL2.
    #[inline]
    #[doc(alias = "cnp")]
    pub const fn common_not_private(&self) -> bool {
        self.common_not_private
    }

    /// FEAT_VHE.
    #[inline]
    pub const fn vhe(&self) -> bool {
        self.vhe
    }

    /// `CTR_EL0.DIC`: new instructions need no invalidation of the instruction cache.
    #[inline]
    #[doc(alias = "dic")]
    pub const fn instruction_coherent(&self) -> bool {
        self.instruction_coherent
    }

    /// `CTR_EL0.IDC`: new instructions need no cleaning of the data cache.
    #[inline]
    #[doc(alias = "idc")]
    pub const fn data_coherent(&self) -> bool {
        self.data_coherent
    }

    /// The step of a data cache maintenance loop (`CTR_EL0.DminLine`).
    #[inline]
    pub const fn data_line_bytes(&self) -> u32 {
        self.data_line_bytes
    }

    /// The step of an instruction cache maintenance loop (`CTR_EL0.IminLine`).
    #[inline]
    pub const fn instruction_line_bytes(&self) -> u32 {
        self.instruction_line_bytes
    }

    /// The level of FEAT_BBM to use: what the CPUs report, as far as the embedder vouches for it.
    #[inline]
    pub fn bbm_level(&self) -> BbmLevel {
        self.bbm_reported.min(self.bbm_vouched)
    }

    /// Whether HPFAR_EL2 can be believed for a stage-2 fault outside a stage-1 walk.
    #[inline]
    pub const fn hpfar_trusted(&self) -> bool {
        self.hpfar_trusted
    }

    /// Takes away the hardware's update of dirty state, keeping that of the Access flag.
    #[must_use]
    pub fn without_hardware_dirty(self) -> Self {
        Self { hardware_update: self.hardware_update.min(HardwareUpdate::AccessFlag), ..self }
    }

    /// Takes away every hardware update of descriptors.
    #[must_use]
    pub const fn without_hardware_update(self) -> Self {
        Self { hardware_update: HardwareUpdate::None, ..self }
    }

    /// Takes away TLBI by range.
    #[must_use]
    pub const fn without_range_tlbi(self) -> Self {
        Self { range_tlbi: false, ..self }
    }

    /// Takes away the level hint of TLBI.
    #[must_use]
    pub const fn without_level_hint(self) -> Self {
        Self { level_hint: false, ..self }
    }

    /// Takes away FEAT_S2FWB.
    #[must_use]
    pub const fn without_force_write_back(self) -> Self {
        Self { force_write_back: false, ..self }
    }

    /// Takes away shared TLB entries.
    #[must_use]
    pub const fn without_common_not_private(self) -> Self {
        Self { common_not_private: false, ..self }
    }

    /// Takes away the upper 8 bits of VMIDs.
    #[must_use]
    pub const fn without_vmid16(self) -> Self {
        Self { vmid16: false, ..self }
    }

    /// Takes away the trust in HPFAR_EL2 outside stage-1 walks (Cortex-A57 erratum 834220: a stage-2 translation
    /// fault may be reported where stage 1 should have faulted). The fault path then translates FAR_EL2, and resumes
    /// the guest if that fails.
    #[must_use]
    pub const fn without_hpfar(self) -> Self {
        Self { hpfar_trusted: false, ..self }
    }

    /// Vouches that the CPUs, where they report FEAT_BBM, raise no TLB conflict abort when up to `level` of it is
    /// used. Never raises the level above what they report.
    #[must_use]
    pub const fn with_bbm_level_vouched(self, level: BbmLevel) -> Self {
        Self { bbm_vouched: level, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::super::granule::{Granule4K, Granule16K, Granule64K};
    use super::*;
    use proptest::prelude::*;

    /// A Cortex-A72: 44-bit addresses, 4K and 64K, nothing optional; 64-byte lines.
    const CORTEX_A72: IdRegisters = IdRegisters {
        ctr_el0: 0x8444_c004,
        id_aa64isar0_el1: 0x0001_1120,
        id_aa64mmfr0_el1: 0x0000_1124,
        id_aa64mmfr1_el1: 0,
        id_aa64mmfr2_el1: 0,
    };

    /// A Neoverse N1: 48-bit addresses, all granules, HAFDBS, VMID16, VHE, XNX; DIC and IDC.
    const NEOVERSE_N1: IdRegisters = IdRegisters {
        ctr_el0: 0xb444_c004,
        id_aa64isar0_el1: 0x0000_1000_1021_1120,
        id_aa64mmfr0_el1: 0x0000_0000_0010_1125,
        id_aa64mmfr1_el1: 0x0000_0000_1021_2122,
        id_aa64mmfr2_el1: 0x0000_0000_0000_1011,
    };

    fn with_mmfr0(id_aa64mmfr0_el1: u64) -> Features {
        Features::from_id_registers(&IdRegisters { id_aa64mmfr0_el1, ..IdRegisters::default() })
    }

    #[test]
    fn a_cortex_a72_has_no_optional_feature() {
        let features = Features::from_id_registers(&CORTEX_A72);
        assert_eq!(features.pa_range(), PaRange::Bits44);
        assert_eq!(features.granule::<Granule4K>(), GranuleSupport::Supported);
        assert_eq!(features.granule::<Granule16K>(), GranuleSupport::Unsupported);
        assert_eq!(features.granule::<Granule64K>(), GranuleSupport::Supported);
        assert_eq!(features.hardware_update(), HardwareUpdate::None);
        assert!(!features.vmid16() && !features.vhe() && !features.range_tlbi() && !features.level_hint());
        assert!(!features.instruction_coherent() && !features.data_coherent());
        assert_eq!((features.data_line_bytes(), features.instruction_line_bytes()), (64, 64));
    }

    #[test]
    fn a_neoverse_n1_with_coherent_caches_has_what_its_manual_says() {
        let features = Features::from_id_registers(&NEOVERSE_N1);
        assert_eq!(features.pa_range(), PaRange::Bits48);
        assert_eq!(features.granule::<Granule16K>(), GranuleSupport::Supported);
        assert_eq!(features.hardware_update(), HardwareUpdate::AccessFlagAndDirty);
        assert!(features.vmid16() && features.vhe() && features.execute_never_by_el());
        assert!(features.common_not_private());
        assert!(features.instruction_coherent() && features.data_coherent());
        assert!(!features.range_tlbi() && !features.force_write_back());
    }

    #[test]
    fn a_4k_granule_with_lpa2_is_a_4k_granule() {
        assert_eq!(with_mmfr0(1 << 28).granule::<Granule4K>(), GranuleSupport::SupportedWithLpa2);
        assert_eq!(with_mmfr0(0xf << 28).granule::<Granule4K>(), GranuleSupport::Unsupported);
        assert_eq!(with_mmfr0(2 << 20).granule::<Granule16K>(), GranuleSupport::SupportedWithLpa2);
        assert_eq!(with_mmfr0(0xf << 24).granule::<Granule64K>(), GranuleSupport::Unsupported);
    }

    #[test]
    fn the_stage_2_granule_fields_override_those_of_stage_1_unless_zero() {
        assert_eq!(with_mmfr0(1 << 40).granule::<Granule4K>(), GranuleSupport::Unsupported);
        assert_eq!(with_mmfr0(2 << 40 | 0xf << 28).granule::<Granule4K>(), GranuleSupport::Supported);
        assert_eq!(with_mmfr0(3 << 40 | 0xf << 28).granule::<Granule4K>(), GranuleSupport::SupportedWithLpa2);
        assert_eq!(with_mmfr0(2 << 32).granule::<Granule16K>(), GranuleSupport::Supported);
        assert_eq!(with_mmfr0(1 << 32 | 2 << 20).granule::<Granule16K>(), GranuleSupport::Unsupported);
        assert_eq!(with_mmfr0(1 << 36).granule::<Granule64K>(), GranuleSupport::Unsupported);
        assert_eq!(with_mmfr0(2 << 36 | 0xf << 24).granule::<Granule64K>(), GranuleSupport::Supported);
    }

    #[test]
    fn range_tlbi_implies_outer_shareable_tlbi() {
        let with_tlb =
            |tlb: u64| Features::from_id_registers(&IdRegisters { id_aa64isar0_el1: tlb << 56, ..Default::default() });
        assert!(!with_tlb(0).outer_shareable_tlbi() && !with_tlb(0).range_tlbi());
        assert!(with_tlb(1).outer_shareable_tlbi() && !with_tlb(1).range_tlbi());
        assert!(with_tlb(2).outer_shareable_tlbi() && with_tlb(2).range_tlbi());
    }

    #[test]
    fn mmfr2_tells_write_back_level_hint_and_bbm_apart() {
        let with_mmfr2 =
            |value: u64| Features::from_id_registers(&IdRegisters { id_aa64mmfr2_el1: value, ..Default::default() });
        assert!(with_mmfr2(1 << 40).force_write_back() && !with_mmfr2(1 << 40).level_hint());
        assert!(with_mmfr2(1 << 48).level_hint() && !with_mmfr2(1 << 48).force_write_back());
        let vouched = |value| with_mmfr2(value).with_bbm_level_vouched(BbmLevel::Level2).bbm_level();
        assert_eq!(vouched(1 << 52), BbmLevel::Level1);
        assert_eq!(vouched(2 << 52), BbmLevel::Level2);
    }

    #[test]
    fn mmfr1_tells_hardware_update_vmid_size_vhe_and_execute_never_apart() {
        let with_mmfr1 = |id_aa64mmfr1_el1: u64| {
            let features = Features::from_id_registers(&IdRegisters { id_aa64mmfr1_el1, ..Default::default() });
            (features.hardware_update(), features.vmid16(), features.vhe(), features.execute_never_by_el())
        };
        assert_eq!(with_mmfr1(1), (HardwareUpdate::AccessFlag, false, false, false));
        assert_eq!(with_mmfr1(4), (HardwareUpdate::AccessFlagAndDirty, false, false, false));
        assert_eq!(with_mmfr1(2 << 4), (HardwareUpdate::None, true, false, false));
        assert_eq!(with_mmfr1(1 << 8), (HardwareUpdate::None, false, true, false));
        assert_eq!(with_mmfr1(1 << 28), (HardwareUpdate::None, false, false, true));
        assert_eq!(with_mmfr1(!(0xf | 0xf << 4 | 0xf << 8 | 0xf << 28)), (HardwareUpdate::None, false, false, false));
    }

    #[test]
    fn the_cache_type_register_tells_lines_and_coherence_apart() {
        let with_ctr = |ctr_el0: u64| {
            let features = Features::from_id_registers(&IdRegisters { ctr_el0, ..Default::default() });
            let lines = (features.data_line_bytes(), features.instruction_line_bytes());
            (lines, features.data_coherent(), features.instruction_coherent())
        };
        assert_eq!(with_ctr(5 << 16 | 3), ((128, 32), false, false));
        assert_eq!(with_ctr(1 << 28), ((4, 4), true, false));
        assert_eq!(with_ctr(1 << 29), ((4, 4), false, true));
    }

    #[test]
    fn bbm_counts_only_as_far_as_reported_and_vouched_for() {
        let id = IdRegisters { id_aa64mmfr2_el1: 2 << 52, ..IdRegisters::default() };
        let features = Features::from_id_registers(&id);
        assert_eq!(features.bbm_level(), BbmLevel::Level0);
        assert_eq!(features.with_bbm_level_vouched(BbmLevel::Level1).bbm_level(), BbmLevel::Level1);
        let old = Features::from_id_registers(&IdRegisters::default());
        assert_eq!(old.with_bbm_level_vouched(BbmLevel::Level2).bbm_level(), BbmLevel::Level0);
    }

    #[test]
    fn the_meet_of_unlike_cpus_is_what_both_have() {
        let meet = Features::from_id_registers(&CORTEX_A72).meet(Features::from_id_registers(&NEOVERSE_N1));
        assert_eq!(meet, Features::from_id_registers(&CORTEX_A72));
    }

    #[test]
    fn an_erratum_takes_away_one_feature_only() {
        let features = Features::from_id_registers(&NEOVERSE_N1);
        assert_eq!(features.without_hardware_dirty().hardware_update(), HardwareUpdate::AccessFlag);
        assert_eq!(features.without_hardware_update().hardware_update(), HardwareUpdate::None);
        assert_eq!(features.without_hardware_update().without_hardware_dirty().hardware_update(), HardwareUpdate::None);
        assert!(!features.without_hpfar().hpfar_trusted());
        assert_eq!(features.without_hpfar().pa_range(), features.pa_range());
    }

    fn any_features() -> impl Strategy<Value = Features> {
        (any::<[u64; 5]>(), 0u8..3).prop_map(|([ctr, isar0, mmfr0, mmfr1, mmfr2], vouched)| {
            let vouched = [BbmLevel::Level0, BbmLevel::Level1, BbmLevel::Level2][vouched as usize];
            Features::from_id_registers(&IdRegisters {
                ctr_el0: ctr,
                id_aa64isar0_el1: isar0,
                id_aa64mmfr0_el1: mmfr0,
                id_aa64mmfr1_el1: mmfr1,
                id_aa64mmfr2_el1: mmfr2,
            })
            .with_bbm_level_vouched(vouched)
        })
    }

    proptest! {
        #[test]
        fn the_meet_does_not_depend_on_the_order_of_cpus(
            a in any_features(),
            b in any_features(),
            c in any_features(),
        ) {
            prop_assert_eq!(a.meet(b), b.meet(a));
            prop_assert_eq!(a.meet(b).meet(c), a.meet(b.meet(c)));
            prop_assert_eq!(a.meet(a), a);
        }
    }
}
