//! A machine of a few CPUs and a tiny tree, made anew for every schedule, and the people who work on it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::{check_pct, check_random, thread};
use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::cpu::{CpuIndex, CpuSlot};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, DirtyBitmap, DirtyLog, Word};
use stage2::error::{ChangeCause, RangeError};
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::geometry::{Features, Geometry, GranuleTiny, HardwareUpdate, IdRegisters};
use stage2::model::{ModelMemory, ModelMmu, Seat, Through};
use stage2::quiescence::{Quiescing, Reader};
use stage2::stage2::{Loaded, Stage2};
use stage2::{Mmu, stage2 as tree};

use crate::features::RICH;

pub(crate) type Memory = ModelMemory<GranuleTiny>;
pub(crate) type Machine<'h> = Mmu<'h, ModelMmu, Memory>;
pub(crate) type Guest<'h> = Stage2<'h, ModelMmu, Memory>;

pub(crate) const PAGE: u64 = 4096;
/// Bytes of a block: all of a leaf table.
const BLOCK: u64 = 2 * PAGE;
/// Pages of the guest: two leaf tables of two.
pub(crate) const PAGES: u64 = 4;
/// CPUs of a machine.
pub(crate) const CPUS: usize = 4;
/// Table pages: the root, the leaf tables, and some to be in between.
const TABLES: usize = 12;
const FRAMES: u64 = 0x10_0000;
/// Schedules per test, of each kind.
const SCHEDULES: usize = 400;
/// Points at which a PCT schedule switches threads against their priorities.
const DEPTH: usize = 4;
/// How often an access is tried.
const TRIES: usize = 4;

/// Runs `body` in many schedules.
pub(crate) fn explore(body: impl Fn() + Send + Sync + Copy + 'static) {
    let schedules = env::var("STAGE2_SCHEDULES").ok().map(|number| number.parse().expect("a number"));
    let schedules = schedules.unwrap_or(SCHEDULES);
    check_random(body, schedules);
    check_pct(body, schedules, DEPTH);
    println!("{} schedules", 2 * schedules);
}

/// CPUs with everything the library makes use of, hardware updates too; 8-bit VMIDs, of which there are three here, if `narrow`.
pub(crate) fn features(narrow: bool) -> Features {
    let features = Features::from_id_registers(&IdRegisters { id_aa64mmfr1_el1: RICH.id_aa64mmfr1_el1 | 2, ..RICH });
    if narrow { features.without_vmid16() } else { features }
}

/// A machine, lent to `body`, whose thread is its CPU 0.
pub(crate) fn with_machine(narrow: bool, tables: usize, body: impl FnOnce(&ModelMmu, &Machine<'_>)) {
    let model = ModelMmu::new::<GranuleTiny>(CPUS, thread_rng().r#gen());
    let slots: [CpuSlot; CPUS] = core::array::from_fn(|_| CpuSlot::new());
    let mmu = Mmu::new(model.clone(), model.memory(tables), features(narrow), &slots);
    let _cpu = model.cpu(0);
    body(&model, &mmu);
    model.assert_nothing_leaked();
}

/// A machine with one guest that has a log, and what belongs to it.
pub(crate) fn with_guest(body: impl FnOnce(&Scene<'_, '_>)) {
    with_guest_of(Level::LEAF, body);
}

/// The same, with leaves up to those of this level.
pub(crate) fn with_guest_of(largest: Level, body: impl FnOnce(&Scene<'_, '_>)) {
    with_updated_guest(largest, HardwareUpdate::None, body);
}

/// The same, whose leaves the hardware updates.
pub(crate) fn with_updated_guest(largest: Level, updates: HardwareUpdate, body: impl FnOnce(&Scene<'_, '_>)) {
    with_machine(false, TABLES, |model, mmu| {
        let log = [Word::new(0)];
        let log = DirtyBitmap { base: Ipa::new(0), words: &log };
        let guest = Stage2::new(mmu, Geometry::tiny_with(2, 0, updates).unwrap(), Some(log))
            .unwrap()
            .with_largest_leaf(largest);
        let scene = Scene { model, mmu, guest: &guest, book: Book::default() };
        body(&scene);
        // Only what the scene itself borrows is left.
        drop(scene);
        let reader = mmu.reader(CpuIndex(0)).unwrap();
        assert!(guest.teardown(&reader).is_ok());
    });
}

/// What the CPUs share.
pub(crate) struct Scene<'s, 'h> {
    pub(crate) model: &'s ModelMmu,
    pub(crate) mmu: &'h Machine<'h>,
    pub(crate) guest: &'s Guest<'h>,
    pub(crate) book: Book,
}

/// Where each page is, and what was stored to it last.
#[derive(Default)]
pub(crate) struct Book {
    frames: Mutex<BTreeMap<u64, Pa>>,
    used: Mutex<u64>,
    last: Mutex<[u64; PAGES as usize]>,
    /// How often each page was accessed; written in the same step.
    accessed: Mutex<[u64; PAGES as usize]>,
    /// What the backing says from now on is that memory is read-only.
    pub(crate) read_only: AtomicBool,
    /// No store passes any more.
    pub(crate) closed: AtomicBool,
}

impl Book {
    /// Frames that were never used: of a page, or of a block of two.
    fn fresh(&self, bytes: u64) -> Pa {
        let mut used = self.used.lock().unwrap();
        let frame = (FRAMES + *used).next_multiple_of(bytes);
        *used = frame + bytes - FRAMES;
        Pa::new(frame)
    }

    fn put(&self, ipa: Ipa, frame: Pa, bytes: u64) {
        let mut frames = self.frames.lock().unwrap();
        frames.extend((0..bytes).step_by(PAGE as usize).map(|at| (ipa.raw() + at, frame.offset(at))));
    }

    pub(crate) fn frame(&self, ipa: Ipa) -> Pa {
        let known = self.frames.lock().unwrap().get(&ipa.raw()).copied();
        known.unwrap_or_else(|| {
            let fresh = self.fresh(PAGE);
            *self.frames.lock().unwrap().entry(ipa.raw()).or_insert(fresh)
        })
    }

    pub(crate) fn last(&self, page: u64) -> u64 {
        self.last.lock().unwrap()[page as usize]
    }

    /// How often each page was accessed until now.
    pub(crate) fn accessed(&self) -> [u64; PAGES as usize] {
        let _step = self.last.lock().unwrap();
        *self.accessed.lock().unwrap()
    }
}

impl Backing for Book {
    fn region(&self, _ipa: Ipa) -> Region {
        let read_only = self.read_only.load(Ordering::SeqCst);
        Region::Memory(Attributes::normal(if read_only { Permissions::RX } else { Permissions::RWX }))
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: self.frame(ipa), content: Content::Unchanged })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}

    /// The two pages have neighbouring frames, or none yet.
    fn block(&self, block: IpaRange, _write: bool) -> Option<Page> {
        let fresh = self.fresh(BLOCK);
        let mut frames = self.frames.lock().unwrap();
        let (first, second) = (block.start().raw(), block.start().raw() + PAGE);
        if !frames.contains_key(&first) && !frames.contains_key(&second) {
            frames.insert(first, fresh);
            frames.insert(second, fresh.offset(PAGE));
        }
        let (first, second) = (*frames.get(&first)?, *frames.get(&second)?);
        let fits = first.raw().is_multiple_of(BLOCK) && second == first.offset(PAGE);
        fits.then_some(Page { frame: first, content: Content::Unchanged })
    }
}

