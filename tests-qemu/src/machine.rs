//! The library on this machine: what all CPUs can do, table memory, and the [`Mmu`] over both.
//!
//! ```ignore
//! static SLOTS: [CpuSlot; MAX_CPUS] = machine::slots();
//!
//! let mut free = ram::take_free()?;
//! let features = machine::features();                     // on the boot CPU, outside a `cpus::scope`
//! let tables = machine::tables(free.take(8 << 20, 4096)?);
//! let mmu = unsafe { machine::mmu(tables, features, &SLOTS) }; // a local: `cpus::scope` lends it to all CPUs
//! let geometry = Geometry::new(40, &features, GeometryOptions::default())?;
//! let stage2 = Stage2::new(&mmu, geometry, None)?;
//! cpus::scope(cpus::count(), |cpu| {
//!     let mut reader = mmu.reader(machine::index(cpu))?;
//!     ...
//! });
//! ```
//!
//! `Psci::wait` and `park` lose VTCR_EL2, VTTBR_EL2 and HCR_EL2: prepare the CPU and load the tree after them, and call
//! them within [`Reader::offline`](stage2::Reader::offline).

use core::{arch::asm, ptr::NonNull};

use aarch64_cpu::registers::{ID_AA64ISAR0_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1, Readable};
use spin::Mutex;
use stage2::{
    Mmu, Pa, Stage2,
    arch::Aarch64,
    cpu::{self, CpuSlot},
    geometry::{Features, Granule4K, IdRegisters},
    memory::{PoolRegion, TableMemory},
    stage2::Loaded,
};
use stage2_platform::{
    cpus::{self, CpuIndex, MAX_CPUS},
    ram::Region,
    trace::Lessened,
};

use crate::tables::TracedPool;

/// Table memory.
pub type Tables = TracedPool<Granule4K>;
/// The library's services on this machine.
pub type MachineMmu<'h> = Mmu<'h, Aarch64, Tables>;
/// A guest's tables on this machine.
pub type GuestStage2<'h> = Stage2<'h, Aarch64, Tables>;
/// Such a tree, loaded on a CPU.
pub type GuestLoaded<'s, 'h> = Loaded<'s, 'h, Aarch64, Tables>;

/// A slot for each CPU, none of them claimed: what to initialise a static with.
pub const fn slots() -> [CpuSlot; MAX_CPUS] {
    [const { CpuSlot::new() }; MAX_CPUS]
}

/// The library's number of a CPU: the platform's.
pub const fn index(cpu: CpuIndex) -> cpu::CpuIndex {
    cpu::CpuIndex(cpu.get() as u16)
}

/// What all CPUs of the machine have. Asks each of them, so it is called on the boot CPU, outside [`cpus::scope`].
pub fn features() -> Features {
    let common: Mutex<Option<Features>> = Mutex::new(None);
    cpus::scope(cpus::count(), |_| {
        let own = Features::from_id_registers(&id_registers());
        let mut common = common.lock();
        *common = Some(common.map_or(own, |common| common.meet(own)));
    });
    // The scope has run on this CPU, if on no other.
    common.into_inner().unwrap_or_else(|| Features::from_id_registers(&id_registers()))
}

fn id_registers() -> IdRegisters {
    let ctr_el0;
    // SAFETY: CTR_EL0 only tells.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr_el0, options(nomem, nostack, preserves_flags)) };
    IdRegisters {
        ctr_el0,
        id_aa64isar0_el1: ID_AA64ISAR0_EL1.get(),
        id_aa64mmfr0_el1: ID_AA64MMFR0_EL1.get(),
        id_aa64mmfr1_el1: ID_AA64MMFR1_EL1.get(),
        id_aa64mmfr2_el1: ID_AA64MMFR2_EL1.get(),
    }
}

/// Table memory that fills `region`.
pub fn tables(region: Region) -> Tables {
    let start = NonNull::new(region.pointer());
    let region = start.map(|start| PoolRegion { pa: Pa::new(region.start()), start, bytes: region.size() as usize });
    // SAFETY: RAM, mapped one to one for the rest of the run; the `Region`, which ends here, was its only owner.
    unsafe { Tables::new(region, Lessened::No) }
}

/// The library's services over `tables`. `features` are [`features`]'s, or fewer.
///
/// # Safety
///
/// - It is called once: there is one allocator of VMIDs.
/// - A CPU's [`Reader`](stage2::Reader) is claimed and used on that CPU, [`index`]'s.
pub unsafe fn mmu<M: TableMemory>(tables: M, features: Features, slots: &[CpuSlot]) -> Mmu<'_, Aarch64, M> {
    // SAFETY: the platform runs Rust code at EL2 with translation on and maps all RAM write-back, one to one. Of the
    // registers in question it writes HCR_EL2 alone, in `partition::prepare`, before a tree is loaded. The rest is this
    // function's own contract.
    let arch = unsafe { Aarch64::new(0, &features) };
    Mmu::new(arch, tables, features, slots)
}
