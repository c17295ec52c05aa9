//! What happens on a machine, as far as stage 2 is concerned.

use crate::addr::Pa;
use crate::arch::{Dsb, Scope, Stage2Registers, Tlbi, ipa_operand};

/// Something a CPU did. A recorded trace is a list of these, each with its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Table memory gave out pages, zeroed: the zeroes are this CPU's stores.
    TableGiven {
        /// The first page.
        table: Pa,
        /// log2 of how many.
        order: u32,
    },
    /// They went back to table memory.
    TableFreed {
        /// The first page.
        table: Pa,
        /// log2 of how many.
        order: u32,
    },
    /// A descriptor was loaded by software.
    Look {
        /// Its table.
        table: Pa,
        /// Its place there.
        index: usize,
        /// With acquire semantics.
        acquire: bool,
    },
    /// A descriptor was stored.
    Store {
        /// Its table.
        table: Pa,
        /// Its place there.
        index: usize,
        /// What was there.
        old: u64,
        /// What is there now.
        new: u64,
        /// With release semantics.
        release: bool,
    },
    /// The hardware updated AF or S2AP\[1\] of a descriptor.
    Updated {
        /// Its table.
        table: Pa,
        /// Its place there.
        index: usize,
        /// What is there now.
        new: u64,
    },
    /// `DMB ISH`, or a fence.
    Fence,
    /// A DSB.
    Dsb(Dsb),
    /// An ISB, or another context synchronization event.
    Isb,
    /// A TLB invalidate instruction.
    Tlbi(Invalidate),
    /// VTCR_EL2 and VTTBR_EL2 were written.
    Registers {
        /// With this.
        registers: Stage2Registers,
        /// Whether stage 2 is enabled with it, so that the CPU may walk from there. If not, invalidations are for this VMID, and
        /// the CPU walks from where it did.
        walks: bool,
    },
    /// A lock was taken.
    Locked(Lock),
    /// A lock is given back.
    Unlocked(Lock),
    /// This CPU holds nothing any more that it found in a table.
    SectionEnded,
    /// A frame was given back, and may hold something else from now on.
    FrameFreed {
        /// Its address.
        frame: Pa,
        /// Its length.
        bytes: u64,
    },
    /// The hypervisor copies a page that a rearm has cleaned: a store from now on must not pass unseen.
    Copied {
        /// The page's address in the guest.
        ipa: u64,
    },
}

/// A lock, by what it protects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lock {
    /// The lock of the table at this address.
    Table(Pa),
    /// Some other, known by where it is.
    Other(u64),
}

/// A TLB invalidate instruction as it is issued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalidate {
    /// Which.
    pub instruction: Instruction,
    /// Its register operand; 0 where it has none.
    pub operand: u64,
    /// Who it reaches.
    pub scope: Scope,
}

/// The TLB invalidate instructions that concern stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// `IPAS2E1`.
    Ipas2e1,
    /// `IPAS2LE1`: the last level only.
    Ipas2le1,
    /// `RIPAS2E1`.
    Ripas2e1,
    /// `RIPAS2LE1`: the last level only.
    Ripas2le1,
    /// `VMALLE1`.
    Vmalle1,
    /// `VMALLS12E1`.
    Vmalls12e1,
    /// `ALLE1`.
    Alle1,
}

impl From<Tlbi> for Invalidate {
    fn from(operation: Tlbi) -> Self {
        use Instruction::*;
        let (instruction, operand, scope) = match operation {
            Tlbi::Ipa { ipa, ttl, scope } => (Ipas2e1, ipa_operand(ipa, ttl), scope),
            Tlbi::IpaRange { operand, scope } => (Ripas2e1, operand.raw(), scope),
            Tlbi::Vmalle1 { scope } => (Vmalle1, 0, scope),
            Tlbi::Vmalls12e1 { scope } => (Vmalls12e1, 0, scope),
            Tlbi::Alle1 { scope } => (Alle1, 0, scope),
        };
        Self { instruction, operand, scope }
    }
}
