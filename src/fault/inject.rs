//! A fault handed on to the guest: the values that make its EL1 see an exception of its own.
//!
//! Two steps, because two parties know the halves. The fault path decides *what* the guest is to see and makes a
//! [`Reflection`] of the abort; the embedder, who holds the vCPU's registers, turns it into an [`Injection`] and writes
//! that: ESR_EL1, FAR_EL1, SPSR_EL1 and ELR_EL1 for the guest to read, ELR_EL2 and SPSR_EL2 for the ERET that
//! enters its vector. What an exception does to PSTATE is `AArch64.TakeException` of the Arm ARM; not all of it can be
//! seen from the registers, so the embedder says which features its guest has ([`GuestRegisters`]).
//!
//! EL1 must be in AArch64; EL0 may be in AArch32. Not covered, because no guest is given them: EL1 in AArch32,
//! SCTLR2_EL1.EASE (FEAT_DoubleFault2), PSTATE.EXLOCK (FEAT_GCS) and PSTATE.PM (FEAT_SEBEP).

use tock_registers::fields::Field;

use super::decode::Abort;
use super::syndrome::{ESR_ELX, FaultClass};

/// What the guest is to see.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum GuestFault {
    /// A synchronous external abort, not on a walk: nothing answers at that address.
    ExternalAbort,
    /// An address size fault, level 0: the address has more bits than the guest's machine.
    AddressSize,
    /// An alignment fault.
    Alignment,
    /// An unsupported atomic hardware update: the guest's own tables are in memory without atomics.
    UnsupportedAtomicUpdate,
    /// An unsupported exclusive or atomic access.
    UnsupportedExclusive,
}

impl GuestFault {
    /// The fault status code.
    const fn code(self) -> u64 {
        match self {
            Self::ExternalAbort => 0b01_0000,
            Self::AddressSize => 0b00_0000,
            Self::Alignment => 0b10_0001,
            Self::UnsupportedAtomicUpdate => 0b11_0001,
            Self::UnsupportedExclusive => 0b11_0101,
        }
    }
}

/// An abort as the guest is to see it, but for the exception level it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Reflection {
    instruction: bool,
    iss: u64,
    far: u64,
}

/// The vCPU's registers at the exception, and the features its guest has that they do not show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GuestRegisters {
    /// `ELR_EL2`: where the guest was.
    pub elr_el2: u64,
    /// `SPSR_EL2`: its PSTATE.
    pub spsr_el2: u64,
    /// `SCTLR_EL1`: of it SPAN, DSSBS and SPINTMASK are used.
    pub sctlr_el1: u64,
    /// `VBAR_EL1`.
    pub vbar_el1: u64,
    /// The guest has FEAT_MTE: PSTATE.TCO is set on entry.
    pub memory_tagging: bool,
    /// The guest has FEAT_NMI: PSTATE.ALLINT is set on entry, unless SCTLR_EL1.SPINTMASK.
    pub non_maskable_interrupts: bool,
}

/// What to write so that the guest takes the exception when it is resumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Injection {
    /// To `ESR_EL1`.
    pub esr_el1: u64,
    /// To `FAR_EL1`.
    pub far_el1: u64,
    /// To `ELR_EL1`.
    pub elr_el1: u64,
    /// To `SPSR_EL1`.
    pub spsr_el1: u64,
    /// To `ELR_EL2`: the vector.
    pub elr_el2: u64,
    /// To `SPSR_EL2`: PSTATE in the vector.
    pub spsr_el2: u64,
}

/// The exception was not taken from EL0, or from EL1 in AArch64: there is nothing to inject into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NotAGuestState {
    /// `SPSR_EL2`.
    pub spsr_el2: u64,
}

impl core::fmt::Display for NotAGuestState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SPSR_EL2 {:#x} is neither of EL0 nor of EL1 in AArch64", self.spsr_el2)
    }
}

impl core::error::Error for NotAGuestState {}

/// Bits of an AArch64 SPSR, but where it says otherwise.
mod spsr {
    pub(super) const FLAGS: u64 = 0b1111 << 28;
    pub(super) const TCO: u64 = 1 << 25;
    pub(super) const DIT: u64 = 1 << 24;
    pub(super) const DIT_AARCH32: u64 = 1 << 21;
    pub(super) const PAN: u64 = 1 << 22;
    pub(super) const ALLINT: u64 = 1 << 13;
    pub(super) const SSBS: u64 = 1 << 12;
    pub(super) const DAIF: u64 = 0b1111 << 6;
    pub(super) const MODE: u64 = 0b1_1111;
    pub(super) const EL0T: u64 = 0b0_0000;
    pub(super) const EL1T: u64 = 0b0_0100;
    pub(super) const EL1H: u64 = 0b0_0101;
    pub(super) const USER_AARCH32: u64 = 0b1_0000;
}

