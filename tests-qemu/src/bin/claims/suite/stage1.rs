//! The guest's own translation: EL1's registers, and tables in the guest's memory.
//!
//! All of 0 to 4 GiB is mapped one to one by blocks, and from [`WINDOW`] on pages can be mapped anywhere. 4K pages, whatever
//! stage 2 has.

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1, VBAR_EL1, Writeable};

use super::blob::{CODE, VECTORS};

/// The guest's root table, as IPA.
pub(crate) const ROOT: u64 = 0x4400_0000;
/// The table behind it, for the window: 2 MiB an entry.
pub(crate) const MIDDLE: u64 = ROOT + 0x1000;
/// The table behind it, for the window's second GiB. Not mapped unless a claim does.
pub(crate) const MIDDLE_2: u64 = ROOT + 0x8000;
/// The table of the window's first 2 MiB: 4 KiB an entry.
pub(crate) const LEAVES: u64 = ROOT + 0x2000;
/// The first virtual address that is not mapped one to one.
pub(crate) const WINDOW: u64 = 4 << 30;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;

/// The root's entry for the window.
const WINDOW_ENTRY: usize = (WINDOW >> 30) as usize;

/// EL1's registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regime {
    mair: u64,
    tcr: u64,
    ttbr0: u64,
    sctlr: u64,
}

impl Regime {
    /// RES1 bits.
    const SCTLR: u64 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11;
    /// 39-bit addresses from TTBR0, 4K, write-back inner-shareable walks, 40-bit output; TTBR1 off.
    const TCR: u64 = (64 - 39) | 1 << 8 | 1 << 10 | 0b11 << 12 | 1 << 23 | 0b010 << 32;
    /// TCR_EL1.HA.
    const HARDWARE_ACCESS_FLAG: u64 = 1 << 39;

    /// Stage 1 off.
    pub(crate) const OFF: Self = Self { mair: 0xff, tcr: 0, ttbr0: 0, sctlr: Self::SCTLR };

    /// Stage 1 on, with the tables here: MMU, data and instruction cache.
    pub(crate) const ON: Self =
        Self { mair: 0xff, tcr: Self::TCR, ttbr0: ROOT, sctlr: Self::SCTLR | 1 << 12 | 1 << 2 | 1 };

    /// And the CPU sets the Access flag itself.
    pub(crate) const fn with_hardware_access_flag(self) -> Self {
        Self { tcr: self.tcr | Self::HARDWARE_ACCESS_FLAG, ..self }
    }

    /// Makes this CPU's EL1 registers these, and points it at the vectors. With no tree loaded: QEMU drops all of the TLB.
    pub(crate) fn enter(&self) {
        VBAR_EL1.set(CODE + VECTORS);
        MAIR_EL1.set(self.mair);
        TCR_EL1.set(self.tcr);
        TTBR0_EL1.set(self.ttbr0);
        SCTLR_EL1.set(self.sctlr);
    }

    /// Whether stage 1 is on.
    pub(crate) const fn is_on(&self) -> bool {
        self.sctlr & 1 != 0
    }
}

/// Fills the root.
pub(crate) fn fill_root(root: &[AtomicU64]) {
    for (gib, entry) in root.iter().take(WINDOW_ENTRY).enumerate() {
        entry.store((gib as u64) << 30 | ACCESSED | INNER_SHAREABLE | VALID, Ordering::Relaxed);
    }
    for (entry, middle) in root[WINDOW_ENTRY..].iter().zip([MIDDLE, MIDDLE_2]) {
        entry.store(table(middle), Ordering::Relaxed);
    }
}

/// An entry that points to the table at `ipa`.
pub(crate) const fn table(ipa: u64) -> u64 {
    ipa | TABLE_OR_PAGE | VALID
}

/// An entry that maps the page at `ipa`, for EL1 to read, write and execute.
pub(crate) const fn page(ipa: u64) -> u64 {
    page_not_accessed(ipa) | ACCESSED
}

/// The same, its Access flag clear.
pub(crate) const fn page_not_accessed(ipa: u64) -> u64 {
    ipa | INNER_SHAREABLE | TABLE_OR_PAGE | VALID
}

/// The Access flag of an entry.
pub(crate) const fn is_accessed(entry: u64) -> bool {
    entry & ACCESSED != 0
}
