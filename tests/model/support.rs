//! What the tests share: a machine with one guest, CPUs to be taken in turn, and a backing that owns frames.

use std::cell::RefCell;
use std::collections::BTreeMap;

use stage2::addr::{Ipa, IpaRange, Pa};
use stage2::cpu::{CpuIndex, CpuSlot};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, DirtyBitmap, Word};
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule, Granule4K, IdRegisters};
use stage2::mmu::Mmu;
use stage2::model::{Access, ModelMemory, ModelMmu, Seat, Through};
use stage2::quiescence::Reader;
use stage2::stage2::{Loaded, Stage2};

pub(crate) const PAGE: u64 = 4096;
/// What a leaf table of the 4K granule covers.
pub(crate) const TABLE: u64 = 512 * PAGE;
/// The first frame: no table is here or above.
pub(crate) const FRAMES: u64 = 0x8000_0000;
pub(crate) const RWX: Attributes = Attributes::normal(Permissions::RWX);

pub(crate) type Machine<G = Granule4K> = Mmu<'static, ModelMmu, ModelMemory<G>>;
pub(crate) type Guest<G = Granule4K> = Stage2<'static, ModelMmu, ModelMemory<G>>;

/// CPUs with everything the library makes use of but hardware updates.
pub(crate) fn rich() -> Features {
    Features::from_id_registers(&IdRegisters {
        ctr_el0: 0b11 << 28 | 0x8444_c004,
        id_aa64isar0_el1: 2 << 56,
        id_aa64mmfr0_el1: 1 << 20 | 5,
        id_aa64mmfr1_el1: 1 << 28 | 2 << 4,
        id_aa64mmfr2_el1: 1 << 48 | 1 << 40,
    })
}

/// CPUs with nothing optional.
pub(crate) fn plain() -> Features {
    Features::from_id_registers(&IdRegisters { id_aa64mmfr0_el1: 5, ..IdRegisters::default() })
}

pub(crate) fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

/// A machine that lives as long as the test program.
pub(crate) fn machine<G: Granule>(
    model: &ModelMmu,
    cpus: u16,
    tables: usize,
    features: Features,
) -> &'static Machine<G> {
    let slots: Box<[CpuSlot]> = (0..cpus).map(|_| CpuSlot::new()).collect();
    Box::leak(Box::new(Mmu::new(model.clone(), model.memory(tables), features, Box::leak(slots))))
}

/// A guest of 40 bits of IPA with a side log for `pages` pages from 0 on.
pub(crate) fn guest<G: Granule>(mmu: &'static Machine<G>, features: Features, pages: u64) -> Guest<G> {
    let words: Box<[Word]> = (0..pages.div_ceil(64)).map(|_| Word::new(0)).collect();
    let log = DirtyBitmap { base: Ipa::new(0), words: Box::leak(words) };
    let geometry = Geometry::new(40, &features, GeometryOptions::default()).unwrap();
    Stage2::new(mmu, geometry, Some(log)).unwrap()
}

/// A backing with a frame for each page: the one it has now.
#[derive(Default)]
pub(crate) struct Frames {
    of: RefCell<BTreeMap<u64, Pa>>,
    next: RefCell<u64>,
}

impl Frames {
    /// A frame that was never used.
    pub(crate) fn fresh(&self) -> Pa {
        let mut next = self.next.borrow_mut();
        *next += 1;
        Pa::new(FRAMES + *next * PAGE)
    }

    pub(crate) fn set(&self, ipa: Ipa, frame: Pa) {
        self.of.borrow_mut().insert(ipa.raw(), frame);
    }

    pub(crate) fn get(&self, ipa: Ipa) -> Pa {
        *self.of.borrow_mut().entry(ipa.raw()).or_insert_with(|| self.fresh())
    }
}

impl Backing for Frames {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(RWX)
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: self.get(ipa), content: Content::Unchanged })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

/// How often a guest that is alone may fault on one access.
const TRIES: usize = 64;

/// The guest on this CPU stores, taking faults as they come.
pub(crate) fn guest_stores(
    loaded: &Loaded<'_, 'static, ModelMmu, ModelMemory<Granule4K>>,
    reader: &Reader<'_>,
    backing: &impl Backing,
    va: u64,
    value: u64,
) {
    let mmu = loaded.stage2().mmu();
    for _ in 0..TRIES {
        let Err(syndrome) = mmu.arch().store(mmu.memory(), va, value, Through::Caches) else { return };
        let outcome = loaded.resolve(reader, backing, syndrome).unwrap();
        assert!(matches!(outcome, Outcome::Resumed | Outcome::Retry), "{outcome:?}");
    }
    panic!("the guest does not get on at {va:#x}");
}

/// The guest on this CPU tries `access` until it passes.
pub(crate) fn guest_accesses(
    loaded: &Loaded<'_, 'static, ModelMmu, ModelMemory<Granule4K>>,
    reader: &Reader<'_>,
    backing: &impl Backing,
    va: u64,
    access: Access,
) -> Pa {
    let mmu = loaded.stage2().mmu();
    for _ in 0..TRIES {
        match mmu.arch().access(mmu.memory(), va, access) {
            Ok(pa) => return pa,
            Err(syndrome) => {
                let outcome = loaded.resolve(reader, backing, syndrome).unwrap();
                assert!(matches!(outcome, Outcome::Resumed | Outcome::Retry), "{outcome:?}");
            }
        }
    }
    panic!("the guest does not get on at {va:#x}");
}

pub(crate) fn reader<G: Granule>(mmu: &'static Machine<G>, cpu: u16) -> Reader<'static> {
    mmu.reader(CpuIndex(cpu)).unwrap()
}

pub(crate) fn seat<G: Granule>(mmu: &'static Machine<G>, cpu: u16) -> Seat {
    mmu.arch().cpu(cpu)
}