/// Bits of `SCTLR_EL1`.
mod sctlr {
    pub(super) const SPAN: u64 = 1 << 23;
    pub(super) const DSSBS: u64 = 1 << 44;
    pub(super) const SPINTMASK: u64 = 1 << 62;
}

/// The bits of VBAR_EL1 that are an address.
const VBAR_MASK: u64 = !0x7ff;

/// Where the exception comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    El1WithSp0,
    El1,
    El0,
    El0AArch32,
}

impl Origin {
    fn of(spsr_el2: u64) -> Result<Self, NotAGuestState> {
        match spsr_el2 & spsr::MODE {
            spsr::EL1T => Ok(Self::El1WithSp0),
            spsr::EL1H => Ok(Self::El1),
            spsr::EL0T => Ok(Self::El0),
            spsr::USER_AARCH32 => Ok(Self::El0AArch32),
            _ => Err(NotAGuestState { spsr_el2 }),
        }
    }

    /// The vector of a synchronous exception (Arm ARM D1.4, "Exception vectors").
    const fn vector(self) -> u64 {
        match self {
            Self::El1WithSp0 => 0x000,
            Self::El1 => 0x200,
            Self::El0 => 0x400,
            Self::El0AArch32 => 0x600,
        }
    }
}

impl Abort {
    /// The abort as the guest is to see it: as `fault`, of stage 1, at the address that it used.
    ///
    /// Of ESR_EL2 only what is the guest's own business is kept: `WnR`, `CM`, and of an external abort passed on as
    /// one `SET`, `EA` and `FnV`. `S1PTW` and the description of the register (`ISV`) are for EL2 alone.
    pub fn reflect(&self, fault: GuestFault) -> Reflection {
        let esr = self.syndrome.esr;
        let kept = |field: Field<u64, ESR_ELX::Register>| field.val(field.read(esr)).value;

        let instruction = ESR_ELX::EC::InstructionAbortLowerEl.matches_all(esr);
        let mut iss = fault.code();
        if !instruction {
            iss |= kept(ESR_ELX::CM) | kept(ESR_ELX::WNR);
        }
        let mut far = self.syndrome.far;
        if let FaultClass::ExternalAbort { on_walk, .. } = self.class {
            // FnV is of the access alone: a walk always has an address.
            let far_unknown = !on_walk && ESR_ELX::FNV.is_set(esr);
            if far_unknown {
                far = 0;
            }
            if fault == GuestFault::ExternalAbort {
                iss |= kept(ESR_ELX::SET) | kept(ESR_ELX::EA) | ESR_ELX::FNV.val(far_unknown as u64).value;
            }
        }
        Reflection { instruction, iss, far }
    }
}

impl Reflection {
    /// The exception for a vCPU with these registers.
    ///
    /// # Errors
    /// [`NotAGuestState`] if it was neither in EL0 nor in EL1 in AArch64.
    pub fn inject(&self, registers: &GuestRegisters) -> Result<Injection, NotAGuestState> {
        let origin = Origin::of(registers.spsr_el2)?;
        let class = match (self.instruction, origin) {
            (true, Origin::El0 | Origin::El0AArch32) => ESR_ELX::EC::InstructionAbortLowerEl,
            (true, Origin::El1 | Origin::El1WithSp0) => ESR_ELX::EC::InstructionAbortSameEl,
            (false, Origin::El0 | Origin::El0AArch32) => ESR_ELX::EC::DataAbortLowerEl,
            (false, Origin::El1 | Origin::El1WithSp0) => ESR_ELX::EC::DataAbortSameEl,
        };
        Ok(Injection {
            // IL is 1 for an instruction abort, and for a data abort without ISV, whatever the instruction's length.
            esr_el1: (class + ESR_ELX::IL::SET).value | self.iss,
            far_el1: self.far,
            elr_el1: registers.elr_el2,
            spsr_el1: registers.spsr_el2,
            elr_el2: (registers.vbar_el1 & VBAR_MASK) | origin.vector(),
            spsr_el2: registers.pstate_on_entry(origin),
        })
    }
}

