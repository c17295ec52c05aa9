//! CPU against MMU: barriers, TLB invalidation, address translation, cache maintenance, the stage-2 registers.
//!
//! [`Arch`] is an instance, not a set of static functions, so that a test can have many of them. `Aarch64` issues the
//! instructions; `ModelMmu` (feature `model`) stands in for a machine on a host.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod tlbi;

#[cfg(target_arch = "aarch64")]
pub use aarch64::Aarch64;
pub use tlbi::{RangeOperand, Scope, Tlbi, ipa_operand, ttl};

use crate::addr::Pa;

/// A Data Synchronization Barrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Dsb {
    /// Stores, Inner Shareable: what was written to tables is seen by all walkers.
    Ishst,
    /// Everything, Inner Shareable: a broadcast TLBI is complete on every CPU.
    Ish,
    /// Stores, this CPU.
    Nshst,
    /// Everything, this CPU: a local TLBI is complete.
    Nsh,
}

/// What stage 2 reads from registers while a guest's tree is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stage2Registers {
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VTTBR_EL2: root and VMID.
    pub vttbr: u64,
    /// HCR_EL2.FWB: stage 2's memory types override stage 1's.
    pub fwb: bool,
}

/// An access for [`Arch::translate_stage1`] to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Stage1Access {
    /// `AT S1E1R`: enough to learn an address, whatever the access was.
    Read,
    /// `AT S1E1W`.
    Write,
}

/// The machine's side of stage 2. Each method is what the Arm ARM calls by that name, and no more: sequences are the
/// library's business.
pub trait Arch {
    /// DSB.
    fn dsb(&self, barrier: Dsb);

    /// ISB.
    fn isb(&self);

    /// One TLB invalidate instruction for the EL1&0 regime, under the VMID in VTTBR_EL2. It is complete after the
    /// matching DSB and not before.
    fn tlbi(&self, operation: Tlbi);

    /// Makes the TLB invalidate instructions that follow apply to the VMID in `registers`, whatever regime the CPU's
    /// configuration would choose (VTTBR_EL2, and HCR_EL2.TGE clear, which under VHE selects the host's), until
    /// [`Self::leave_vmid`]. Synchronizes context. Interrupts are masked between the two.
    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext;

    /// Undoes [`Self::enter_vmid`]. Synchronizes context.
    fn leave_vmid(&self, saved: SavedContext);

    /// Makes `registers` this CPU's stage 2 and enables it (HCR_EL2.VM). Synchronizes context.
    fn load(&self, registers: Stage2Registers);

    /// Disables this CPU's stage 2, and leaves no root in VTTBR_EL2. Synchronizes context.
    fn unload(&self);

    /// Runs `f` with the EL1&0 regime of the loaded guest as the one that TLBI and AT apply to: under VHE, with HCR_EL2.TGE
    /// clear. Nothing has to be done where TGE is never set.
    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T;

    /// Whether `registers` are what this CPU has in VTCR_EL2 and VTTBR_EL2.
    fn is_loaded(&self, registers: Stage2Registers) -> bool;

    /// Translates a guest's virtual address through its stage 1 (and its own stage 2 where that is needed to walk) with an
    /// AT instruction, preserving the guest's PAR_EL1. Returns PAR_EL1 as the instruction left it. Within
    /// [`Self::in_guest_regime`].
    fn translate_stage1(&self, address: u64, access: Stage1Access) -> u64;

    /// Cleans and invalidates `bytes` from `start` on to the Point of Coherency. No barrier after.
    fn clean_invalidate_to_poc(&self, start: Pa, bytes: u64);

    /// Makes the instruction side see `bytes` from `start` on: `clean`s the data caches to the Point of Unification,
    /// `invalidate`s the instruction caches, on all CPUs. With the barrier it needs between, none after.
    fn synchronize_instructions(&self, start: Pa, bytes: u64, clean: bool, invalidate: bool);
}

/// What [`Arch::enter_vmid`] found, for [`Arch::leave_vmid`] to put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use = "the CPU stays in the guest's context until this is put back"]
pub struct SavedContext {
    /// VTCR_EL2 and VTTBR_EL2 as they were.
    pub registers: Stage2Registers,
    /// HCR_EL2 as it was.
    pub hcr: u64,
    /// DAIF as it was.
    pub daif: u64,
}
