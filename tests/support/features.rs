//! The ID registers of a CPU with everything that the library makes use of but hardware updates: 48-bit addresses, all granules,
//! 16-bit VMIDs, XNX, FWB, TTL, range TLBI, DIC and IDC.

use stage2::geometry::IdRegisters;

pub(crate) const RICH: IdRegisters = IdRegisters {
    ctr_el0: 0b11 << 28 | 0x8444_c004,
    id_aa64isar0_el1: 2 << 56,
    id_aa64mmfr0_el1: 1 << 20 | 5,
    id_aa64mmfr1_el1: 1 << 28 | 2 << 4,
    id_aa64mmfr2_el1: 1 << 48 | 1 << 40,
};
