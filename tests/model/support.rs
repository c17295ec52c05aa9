//! What the tests share: a machine with one guest, CPUs to be taken in turn, and a backing that owns frames.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::cpu::{CpuIndex, CpuSlot};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, DirtyBitmap, DirtyLog, Word};
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule, Granule4K, IdRegisters};
use stage2::mmu::Mmu;
use stage2::model::{Access, ModelMemory, ModelMmu, Through};
use stage2::quiescence::Reader;
use stage2::stage2::{Loaded, Stage2};

use crate::features::RICH;

pub(crate) const PAGE: u64 = 4096;
/// What a leaf table of the 4K granule covers.
pub(crate) const TABLE: u64 = 512 * PAGE;
/// The first frame: no table is here or above.
pub(crate) const FRAMES: u64 = 0x8000_0000;
pub(crate) const RWX: Attributes = Attributes::normal(Permissions::RWX);

pub(crate) type Machine<G = Granule4K> = Mmu<'static, ModelMmu, ModelMemory<G>>;
pub(crate) type Guest<G = Granule4K> = Stage2<'static, ModelMmu, ModelMemory<G>>;

pub(crate) type Log = DirtyLog<'static, 'static, ModelMmu, ModelMemory<Granule4K>>;

/// CPUs with everything the library makes use of but hardware updates.
pub(crate) fn rich() -> Features {
    Features::from_id_registers(&RICH)
}

/// The same with hardware management of access flag and dirty state.
pub(crate) fn with_hardware_updates() -> Features {
    Features::from_id_registers(&IdRegisters { id_aa64mmfr1_el1: RICH.id_aa64mmfr1_el1 | 2, ..RICH })
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

/// A guest of 40 bits of IPA with a side log for `pages` pages from 0 on, and the hardware updates that its CPUs have.
pub(crate) fn guest<G: Granule>(mmu: &'static Machine<G>, features: Features, pages: u64) -> Guest<G> {
    guest_at(mmu, features, 40, 0, pages)
}

/// The same with so many bits, logged from `base` on.
pub(crate) fn guest_at<G: Granule>(
    mmu: &'static Machine<G>,
    features: Features,
    ipa_bits: u8,
    base: u64,
    pages: u64,
) -> Guest<G> {
    let words: Box<[Word]> = (0..pages.div_ceil(64)).map(|_| Word::new(0)).collect();
    let log = DirtyBitmap { base: Ipa::new(base), words: Box::leak(words) };
    let options = GeometryOptions::default().with_hardware_update(features.hardware_update());
    Stage2::new(mmu, Geometry::new(ipa_bits, &features, options).unwrap(), Some(log)).unwrap()
}

/// What most tests begin with: CPU 0 is this thread, with its reader; the guest is of `features`.
pub(crate) struct Scene {
    pub(crate) model: ModelMmu,
    pub(crate) mmu: &'static Machine,
    pub(crate) guest: &'static Guest,
    pub(crate) frames: Frames,
}

/// Pages of a scene's log.
pub(crate) const LOGGED: u64 = 4 * 512;

impl Scene {
    pub(crate) fn new(features: Features, seed: u64) -> Self {
        Self::with_largest_leaf(features, seed, Level::LEAF)
    }

    /// With blocks up to those of `level`.
    pub(crate) fn with_largest_leaf(features: Features, seed: u64, level: Level) -> Self {
        Self::on_model(ModelMmu::new::<Granule4K>(4, seed), features, |mmu| {
            guest(mmu, features, LOGGED).with_largest_leaf(level)
        })
    }

    /// On this model, with the guest that `make` makes.
    pub(crate) fn on_model(model: ModelMmu, features: Features, make: impl FnOnce(&'static Machine) -> Guest) -> Self {
        let mmu = machine(&model, 4, 64, features);
        let _cpu = model.cpu(0);
        let guest = Box::leak(Box::new(make(mmu)));
        Self { model, mmu, guest, frames: Frames::default() }
    }

    /// CPU `cpu` does something; its guest is loaded.
    pub(crate) fn on<T>(&self, cpu: u16, work: impl FnOnce(&Running<'_>) -> T) -> T {
        let _cpu = self.model.cpu(cpu);
        let reader = reader(self.mmu, cpu);
        let loaded = self.guest.load(&reader).unwrap();
        work(&Running { scene: self, loaded, reader })
    }

    /// Unmaps `range` as CPU 0 and gives the frames back, each once its page has another one.
    pub(crate) fn unmap(&self, reader: &Reader<'_>, range: IpaRange) -> u64 {
        let release = |removed: stage2::stage2::Removed<'_>| {
            let bytes = Granule4K::entry_size(removed.level);
            self.model.free_frame(*removed.frame.peek(), bytes);
            (0..bytes / PAGE).for_each(|page| self.frames.set(removed.ipa.offset(page * PAGE), self.frames.fresh()));
        };
        self.guest.unmap_with(reader, range, release).unwrap().leaves
    }
}

/// A CPU with the scene's guest loaded.
pub(crate) struct Running<'s> {
    scene: &'s Scene,
    pub(crate) loaded: Loaded<'static, 'static, ModelMmu, ModelMemory<Granule4K>>,
    pub(crate) reader: Reader<'static>,
}

impl Running<'_> {
    /// The guest stores to this page, taking faults as they come.
    pub(crate) fn stores(&self, page: u64, value: u64) {
        guest_stores(&self.loaded, &self.reader, &self.scene.frames, page * PAGE, value);
    }

    /// The guest tries this until it passes.
    pub(crate) fn accesses(&self, page: u64, access: Access) -> Pa {
        guest_accesses(&self.loaded, &self.reader, &self.scene.frames, page * PAGE, access)
    }

    /// Whether an access may pass as things are, through any translation there may be.
    pub(crate) fn may(&self, page: u64, access: Access) -> bool {
        (0..TRIES).any(|_| self.scene.model.access(self.scene.mmu.memory(), page * PAGE, access).is_ok())
    }
}

/// A backing with a frame for each page: the one it has now.
pub(crate) struct Frames {
    of: RefCell<BTreeMap<u64, Pa>>,
    next: Cell<u64>,
    bytes: u64,
}

impl Default for Frames {
    fn default() -> Self {
        Self::with_pages_of(PAGE)
    }
}

impl Frames {
    /// Frames of so many bytes.
    pub(crate) fn with_pages_of(bytes: u64) -> Self {
        Self { of: RefCell::default(), next: Cell::new(FRAMES), bytes }
    }

    /// Frames that are none of another guest's.
    pub(crate) fn beginning_at(nth: u64) -> Self {
        Self { next: Cell::new(FRAMES + (nth << 20)), ..Self::default() }
    }

    /// A frame that was never used.
    pub(crate) fn fresh(&self) -> Pa {
        Pa::new(self.next.replace(self.next.get() + self.bytes))
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
pub(crate) fn guest_accesses<G: Granule>(
    loaded: &Loaded<'_, 'static, ModelMmu, ModelMemory<G>>,
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