impl GuestRegisters {
    /// PSTATE after an exception to EL1 (Arm ARM, `AArch64.TakeException`): the flags, DIT and PAN stay; PAN is set
    /// unless SPAN, SSBS is what DSSBS says; UAO, SS, IL and BTYPE become 0.
    fn pstate_on_entry(&self, origin: Origin) -> u64 {
        let mut pstate = self.spsr_el2 & (spsr::FLAGS | spsr::PAN) | spsr::DAIF | spsr::EL1H;
        let dit = if origin == Origin::El0AArch32 { spsr::DIT_AARCH32 } else { spsr::DIT };
        if self.spsr_el2 & dit != 0 {
            pstate |= spsr::DIT;
        }
        // A CPU without FEAT_PAN has SPAN as RES1, one without FEAT_SSBS has DSSBS as RES0.
        if self.sctlr_el1 & sctlr::SPAN == 0 {
            pstate |= spsr::PAN;
        }
        if self.sctlr_el1 & sctlr::DSSBS != 0 {
            pstate |= spsr::SSBS;
        }
        if self.memory_tagging {
            pstate |= spsr::TCO;
        }
        if self.non_maskable_interrupts && self.sctlr_el1 & sctlr::SPINTMASK == 0 {
            pstate |= spsr::ALLINT;
        }
        pstate
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::super::syndrome::Syndrome;
    use super::*;
    use crate::geometry::{Features, IdRegisters};
    use proptest::prelude::*;

    const DATA: u64 = 0x24 << 26;
    const INSTRUCTION: u64 = 0x20 << 26;
    const VA: u64 = 0xffff_8000_1234_5678;

    /// A guest with SPAN set, as before FEAT_PAN, at `mode`.
    fn guest(mode: u64) -> GuestRegisters {
        GuestRegisters {
            elr_el2: 0xffff_8000_0001_0000,
            spsr_el2: mode,
            sctlr_el1: sctlr::SPAN,
            vbar_el1: 0xffff_8000_0800_0800,
            ..GuestRegisters::default()
        }
    }

    fn abort(esr: u64) -> Abort {
        let features = Features::from_id_registers(&IdRegisters::default());
        decode(Syndrome { esr, far: VA, hpfar: 0 }, &features).unwrap()
    }

    fn injection(esr: u64, fault: GuestFault, registers: &GuestRegisters) -> Injection {
        abort(esr).reflect(fault).inject(registers).unwrap()
    }

    #[test]
    fn a_data_abort_of_the_kernel_is_one_of_the_same_level() {
        let guest = guest(spsr::EL1H);
        let injection = injection(DATA | 1 << 6 | 0x07, GuestFault::ExternalAbort, &guest);
        assert_eq!(injection.esr_el1, 0x25 << 26 | 1 << 25 | 1 << 6 | 0x10);
        assert_eq!(injection.far_el1, VA);
        assert_eq!((injection.elr_el1, injection.spsr_el1), (guest.elr_el2, guest.spsr_el2));
        assert_eq!(injection.elr_el2, 0xffff_8000_0800_0a00);
        assert_eq!(injection.spsr_el2, 0x3c5);
    }

    #[test]
    fn the_vector_and_the_class_follow_where_the_guest_was() {
        let at = |exception, mode| {
            let injection = injection(exception | 0x07, GuestFault::ExternalAbort, &guest(mode));
            (injection.elr_el2 & 0x7ff, injection.esr_el1 >> 26)
        };
        assert_eq!(at(DATA, spsr::EL1T), (0x000, 0x25));
        assert_eq!(at(DATA, spsr::EL1H), (0x200, 0x25));
        assert_eq!(at(DATA, spsr::EL0T), (0x400, 0x24));
        assert_eq!(at(DATA, spsr::USER_AARCH32), (0x600, 0x24));
        assert_eq!(at(INSTRUCTION, spsr::EL1H), (0x200, 0x21));
        assert_eq!(at(INSTRUCTION, spsr::EL0T), (0x400, 0x20));
    }

    #[test]
    fn each_fault_has_its_status_code() {
        let code = |fault| injection(DATA | 0x07, fault, &guest(spsr::EL1H)).esr_el1 & 0x3f;
        assert_eq!(code(GuestFault::ExternalAbort), 0x10);
        assert_eq!(code(GuestFault::AddressSize), 0x00);
        assert_eq!(code(GuestFault::Alignment), 0x21);
        assert_eq!(code(GuestFault::UnsupportedAtomicUpdate), 0x31);
        assert_eq!(code(GuestFault::UnsupportedExclusive), 0x35);
    }

    #[test]
    fn what_is_for_el2_alone_is_not_shown_to_the_guest() {
        // ISV, SAS, SSE, SRT, SF, AR, S1PTW and a level.
        let esr = DATA | 1 << 24 | 0x3ff << 14 | 1 << 7 | 0x0f;
        let injection = injection(esr, GuestFault::ExternalAbort, &guest(spsr::EL1H));
        assert_eq!(injection.esr_el1, 0x25 << 26 | 1 << 25 | 0x10);
    }

    #[test]
    fn an_instruction_abort_has_no_write_bit() {
        let injection = injection(INSTRUCTION | 1 << 8 | 1 << 6 | 0x07, GuestFault::ExternalAbort, &guest(spsr::EL1H));
        assert_eq!(injection.esr_el1 & (1 << 8 | 1 << 6), 0);
    }

    #[test]
    fn an_external_abort_passed_on_keeps_its_state_and_whether_its_address_is_known() {
        let esr = DATA | 0b10 << 11 | 1 << 10 | 1 << 9 | 0x10;
        let passed_on = injection(esr, GuestFault::ExternalAbort, &guest(spsr::EL1H));
        assert_eq!(passed_on.esr_el1, 0x25 << 26 | 1 << 25 | 0b10 << 11 | 1 << 10 | 1 << 9 | 0x10);
        assert_eq!(passed_on.far_el1, 0);
        let as_other = injection(esr, GuestFault::Alignment, &guest(spsr::EL1H));
        assert_eq!((as_other.esr_el1 & 0x1fff, as_other.far_el1), (0x21, 0));
        // The bits of FnV, EA and SET mean something else, or nothing, in a translation fault.
        let made =
            injection(DATA | 0b10 << 11 | 1 << 10 | 1 << 9 | 0x07, GuestFault::ExternalAbort, &guest(spsr::EL1H));
        assert_eq!((made.esr_el1 & 0x1fff, made.far_el1), (0x10, VA));
    }

    #[test]
    fn entry_keeps_flags_dit_and_pan_and_clears_the_rest() {
        let old = guest(u32::MAX as u64 & !spsr::MODE | spsr::EL0T);
        let injection = injection(DATA | 0x07, GuestFault::ExternalAbort, &old);
        assert_eq!(injection.spsr_el2, spsr::FLAGS | spsr::DIT | spsr::PAN | spsr::DAIF | spsr::EL1H);
        assert_eq!(injection.spsr_el1, old.spsr_el2);
    }

    #[test]
    fn dit_of_an_aarch32_program_moves_to_its_aarch64_place() {
        let entered = |spsr| injection(DATA | 0x07, GuestFault::ExternalAbort, &guest(spsr)).spsr_el2;
        assert_eq!(entered(spsr::USER_AARCH32 | spsr::DIT_AARCH32), 0x3c5 | spsr::DIT);
        // In AArch32 the AArch64 place of DIT is that of other bits, and the other way round (SS).
        assert_eq!(entered(spsr::USER_AARCH32 | spsr::DIT), 0x3c5);
        assert_eq!(entered(spsr::EL0T | spsr::DIT_AARCH32), 0x3c5);
    }

    #[test]
    fn what_sctlr_asks_for_is_set_on_entry() {
        let entered = |sctlr_el1| {
            let registers = GuestRegisters { sctlr_el1, ..guest(spsr::EL1H) };
            injection(DATA | 0x07, GuestFault::ExternalAbort, &registers).spsr_el2
        };
        assert_eq!(entered(sctlr::SPAN), 0x3c5);
        assert_eq!(entered(0), 0x3c5 | spsr::PAN);
        assert_eq!(entered(sctlr::SPAN | sctlr::DSSBS), 0x3c5 | spsr::SSBS);
    }

    #[test]
    fn features_that_registers_do_not_show_are_taken_from_the_embedder() {
        let entered = |registers| injection(DATA | 0x07, GuestFault::ExternalAbort, &registers).spsr_el2;
        assert_eq!(entered(GuestRegisters { memory_tagging: true, ..guest(spsr::EL1H) }), 0x3c5 | spsr::TCO);
        let nmi = GuestRegisters { non_maskable_interrupts: true, ..guest(spsr::EL1H) };
        assert_eq!(entered(nmi), 0x3c5 | spsr::ALLINT);
        assert_eq!(entered(GuestRegisters { sctlr_el1: sctlr::SPAN | sctlr::SPINTMASK, ..nmi }), 0x3c5);
    }

    proptest! {
        #[test]
        fn every_state_is_entered_or_refused(spsr_el2: u64, esr: u64, vbar_el1: u64, sctlr_el1: u64) {
            let registers = GuestRegisters { spsr_el2, vbar_el1, sctlr_el1, ..GuestRegisters::default() };
            let reflection = abort(esr & !(0x3f << 26) | DATA).reflect(GuestFault::ExternalAbort);
            let injected = reflection.inject(&registers);
            let guest_state = [0x00, 0x04, 0x05, 0x10].contains(&(spsr_el2 & 0x1f));
            prop_assert_eq!(injected.is_ok(), guest_state);
            if let Ok(injection) = injected {
                prop_assert_eq!(injection.spsr_el2 & 0x1f, spsr::EL1H);
                prop_assert_eq!(injection.elr_el2 & 0x1ff, 0);
            }
        }
    }
}
