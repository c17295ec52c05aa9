//! What the hardware writes to a leaf between a look of ours and the store that follows.

use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::aging::Flush;
use crate::cpu::{CpuIndex, CpuSlot};
use crate::descriptor::{Attributes, Descriptor, Permissions};
use crate::dirty::{Content, DirtyBitmap, Initial, Tracking};
use crate::geometry::granule::Granule4K;
use crate::geometry::{Features, Geometry, GeometryOptions, HardwareUpdate, IdRegisters};
use crate::memory::OwnTables;
use crate::memory::model::ModelMemory;
use crate::mmu::Mmu;
use crate::model::ModelArch;
use crate::quiescence::Reader;
use crate::stage2::Stage2;
use crate::sync::{Ordering, Word, probe};

type Guest = Stage2<'static, ModelArch, ModelMemory<Granule4K>>;

/// The hardware stores to a page right after the `nth` look of ours at its leaf.
struct Hardware {
    leaf: &'static Word,
    nth: usize,
    looks: AtomicUsize,
    /// Whether it could: DBM was there.
    stored: AtomicBool,
}

impl Hardware {
    /// Sets S2AP\[1\] as a store through DBM does.
    fn stores(&self, leaf: Descriptor) {
        if leaf.has_dbm() {
            self.leaf.store(leaf.with_dirty().raw(), Ordering::Relaxed);
            self.stored.store(true, Relaxed);
        }
    }
}

impl probe::Watcher for Hardware {
    fn look(&self, _: u16, word: usize, _: Ordering, load: &mut dyn FnMut() -> u64) -> u64 {
        let value = load();
        if word == core::ptr::from_ref(self.leaf).addr() && self.looks.fetch_add(1, Relaxed) == self.nth {
            self.stores(Descriptor::from_raw(value));
        }
        value
    }

    fn change(
        &self,
        _: u16,
        _: usize,
        _: Ordering,
        _: &mut dyn FnMut(u64) -> Option<u64>,
        change: &mut dyn FnMut() -> u64,
    ) -> u64 {
        change()
    }

    fn fence(&self, _: u16) {}
    fn locked(&self, _: u16, _: usize) {}
    fn unlocks(&self, _: u16, _: usize) {}
    fn section_ended(&self, _: u16) {}
}

/// A guest with a page that is writable and clean, with DBM, and accessed; the page's leaf.
fn scene() -> (Guest, Reader<'static>, &'static Word) {
    let registers =
        IdRegisters { id_aa64mmfr0_el1: 1 << 20 | 5, id_aa64mmfr1_el1: 1 << 28 | 2 << 4 | 2, ..IdRegisters::default() };
    let features = Features::from_id_registers(&registers);
    let slots: &[CpuSlot] = Box::leak(Box::new([CpuSlot::new()]));
    let mmu: &Mmu<'_, _, _> = Box::leak(Box::new(Mmu::new(ModelArch::new(), ModelMemory::new(8), features, slots)));
    let options = GeometryOptions::default().with_hardware_update(HardwareUpdate::AccessFlagAndDirty);
    let geometry = Geometry::new(40, &features, options).unwrap();
    let words = Box::leak(Box::new([Word::new(0)]));
    let guest: Guest = Stage2::new(mmu, geometry, Some(DirtyBitmap { base: Ipa::new(0), words })).unwrap();
    let reader = mmu.reader(CpuIndex(0)).unwrap();
    guest.map(&reader, page(), Pa::new(0), Attributes::normal(Permissions::RW), Content::New).unwrap();
    guest.start_logging_with(&reader, Initial::Clean, Tracking::Hardware).unwrap().stop();
    let table = guest.read_only(&reader).find_to(Ipa::new(0), Level::LEAF).unwrap().table.pa;
    let leaf = &mmu.memory.page(table).unwrap().entries[0];
    let now = Descriptor::from_raw(leaf.load(Ordering::Relaxed));
    assert!(now.has_dbm() && now.is_accessed() && !now.is_dirty());
    (guest, reader, leaf)
}

fn page() -> IpaRange {
    IpaRange::new(Ipa::new(0), 4096).unwrap()
}

/// What `operation` makes of the leaf keeps what the hardware has stored meanwhile, whenever it does.
fn assert_keeps_what_the_hardware_stores(operation: impl Fn(&Guest, &Reader<'_>)) {
    let mut stores = 0;
    for nth in 0.. {
        let (guest, reader, leaf) = scene();
        let hardware = Arc::new(Hardware { leaf, nth, looks: AtomicUsize::new(0), stored: AtomicBool::new(false) });
        let seat = probe::Seat::take(0, hardware.clone());
        operation(&guest, &reader);
        drop(seat);
        if hardware.looks.load(Relaxed) <= nth {
            break;
        }
        let stored = hardware.stored.load(Relaxed);
        stores += u32::from(stored);
        let after = Descriptor::from_raw(leaf.load(Ordering::Relaxed));
        assert_eq!(after.is_dirty(), stored, "look {nth}: {after:?}");
    }
    assert!(stores > 0, "it never looks at the leaf before it changes it");
}

#[test]
fn a_page_that_is_write_protected_just_when_the_hardware_stores_stays_dirty() {
    assert_keeps_what_the_hardware_stores(|guest, reader| guest.write_protect(reader, page()).unwrap());
}

#[test]
fn a_page_that_loses_its_permission_just_when_the_hardware_stores_stays_dirty() {
    assert_keeps_what_the_hardware_stores(|guest, reader| guest.protect(reader, page(), Permissions::R).unwrap());
}

#[test]
fn a_page_that_is_made_old_just_when_the_hardware_stores_stays_dirty() {
    assert_keeps_what_the_hardware_stores(|guest, reader| {
        let made_old = guest.make_old(reader, page(), 1, Flush::Now).unwrap();
        assert_eq!(made_old.young, 1);
    });
}
