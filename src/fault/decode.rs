//! From an exception's registers to an [`Abort`]: what was tried, why it failed, where, and with which register.
//!
//! Pure, and all of it: nothing later looks at bits of ESR_EL2 again. Three of the architecture's traps end here:
//!
//! - A stage-1 table walk (`S1PTW`) that lacks permission wanted to *write* (Access flag or dirty state of stage 1),
//!   whatever `WnR` says. With any other fault the walk is taken for a read: as a write it could never be
//!   resolved for a guest that keeps its tables in read-only memory, while a read that proves too little costs one
//!   more fault.
//! - Cache maintenance reports `WnR` = 1 though it writes nothing.
//! - HPFAR_EL2 is valid for some faults only (Arm ARM R_FKLWR, `IPAValid`): for a permission fault outside a stage-1
//!   walk it is not, and stage 1 has to be asked ([`FaultAddress::NeedsTranslation`]).
//!
//! An abort of a lower EL need not be of stage 2: with HCR_EL2.TGE or TEA set, stage-1 faults of EL0 and external
//! aborts come the same way and with the same codes. This decoder takes it that a guest was running.

use super::syndrome::{ESR_ELX, FaultClass, Syndrome};
use crate::addr::Ipa;
use crate::geometry::Features;

/// An exception that is not an abort of a lower exception level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NotAnAbort {
    /// The exception class (`ESR_EL2.EC`).
    pub exception_class: u8,
}

impl core::fmt::Display for NotAnAbort {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "exception class {:#x} is not an abort of a lower exception level", self.exception_class)
    }
}

impl core::error::Error for NotAnAbort {}

/// What the guest was doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Access {
    /// A load.
    Read,
    /// A store, or an atomic access whose load is allowed.
    Write,
    /// An instruction fetch.
    Execute,
    /// Cache maintenance by address, or an address translation instruction.
    CacheMaintenance,
    /// A walk of the guest's own tables, for whatever access.
    Stage1Walk,
}

/// Where it was doing it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FaultAddress {
    /// At this address; in a stage-1 walk, somewhere in the 4 KiB from it.
    Ipa(Ipa),
    /// Wherever the guest's stage 1 translates `va`: ask with `AT S1E1R` in the guest's regime (`AT S1E1A` where the
    /// guest has permission overlays), preserve PAR_EL1, and read the answer with
    /// [`Par::ipa`](super::syndrome::Par::ipa). Stage 1 has allowed the access before stage 2 was asked, and what EL0
    /// may do EL1 may translate; so the one read form serves every access.
    NeedsTranslation {
        /// The virtual address.
        va: u64,
    },
    /// Not known, and not safe to ask for.
    Unknown,
}

/// An abort taken from a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Abort {
    /// Why it failed.
    pub class: FaultClass,
    /// What failed.
    pub access: Access,
    /// Where.
    pub address: FaultAddress,
    /// What the CPU said.
    pub syndrome: Syndrome,
}

/// What the exception with this syndrome is, on CPUs that have `features`.
///
/// # Errors
/// [`NotAnAbort`] for anything but an instruction or a data abort of a lower exception level.
#[inline(always)]
pub fn decode(syndrome: Syndrome, features: &Features) -> Result<Abort, NotAnAbort> {
    let esr = syndrome.esr;
    let instruction = match ESR_ELX::EC.read_as_enum(esr) {
        Some(ESR_ELX::EC::Value::InstructionAbortLowerEl) => true,
        Some(ESR_ELX::EC::Value::DataAbortLowerEl) => false,
        _ => return Err(NotAnAbort { exception_class: ESR_ELX::EC.read(esr) as u8 }),
    };
    let class = FaultClass::from_esr(esr);
    let access = if ESR_ELX::S1PTW.is_set(esr) {
        Access::Stage1Walk
    } else if instruction {
        Access::Execute
    } else if ESR_ELX::CM.is_set(esr) {
        Access::CacheMaintenance
    } else if ESR_ELX::WNR.is_set(esr) {
        Access::Write
    } else {
        Access::Read
    };
    let address = fault_address(&syndrome, class, access, features.hpfar_trusted());
    Ok(Abort { class, access, address, syndrome })
}

/// Arm ARM R_FKLWR and `IPAValid`, for HPFAR_EL2; `FnV`, for FAR_EL2.
#[inline(always)]
fn fault_address(syndrome: &Syndrome, class: FaultClass, access: Access, hpfar_trusted: bool) -> FaultAddress {
    use FaultClass::*;

    if access == Access::Stage1Walk {
        // FAR_EL2 is the address that was being translated: it says nothing of where the walk was.
        return match class {
            Translation | AccessFlag | AddressSize | Permission => FaultAddress::Ipa(syndrome.hpfar_page()),
            _ => FaultAddress::Unknown,
        };
    }
    let translate = FaultAddress::NeedsTranslation { va: syndrome.far };
    match class {
        Translation | AccessFlag | AddressSize if hpfar_trusted => {
            FaultAddress::Ipa(syndrome.hpfar_page().offset(syndrome.far_offset()))
        }
        Translation | AccessFlag | AddressSize | Permission => translate,
        _ => address_of_others(syndrome, class),
    }
}

