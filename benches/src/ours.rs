//! This library, on a machine without an MMU.

use std::alloc::{Layout, alloc_zeroed};
use std::ptr::NonNull;
use std::sync::OnceLock;

use stage2::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};
use stage2::cpu::{CpuIndex, CpuSlot};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::Content;
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule4K, IdRegisters};
use stage2::memory::{Pool, PoolRegion};
use stage2::{Ipa, IpaRange, Mmu, Pa, Reader, Stage2};

use crate::{PAGE, PAGES, Subject, address_of, frame_of};

/// The pages of a table.
pub const PAGES_PER_TABLE: u64 = 512;
const CPUS: usize = 4;
const POOL_BYTES: usize = 1 << 20;
/// Where the pool is said to be.
const POOL: u64 = 0x10_0000_0000;

/// A machine whose tables nobody walks.
pub type Machine = Mmu<'static, NoMmu, Pool<Granule4K>>;

/// Instructions that do nothing.
pub struct NoMmu;

impl Arch for NoMmu {
    fn dsb(&self, _: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _: Tlbi) {}
    fn enter_vmid(&self, _: Stage2Registers) -> SavedContext {
        SavedContext::default()
    }
    fn leave_vmid(&self, _: SavedContext) {}
    fn load(&self, _: Stage2Registers) {}
    fn unload(&self) {}
    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }
    fn is_loaded(&self, _: Stage2Registers) -> bool {
        true
    }
    fn translate_stage1(&self, _: u64, _: Stage1Access) -> u64 {
        0
    }
    fn clean_invalidate_to_poc(&self, _: Pa, _: u64) {}
    fn synchronize_instructions(&self, _: Pa, _: u64, _: bool, _: bool) {}
}

/// The machine, which all trees share.
pub fn machine() -> &'static Machine {
    static SLOTS: [CpuSlot; CPUS] = [const { CpuSlot::new() }; CPUS];
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let layout = Layout::from_size_align(POOL_BYTES, PAGE as usize).expect("a layout");
        // SAFETY: the layout has a size.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory");
        let region = PoolRegion { pa: Pa::new(POOL), start, bytes: POOL_BYTES };
        // SAFETY: the memory is never freed, nobody else has it, and nothing walks it.
        let pool = unsafe { Pool::new(&[region]) };
        Mmu::new(NoMmu, pool, features(), &SLOTS)
    })
}

/// What its CPUs have: 48 bits of addresses, FEAT_S2FWB, DIC and IDC: no cache maintenance.
pub fn features() -> Features {
    let registers = IdRegisters {
        ctr_el0: 0xb444_c004,
        id_aa64mmfr0_el1: 0x0010_1125,
        id_aa64mmfr1_el1: 0x20,
        id_aa64mmfr2_el1: 1 << 40,
        ..IdRegisters::default()
    };
    Features::from_id_registers(&registers)
}

/// The `pages` pages from `first` on.
pub fn ipa_of(first: u64, pages: u64) -> IpaRange {
    IpaRange::new(Ipa::new(address_of(first)), pages * PAGE).expect("a range")
}

/// A tree on the machine, and the reader of its CPU 0.
pub struct Ours {
    tree: Option<Stage2<'static, NoMmu, Pool<Granule4K>>>,
    reader: Reader<'static>,
}

const RW: Attributes = Attributes::normal(Permissions::RW);

impl Ours {
    fn tree(&self) -> &Stage2<'static, NoMmu, Pool<Granule4K>> {
        self.tree.as_ref().expect("there until it is dropped")
    }

    fn map(&self, first: u64, pages: u64) {
        let range = ipa_of(first, pages);
        self.tree().map(&self.reader, range, Pa::new(frame_of(first)), RW, Content::New).expect("map");
    }

    fn unmap(&self, first: u64, pages: u64) {
        drop(self.tree().unmap(&self.reader, ipa_of(first, pages)).expect("unmap"));
    }
}

impl Subject for Ours {
    fn new() -> Self {
        let geometry = Geometry::new(39, &features(), GeometryOptions::default()).expect("geometry");
        let tree = Stage2::new(machine(), geometry, None).expect("tree");
        let new = Self { tree: Some(tree), reader: machine().reader(CpuIndex(0)).expect("reader") };
        new.map(0, PAGES);
        new.unmap(0, PAGES);
        new
    }

    fn map_page(&mut self, page: u64) {
        self.map(page, 1);
    }

    fn map_all(&mut self) {
        self.map(0, PAGES);
    }

    fn query(&self, page: u64) -> u64 {
        let found = self.tree().query(&self.reader, Ipa::new(address_of(page))).expect("query");
        found.expect("a mapping").pa.raw()
    }

    fn protect_all(&mut self) {
        self.tree().protect(&self.reader, ipa_of(0, PAGES), Permissions::R).expect("protect");
    }

    fn unmap_page(&mut self, page: u64) {
        self.unmap(page, 1);
    }

    fn unmap_all(&mut self) {
        self.unmap(0, PAGES);
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let tree = self.tree.take().expect("there until now");
        assert!(tree.teardown(&self.reader).is_ok(), "nobody has it loaded");
    }
}