pub(crate) fn pages(first: u64, count: u64) -> IpaRange {
    IpaRange::new(Ipa::new(first * PAGE), count * PAGE).unwrap()
}

/// Some pages.
pub(crate) fn any_pages() -> IpaRange {
    let first = thread_rng().gen_range(0..PAGES);
    pages(first, thread_rng().gen_range(1..=PAGES - first))
}

impl<'h> Scene<'_, 'h> {
    /// This thread is a CPU.
    pub(crate) fn sit(&self, cpu: u16) -> (Seat, Reader<'h>) {
        (self.model.cpu(cpu), self.mmu.reader(CpuIndex(cpu)).unwrap())
    }

    /// The guest runs on CPUs 1 and 2, `count` accesses each, beside what `other` does.
    pub(crate) fn beside_the_guest(&self, count: usize, other: impl FnOnce() + Send) {
        thread::scope(|threads| {
            for cpu in 1..3 {
                threads.spawn(move || self.run_guest(cpu, count));
            }
            threads.spawn(other);
        });
    }

    /// CPU `cpu` freezes the guest, lets others run `turns` times, and thaws it: nothing was stored meanwhile.
    pub(crate) fn freeze_and_thaw(&self, cpu: u16, turns: usize) {
        let (_seat, reader) = self.sit(cpu);
        let stored = || (0..PAGES).map(|page| self.book.last(page)).collect::<Vec<u64>>();
        let frozen = self.guest.freeze(&reader).unwrap();
        let before = stored();
        (0..turns).for_each(|_| thread::yield_now());
        assert_eq!(before, stored(), "nothing passes while it is frozen");
        assert!(frozen.thaw(&reader).is_ok());
    }

    /// CPU `cpu` runs the guest, which makes `count` accesses.
    pub(crate) fn run_guest(&self, cpu: u16, count: usize) {
        let (_seat, mut reader) = self.sit(cpu);
        let mut loaded = self.guest.load(&reader).unwrap();
        for nth in 0..count {
            let page = thread_rng().gen_range(0..PAGES);
            if thread_rng().gen_ratio(2, 3) {
                self.store(&mut loaded, &mut reader, page, (u64::from(cpu) << 32) + nth as u64 + 1);
            } else {
                self.load(&mut loaded, &mut reader, page);
            }
        }
    }

    fn store(&self, loaded: &mut Loaded<'_, 'h, ModelMmu, Memory>, reader: &mut Reader<'h>, page: u64, value: u64) {
        self.attempt(loaded, reader, || {
            // The lock first: what was stored last is written down in the same step.
            let mut last = self.book.last.lock().unwrap();
            // Before the store, with nothing in between: shuttle switches before it loads.
            let closed = self.book.closed.load(Ordering::SeqCst);
            self.model.store(self.mmu.memory(), page * PAGE, value, Through::Caches)?;
            assert!(!closed, "no store passes any more");
            last[page as usize] = value;
            self.book.accessed.lock().unwrap()[page as usize] += 1;
            Ok(())
        });
    }

    fn load(&self, loaded: &mut Loaded<'_, 'h, ModelMmu, Memory>, reader: &mut Reader<'h>, page: u64) {
        self.attempt(loaded, reader, || {
            let last = self.book.last.lock().unwrap();
            let value = self.model.load(self.mmu.memory(), page * PAGE, Through::Caches)?;
            assert_eq!(value, last[page as usize], "the guest reads what was stored last");
            self.book.accessed.lock().unwrap()[page as usize] += 1;
            Ok(())
        });
    }

    fn attempt(
        &self,
        loaded: &mut Loaded<'_, 'h, ModelMmu, Memory>,
        reader: &mut Reader<'h>,
        mut access: impl FnMut() -> Result<(), stage2::fault::Syndrome>,
    ) {
        for _ in 0..TRIES {
            let Err(syndrome) = loaded.run(reader, &mut access).unwrap() else { return };
            match loaded.resolve(reader, &self.book, syndrome).unwrap() {
                Outcome::Resumed => {}
                Outcome::Retry => thread::yield_now(),
                // A permission that somebody has taken for good.
                Outcome::Reflect(_) => return,
                other => panic!("memory is not {other:?}"),
            }
        }
    }

    /// Unmaps some pages and moves what they hold to other frames; the old ones are poisoned once they can be had.
    pub(crate) fn move_pages(&self, reader: &Reader<'h>, moved: &RefCell<Vec<Quiescing<'h, Pa>>>) {
        const POISON: u64 = 0xdead;
        let release = |removed: tree::Removed<'h>| {
            let bytes = if removed.level == Level::LEAF { PAGE } else { BLOCK };
            let (old, new) = (*removed.frame.peek(), self.book.fresh(bytes));
            self.model.free_frame(old, bytes);
            for at in (0..bytes).step_by(PAGE as usize) {
                self.model.fill(new.offset(at), self.model.content(old.offset(at)));
            }
            self.book.put(removed.ipa, new, bytes);
            moved.borrow_mut().push(removed.frame);
        };
        match self.guest.unmap_with(reader, any_pages(), release) {
            Ok(_) => {}
            // A block there is being split or joined.
            Err(RangeError::Stopped(stopped)) if stopped.cause == ChangeCause::Retry => {}
            Err(error) => panic!("{error}"),
        }
        let waiting = moved.take();
        for frame in waiting {
            match frame.poll() {
                Ok(frame) => self.model.fill(frame, POISON),
                Err((frame, _)) => moved.borrow_mut().push(frame),
            }
        }
    }

    /// One round: scan, rearm, copy; whether a page was missed.
    pub(crate) fn harvest(
        &self,
        log: &mut DirtyLog<'_, 'h, ModelMmu, Memory>,
        reader: &Reader<'h>,
        replica: &mut [u64; PAGES as usize],
    ) -> bool {
        let mut missed = false;
        let mut dirty = [0];
        log.scan(reader, pages(0, PAGES), &mut dirty).unwrap();
        let _cleaned = log.rearm(reader, pages(0, PAGES), &dirty).unwrap();
        for page in (0..PAGES).filter(|page| dirty[0] & 1 << page != 0) {
            let ipa = Ipa::new(page * PAGE);
            match self.guest.view(reader, ipa).unwrap() {
                Some(view) => {
                    self.model.copied(ipa);
                    replica[page as usize] = self.model.content(view.pa());
                }
                // Not mapped just now: the next round finds it.
                None => {
                    self.guest.mark_dirty(pages(page, 1)).unwrap();
                    missed = true;
                }
            }
        }
        missed
    }

    /// The last round, when all others are done: what is not mapped is brought in first.
    pub(crate) fn last_harvest(
        &self,
        log: &mut DirtyLog<'_, 'h, ModelMmu, Memory>,
        reader: &mut Reader<'h>,
        replica: &mut [u64; PAGES as usize],
    ) {
        // What is left of tables on their way out.
        for _ in 0..4 {
            reader.quiescent();
            self.guest.reclaim(reader, 4).unwrap();
        }
        for page in 0..PAGES {
            let (range, frame) = (pages(page, 1), self.book.frame(Ipa::new(page * PAGE)));
            // If it is mapped it stays so.
            let _ = self.guest.map(reader, range, frame, Attributes::normal(Permissions::R), Content::Unchanged);
        }
        assert!(!self.harvest(log, reader, replica), "every page is mapped");
    }

    /// What every page holds in the end is what was stored to it last.
    pub(crate) fn assert_contents(&self) {
        for page in 0..PAGES {
            let content = self.model.content(self.book.frame(Ipa::new(page * PAGE)));
            assert_eq!(content, self.book.last(page), "page {page}");
        }
    }
}