/// Of what is no fault of stage 2 alone.
#[cold]
fn address_of_others(syndrome: &Syndrome, class: FaultClass) -> FaultAddress {
    use FaultClass::*;

    let translate = FaultAddress::NeedsTranslation { va: syndrome.far };
    match class {
        Translation | AccessFlag | AddressSize | Permission => translate,
        Alignment | TagCheck | UnsupportedAtomicUpdate | Lockdown | UnsupportedExclusive => translate,
        ExternalAbort { on_walk: false, .. } if !ESR_ELX::FNV.is_set(syndrome.esr) => translate,
        ParityOrEcc { on_walk: false } | GranuleProtection { on_walk: false } => translate,
        // A walk from EL2 over the same tables or the same TLB entries would abort at EL2.
        ExternalAbort { .. } | ParityOrEcc { .. } | GranuleProtection { .. } | TlbConflict => FaultAddress::Unknown,
        Unknown { .. } => FaultAddress::Unknown,
    }
}

impl Abort {
    /// Whether the page must be writable for the access not to fault again.
    ///
    /// A stage-1 walk or cache maintenance (`DC IVAC` needs write permission) wants it exactly if a permission is what
    /// it lacked; otherwise to read is enough.
    #[inline(always)]
    pub fn wants_write(&self) -> bool {
        match self.access {
            Access::Write => true,
            Access::Read | Access::Execute => false,
            Access::Stage1Walk | Access::CacheMaintenance => self.class == FaultClass::Permission,
        }
    }

    /// The load or store, as a device at `ipa` sees it. `None` if the CPU does not describe it (`ISV` = 0: pairs,
    /// writeback, SIMD, atomics, ...), or if it is not a load or a store at all.
    #[inline]
    pub fn mmio(&self, ipa: Ipa) -> Option<MmioAccess> {
        let write = match self.access {
            Access::Read => false,
            Access::Write => true,
            Access::Execute | Access::CacheMaintenance | Access::Stage1Walk => return None,
        };
        let esr = self.syndrome.esr;
        if !ESR_ELX::ISV.is_set(esr) {
            return None;
        }
        let register = ESR_ELX::SRT.read(esr) as u8;
        Some(MmioAccess {
            ipa,
            write,
            size: match ESR_ELX::SAS.read(esr) {
                0b00 => MmioSize::Byte,
                0b01 => MmioSize::Halfword,
                0b10 => MmioSize::Word,
                _ => MmioSize::Doubleword,
            },
            register: (register != ZERO_REGISTER).then_some(register),
            sign_extend: ESR_ELX::SSE.is_set(esr),
            sixty_four: ESR_ELX::SF.is_set(esr),
            acquire_release: ESR_ELX::AR.is_set(esr),
        })
    }
}

/// The number of XZR and WZR.
const ZERO_REGISTER: u8 = 31;

/// How much one device access moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MmioSize {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Halfword,
    /// 4 bytes.
    Word,
    /// 8 bytes.
    Doubleword,
}

impl MmioSize {
    /// The number of bytes.
    #[inline]
    pub const fn bytes(self) -> usize {
        1 << self as usize
    }

    /// The number of bits.
    #[inline]
    pub const fn bits(self) -> u32 {
        8 << self as u32
    }
}

/// A load or store that a device is to answer: by one general-purpose register, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MmioAccess {
    /// The address of the first byte.
    pub ipa: Ipa,
    /// A store, rather than a load.
    pub write: bool,
    /// How much is moved.
    pub size: MmioSize,
    /// The number of the register loaded or stored, 0 to 30; `None` is the zero register.
    pub register: Option<u8>,
    /// The load extends the sign.
    pub sign_extend: bool,
    /// The register is used with 64 bits, not 32.
    pub sixty_four: bool,
    /// The access has acquire or release semantics.
    pub acquire_release: bool,
}

impl MmioAccess {
    /// What the device is given when the guest stores a register that holds `register`.
    pub const fn stored(&self, register: u64) -> u64 {
        register & (u64::MAX >> (64 - self.size.bits()))
    }

