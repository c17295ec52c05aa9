//! What the CPU reports of an abort that is taken to EL2: the three registers, and the names of their fields and codes.
//!
//! Everything here is a value; the registers are read in the exception vector, before anything can overwrite
//! them. [`decode`](super::decode::decode) makes sense of them.
//!
//! The fault status codes carry the level at which the hardware gave up. It is dropped here on purpose: CPUs and
//! emulators have reported wrong levels, and what the tables hold *now* is found by looking at them. The raw value
//! stays in [`Syndrome`] for who debugs.

use core::fmt;

use tock_registers::register_bitfields;

use crate::addr::Ipa;

register_bitfields! {u64,
    /// `ESR_EL2` for an abort, instruction or data.
    pub(super) ESR_ELX [
        EC OFFSET(26) NUMBITS(6) [
            InstructionAbortLowerEl = 0x20,
            InstructionAbortSameEl = 0x21,
            DataAbortLowerEl = 0x24,
            DataAbortSameEl = 0x25,
        ],
        IL OFFSET(25) NUMBITS(1) [],
        ISV OFFSET(24) NUMBITS(1) [],
        SAS OFFSET(22) NUMBITS(2) [],
        SSE OFFSET(21) NUMBITS(1) [],
        SRT OFFSET(16) NUMBITS(5) [],
        SF OFFSET(15) NUMBITS(1) [],
        AR OFFSET(14) NUMBITS(1) [],
        SET OFFSET(11) NUMBITS(2) [
            Recoverable = 0b00,
            Uncontainable = 0b10,
            Restartable = 0b11,
        ],
        FNV OFFSET(10) NUMBITS(1) [],
        EA OFFSET(9) NUMBITS(1) [],
        CM OFFSET(8) NUMBITS(1) [],
        S1PTW OFFSET(7) NUMBITS(1) [],
        WNR OFFSET(6) NUMBITS(1) [],
        FSC OFFSET(0) NUMBITS(6) [],
    ],
    pub(super) HPFAR_EL2 [
        FIPA OFFSET(4) NUMBITS(40) [],
    ],
    pub(super) PAR_EL1 [
        PA OFFSET(12) NUMBITS(40) [],
        F OFFSET(0) NUMBITS(1) [],
    ],
}