    /// What the guest's register holds after loading `data` from the device.
    pub const fn loaded(&self, data: u64) -> u64 {
        let unused = 64 - self.size.bits();
        let extended =
            if self.sign_extend { ((data << unused) as i64 >> unused) as u64 } else { data << unused >> unused };
        if self.sixty_four { extended } else { extended & u32::MAX as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::syndrome::ErrorState;
    use super::*;
    use crate::geometry::IdRegisters;
    use proptest::prelude::*;

    const DATA: u64 = 0x24 << 26;
    const INSTRUCTION: u64 = 0x20 << 26;
    const ISV: u64 = 1 << 24;
    const FNV: u64 = 1 << 10;
    const CM: u64 = 1 << 8;
    const S1PTW: u64 = 1 << 7;
    const WNR: u64 = 1 << 6;
    const TRANSLATION: u64 = 0x07;
    const ACCESS_FLAG: u64 = 0x0b;
    const PERMISSION: u64 = 0x0f;
    const EXTERNAL: u64 = 0x10;

    const VA: u64 = 0xffff_8000_1234_5678;
    const PAGE: u64 = 0x4000_3000;

    fn features() -> Features {
        Features::from_id_registers(&IdRegisters::default())
    }

    fn syndrome(esr: u64) -> Syndrome {
        Syndrome { esr, far: VA, hpfar: PAGE >> 8 }
    }

    fn abort(esr: u64) -> Abort {
        decode(syndrome(esr), &features()).unwrap()
    }

    #[test]
    fn only_aborts_of_a_lower_level_are_decoded() {
        for exception_class in 0..64u8 {
            let decoded = decode(syndrome((exception_class as u64) << 26), &features());
            match exception_class {
                0x20 | 0x24 => assert!(decoded.is_ok()),
                _ => assert_eq!(decoded, Err(NotAnAbort { exception_class })),
            }
        }
    }

    #[test]
    fn a_translation_fault_is_where_hpfar_and_the_offset_of_far_say() {
        assert_eq!(abort(DATA | TRANSLATION).address, FaultAddress::Ipa(Ipa::new(PAGE | 0x678)));
        assert_eq!(abort(INSTRUCTION | TRANSLATION).address, FaultAddress::Ipa(Ipa::new(PAGE | 0x678)));
        assert_eq!(abort(DATA | ACCESS_FLAG).address, FaultAddress::Ipa(Ipa::new(PAGE | 0x678)));
        assert_eq!(abort(DATA).address, FaultAddress::Ipa(Ipa::new(PAGE | 0x678)));
    }

    #[test]
    fn a_permission_fault_outside_a_walk_must_be_translated() {
        assert_eq!(abort(DATA | WNR | PERMISSION).address, FaultAddress::NeedsTranslation { va: VA });
        assert_eq!(abort(INSTRUCTION | PERMISSION).address, FaultAddress::NeedsTranslation { va: VA });
    }

    #[test]
    fn a_fault_of_a_stage_1_walk_is_in_the_page_of_hpfar_and_far_says_nothing_of_it() {
        for class in [TRANSLATION, ACCESS_FLAG, PERMISSION, 0] {
            for exception in [DATA, INSTRUCTION] {
                let abort = abort(exception | S1PTW | class);
                assert_eq!(abort.address, FaultAddress::Ipa(Ipa::new(PAGE)));
                assert_eq!(abort.access, Access::Stage1Walk);
            }
        }
    }

    #[test]
    fn a_cpu_whose_hpfar_is_not_trusted_has_every_fault_translated_but_those_of_walks() {
        let a57 = features().without_hpfar();
        let address = |esr| decode(syndrome(esr), &a57).unwrap().address;
        assert_eq!(address(DATA | TRANSLATION), FaultAddress::NeedsTranslation { va: VA });
        assert_eq!(address(DATA | S1PTW | TRANSLATION), FaultAddress::Ipa(Ipa::new(PAGE)));
    }

    #[test]
    fn an_external_abort_is_translated_only_where_that_cannot_abort_again() {
        assert_eq!(abort(DATA | EXTERNAL).address, FaultAddress::NeedsTranslation { va: VA });
        assert_eq!(abort(DATA | FNV | EXTERNAL).address, FaultAddress::Unknown);
        assert_eq!(abort(DATA | 0x17).address, FaultAddress::Unknown);
        assert_eq!(abort(DATA | S1PTW | EXTERNAL).address, FaultAddress::Unknown);
        assert_eq!(abort(DATA | 0x30).address, FaultAddress::Unknown);
        assert_eq!(abort(DATA | 0x3f).address, FaultAddress::Unknown);
        assert_eq!(
            abort(DATA | EXTERNAL).class,
            FaultClass::ExternalAbort { on_walk: false, state: ErrorState::Recoverable }
        );
    }

    #[test]
    fn a_permission_fault_of_a_stage_1_walk_wants_to_write_whatever_wnr_says() {
        for wnr in [0, WNR] {
            assert!(abort(DATA | S1PTW | wnr | PERMISSION).wants_write());
            assert!(!abort(DATA | S1PTW | wnr | TRANSLATION).wants_write());
            assert!(!abort(DATA | S1PTW | wnr | ACCESS_FLAG).wants_write());
        }
        assert!(abort(INSTRUCTION | S1PTW | PERMISSION).wants_write());
    }

    #[test]
    fn cache_maintenance_is_not_a_write_unless_it_lacks_permission() {
        let cleaning = abort(DATA | CM | WNR | TRANSLATION);
        assert_eq!(cleaning.access, Access::CacheMaintenance);
        assert!(!cleaning.wants_write());
        assert!(abort(DATA | CM | WNR | PERMISSION).wants_write());
    }

    #[test]
    fn an_instruction_fetch_never_wants_to_write() {
        // WnR and CM are RES0 in an instruction abort.
        let fetch = abort(INSTRUCTION | CM | WNR | PERMISSION);
        assert_eq!(fetch.access, Access::Execute);
        assert!(!fetch.wants_write());
    }

    #[test]
    fn loads_and_stores_are_told_apart() {
        assert_eq!(abort(DATA | TRANSLATION).access, Access::Read);
        assert_eq!(abort(DATA | WNR | TRANSLATION).access, Access::Write);
        assert!(abort(DATA | WNR | TRANSLATION).wants_write());
        assert!(!abort(DATA | PERMISSION).wants_write());
    }

    #[test]
    fn a_described_access_is_decoded_for_a_device() {
        // LDRSH X5, [...] with acquire semantics.
        let esr = DATA | ISV | 0b01 << 22 | 1 << 21 | 5 << 16 | 1 << 15 | 1 << 14 | TRANSLATION;
        let ipa = Ipa::new(PAGE | 0x678);
        assert_eq!(
            abort(esr).mmio(ipa),
            Some(MmioAccess {
                ipa,
                write: false,
                size: MmioSize::Halfword,
                register: Some(5),
                sign_extend: true,
                sixty_four: true,
                acquire_release: true,
            })
        );
        // STRB WZR, [...].
        let zero = abort(DATA | ISV | 31 << 16 | WNR | TRANSLATION).mmio(ipa).unwrap();
        assert_eq!((zero.write, zero.size, zero.register), (true, MmioSize::Byte, None));
    }

    #[test]
    fn what_the_cpu_does_not_describe_is_not_decoded_for_a_device() {
        let ipa = Ipa::new(PAGE);
        assert_eq!(abort(DATA | TRANSLATION).mmio(ipa), None);
        assert_eq!(abort(DATA | ISV | S1PTW | TRANSLATION).mmio(ipa), None);
        assert_eq!(abort(DATA | ISV | CM | WNR | TRANSLATION).mmio(ipa), None);
        assert_eq!(abort(INSTRUCTION | ISV | TRANSLATION).mmio(ipa), None);
    }

    #[test]
    fn a_load_extends_as_the_instruction_does() {
        let load = |sas: u64, sse: u64, sf: u64| {
            let esr = DATA | ISV | sas << 22 | sse << 21 | sf << 15 | TRANSLATION;
            abort(esr).mmio(Ipa::new(0)).unwrap().loaded(0x8899_aabb_ccdd_eeff)
        };
        assert_eq!(load(0, 0, 0), 0xff);
        assert_eq!(load(0, 1, 0), 0xffff_ffff);
        assert_eq!(load(0, 1, 1), 0xffff_ffff_ffff_ffff);
        assert_eq!(load(1, 0, 1), 0xeeff);
        assert_eq!(load(2, 1, 1), 0xffff_ffff_ccdd_eeff);
        assert_eq!(load(3, 0, 1), 0x8899_aabb_ccdd_eeff);
    }

    #[test]
    fn a_store_gives_the_device_only_the_bytes_stored() {
        let store = |sas: u64| {
            let esr = DATA | ISV | sas << 22 | WNR | TRANSLATION;
            abort(esr).mmio(Ipa::new(0)).unwrap().stored(0x8899_aabb_ccdd_eeff)
        };
        assert_eq!([store(0), store(1), store(2), store(3)], [0xff, 0xeeff, 0xccdd_eeff, 0x8899_aabb_ccdd_eeff]);
    }

    proptest! {
        #[test]
        fn no_syndrome_panics(esr: u64, far: u64, hpfar: u64, data: u64) {
            for exception in [DATA, INSTRUCTION] {
                let esr = esr & !(0x3f << 26) | exception;
                let abort = decode(Syndrome { esr, far, hpfar }, &features()).unwrap();
                let _ = abort.wants_write();
                if let Some(mmio) = abort.mmio(Ipa::new(hpfar)) {
                    let _ = (mmio.loaded(data), mmio.stored(data));
                }
            }
        }
    }
}