/// The registers that describe an exception taken to EL2.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Syndrome {
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`.
    pub far: u64,
    /// `HPFAR_EL2`.
    pub hpfar: u64,
}

impl Syndrome {
    /// The page that HPFAR_EL2 names; its security state (`NS`) is ignored.
    pub(super) fn hpfar_page(&self) -> Ipa {
        Ipa::new(HPFAR_EL2::FIPA.read(self.hpfar) << PAGE_BITS)
    }

    /// The offset of FAR_EL2 within 4 KiB, which stage 1 does not translate whatever its granule.
    pub(super) fn far_offset(&self) -> u64 {
        page_offset(self.far)
    }
}

impl fmt::Debug for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Syndrome {{ esr: {:#x}, far: {:#x}, hpfar: {:#x} }}", self.esr, self.far, self.hpfar)
    }
}

/// The address bits that FIPA and `PAR_EL1.PA` leave out.
const PAGE_BITS: u32 = 12;

const fn page_offset(address: u64) -> u64 {
    address & ((1 << PAGE_BITS) - 1)
}

/// `PAR_EL1` after an address translation instruction for stage 1 alone (`AT S1E1R`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Par(u64);

impl Par {
    /// From the register's value (its 64-bit form).
    pub const fn new(par_el1: u64) -> Self {
        Self(par_el1)
    }

    /// What stage 1 made of `far`, the address translated; `None` if the translation failed (`F`), as it does when
    /// the guest has changed its tables meanwhile: then the guest is resumed and faults again or does not.
    pub fn ipa(self, far: u64) -> Option<Ipa> {
        if PAR_EL1::F.is_set(self.0) {
            return None;
        }
        Some(Ipa::new(PAR_EL1::PA.read(self.0) << PAGE_BITS | page_offset(far)))
    }
}

/// How a synchronous external abort left the CPU (`SET`, FEAT_RAS).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ErrorState {
    /// Recoverable: the error was not consumed (also what a CPU without FEAT_RAS says).
    Recoverable,
    /// Uncontainable: the error may have spread.
    Uncontainable,
    /// Restartable: the interrupted code may go on.
    Restartable,
    /// A reserved value.
    Reserved,
}

/// What kind of fault an abort is: the fault status code (`DFSC`, `IFSC`) without its level.
///
/// The kind is a byte of its own: the fault path asks for it often.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum FaultClass {
    /// An address with too many bits, in a descriptor or as the input.
    AddressSize,
    /// No valid descriptor.
    Translation,
    /// A clear Access flag, and the hardware does not set it.
    AccessFlag,
    /// A descriptor that forbids the access.
    Permission,
    /// A synchronous external abort.
    ExternalAbort {
        /// Of a table walk, rather than of the access.
        on_walk: bool,
        /// What is left of the CPU.
        state: ErrorState,
    },
    /// A synchronous parity or ECC error.
    ParityOrEcc {
        /// Of a table walk, rather than of the access.
        on_walk: bool,
    },
    /// A misaligned access to Device memory, or that the instruction does not allow.
    Alignment,
    /// A tag check that failed (FEAT_MTE2).
    TagCheck,
    /// More than one TLB entry matched.
    TlbConflict,
    /// The memory of a descriptor that the hardware was to update has no atomics.
    UnsupportedAtomicUpdate,
    /// IMPLEMENTATION DEFINED: lockdown.
    Lockdown,
    /// IMPLEMENTATION DEFINED: an exclusive or atomic access to memory that has none.
    UnsupportedExclusive,
    /// A granule protection check failed (FEAT_RME).
    GranuleProtection {
        /// Of a table walk, rather than of the access.
        on_walk: bool,
    },
    /// A code that this library does not know.
    Unknown {
        /// The fault status code.
        code: u8,
    },
}

impl FaultClass {
    /// From `ESR_EL2` of an abort (Arm ARM, `ESR_EL2`, "ISS encoding for an exception from a Data Abort").
    #[inline(always)]
    pub(super) fn from_esr(esr: u64) -> Self {
        // Four codes each, for levels 0 to 3: those that stage 2 has to do with, first.
        match ESR_ELX::FSC.read(esr) >> 2 {
            0b0001 => Self::Translation,
            0b0011 => Self::Permission,
            0b0010 => Self::AccessFlag,
            _ => Self::of_other_code(esr),
        }
    }

    #[cold]
    fn of_other_code(esr: u64) -> Self {
        let state = || match ESR_ELX::SET.read_as_enum(esr) {
            Some(ESR_ELX::SET::Value::Recoverable) => ErrorState::Recoverable,
            Some(ESR_ELX::SET::Value::Uncontainable) => ErrorState::Uncontainable,
            Some(ESR_ELX::SET::Value::Restartable) => ErrorState::Restartable,
            None => ErrorState::Reserved,
        };
        match ESR_ELX::FSC.read(esr) {
            // Beside levels 0 to 3 there are -1 (FEAT_LPA2) and -2 (FEAT_D128).
            0b00_0000..=0b00_0011 | 0b10_1001 | 0b10_1100 => Self::AddressSize,
            0b10_1011 | 0b10_1010 => Self::Translation,
            0b01_0000 => Self::ExternalAbort { on_walk: false, state: state() },
            0b01_0001 => Self::TagCheck,
            0b01_0010..=0b01_0111 => Self::ExternalAbort { on_walk: true, state: state() },
            0b01_1000 => Self::ParityOrEcc { on_walk: false },
            0b01_1011..=0b01_1111 => Self::ParityOrEcc { on_walk: true },
            0b10_0001 => Self::Alignment,
            0b10_0010..=0b10_0111 => Self::GranuleProtection { on_walk: true },
            0b10_1000 => Self::GranuleProtection { on_walk: false },
            0b11_0000 => Self::TlbConflict,
            0b11_0001 => Self::UnsupportedAtomicUpdate,
            0b11_0100 => Self::Lockdown,
            0b11_0101 => Self::UnsupportedExclusive,
            code => Self::Unknown { code: code as u8 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn class(code: u64) -> FaultClass {
        FaultClass::from_esr(0x24 << 26 | code)
    }

    #[test]
    fn every_level_of_a_code_is_the_same_class() {
        for level in 0..4 {
            assert_eq!(class(level), FaultClass::AddressSize);
            assert_eq!(class(0x04 + level), FaultClass::Translation);
            assert_eq!(class(0x08 + level), FaultClass::AccessFlag);
            assert_eq!(class(0x0c + level), FaultClass::Permission);
            assert_eq!(
                class(0x14 + level),
                FaultClass::ExternalAbort { on_walk: true, state: ErrorState::Recoverable }
            );
            assert_eq!(class(0x1c + level), FaultClass::ParityOrEcc { on_walk: true });
            assert_eq!(class(0x24 + level), FaultClass::GranuleProtection { on_walk: true });
        }
    }

    #[test]
    fn negative_levels_are_levels_too() {
        assert_eq!(class(0x29), FaultClass::AddressSize);
        assert_eq!(class(0x2c), FaultClass::AddressSize);
        assert_eq!(class(0x2a), FaultClass::Translation);
        assert_eq!(class(0x2b), FaultClass::Translation);
        assert_eq!(class(0x13), FaultClass::ExternalAbort { on_walk: true, state: ErrorState::Recoverable });
        assert_eq!(class(0x1b), FaultClass::ParityOrEcc { on_walk: true });
        assert_eq!(class(0x23), FaultClass::GranuleProtection { on_walk: true });
    }

    #[test]
    fn faults_without_a_level_have_their_own_class() {
        assert_eq!(class(0x10), FaultClass::ExternalAbort { on_walk: false, state: ErrorState::Recoverable });
        assert_eq!(class(0x11), FaultClass::TagCheck);
        assert_eq!(class(0x18), FaultClass::ParityOrEcc { on_walk: false });
        assert_eq!(class(0x21), FaultClass::Alignment);
        assert_eq!(class(0x28), FaultClass::GranuleProtection { on_walk: false });
        assert_eq!(class(0x30), FaultClass::TlbConflict);
        assert_eq!(class(0x31), FaultClass::UnsupportedAtomicUpdate);
        assert_eq!(class(0x34), FaultClass::Lockdown);
        assert_eq!(class(0x35), FaultClass::UnsupportedExclusive);
    }

    #[test]
    fn an_unassigned_code_is_kept() {
        assert_eq!(class(0x3f), FaultClass::Unknown { code: 0x3f });
        assert_eq!(class(0x20), FaultClass::Unknown { code: 0x20 });
    }

    #[test]
    fn an_external_abort_says_what_it_left_of_the_cpu() {
        let state = |set: u64| FaultClass::from_esr(0x24 << 26 | set << 11 | 0x10);
        assert_eq!(state(0b10), FaultClass::ExternalAbort { on_walk: false, state: ErrorState::Uncontainable });
        assert_eq!(state(0b11), FaultClass::ExternalAbort { on_walk: false, state: ErrorState::Restartable });
        assert_eq!(state(0b01), FaultClass::ExternalAbort { on_walk: false, state: ErrorState::Reserved });
    }

    #[test]
    fn hpfar_names_a_page_of_up_to_52_bits_whatever_its_security_state() {
        let page = |hpfar| Syndrome { hpfar, ..Syndrome::default() }.hpfar_page();
        assert_eq!(page(0x40_0000), Ipa::new(0x4000_0000));
        assert_eq!(page(u64::MAX), Ipa::new(0x000f_ffff_ffff_f000));
        assert_eq!(page(1 << 63 | 0xf | 1 << 4), Ipa::new(0x1000));
    }

    #[test]
    fn a_failed_translation_is_no_address() {
        assert_eq!(Par::new(0x0000_0000_0000_0809).ipa(0x1234), None);
    }

    #[test]
    fn a_translation_keeps_the_offset_and_drops_the_attributes() {
        assert_eq!(Par::new(0xff00_0000_4567_8f80).ipa(0xffff_8000_1234_5abc), Some(Ipa::new(0x4567_8abc)));
        assert_eq!(Par::new(0x000f_ffff_ffff_f000).ipa(0), Some(Ipa::new(0x000f_ffff_ffff_f000)));
    }

    #[test]
    fn a_syndrome_is_printed_in_hexadecimal() {
        let syndrome = Syndrome { esr: 0x9200_0007, far: 0x1000, hpfar: 0x10 };
        assert_eq!(format!("{syndrome:?}"), "Syndrome { esr: 0x92000007, far: 0x1000, hpfar: 0x10 }");
    }
}
