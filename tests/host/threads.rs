//! Four CPUs at work on one tree at once: faults, maps, unmaps, permissions, harvests, freezes, reclaim. At the end every
//! frame is where its page is or back with somebody, once; every write was harvested; and no table is left.
//!
//! The threads share nothing but the tree, relaxed atomics and [`Watched`] memory, so that a data race in the library is one
//! that a sanitizer can see.

use std::cell::RefCell;
use std::env;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use stage2::addr::{Ipa, IpaRange, Pa};
use stage2::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};
use stage2::cpu::CpuIndex;
use stage2::descriptor::Permissions;
use stage2::dirty::{Content, DirtyLog, Initial};
use stage2::error::ChangeCause;
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::mmu::Mmu;
use stage2::quiescence::{Quiescing, Reader};
use stage2::stage2::{Loaded, MapCause, MapError, Stage2, UnmapError};

use crate::support::*;
use crate::watched::{PlainWords, Watched};

const CPUS: u16 = 4;
/// Miri, which looks at every access, takes its time.
const STEPS: u32 = if cfg!(miri) { 100 } else { 30_000 };
const TIME: Duration = Duration::from_secs(2);
/// Names how many seconds it takes instead, without a limit to the steps.
const LONGER: &str = "STAGE2_STRESS_SECONDS";
/// Leaf tables in use, three under each table of level 2.
const TABLES: u64 = 12;
/// Pages in use of each.
const PAGES: u64 = 16;
const FRAMES: u64 = 400;
const FREE: u64 = u64::MAX;
const TABLE_PAGES: usize = 128;

type Tree<'h> = Stage2<'h, Quiet, Watched>;
type Here<'s, 'h> = Loaded<'s, 'h, Quiet, Watched>;

/// A machine whose instructions do nothing; the guest's stage 1 is the identity.
struct Quiet;

impl Arch for Quiet {
    fn dsb(&self, _: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _: Tlbi) {
        // Long enough for others to come in between.
        std::thread::yield_now();
    }
    fn enter_vmid(&self, _: Stage2Registers) -> SavedContext {
        SavedContext::default()
    }
    fn leave_vmid(&self, _: SavedContext) {}
    fn load(&self, _: Stage2Registers) {}
    fn unload(&self) {}
    fn translate_stage1(&self, address: u64, _: Stage1Access) -> u64 {
        address & !0xfff
    }
    fn clean_invalidate_to_poc(&self, _: Pa, _: u64) {}
    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }
    fn is_loaded(&self, _: Stage2Registers) -> bool {
        true
    }
    fn synchronize_instructions(&self, _: Pa, _: u64, _: bool, _: bool) {}
}

/// The address of one of the pages in use.
fn ipa_of(page: u64) -> u64 {
    let table = page / PAGES;
    ((table / 3) << 30) + table % 3 * TABLE + page % PAGES * PAGE
}

/// The page in use at this address.
fn page_of(ipa: u64) -> u64 {
    ((ipa >> 30) * 3 + ipa % (1 << 30) / TABLE) * PAGES + ipa % TABLE / PAGE
}

/// What everybody writes down.
struct Shadow {
    /// Where each frame is mapped, or on its way to or from.
    owners: Vec<AtomicU64>,
    /// What each frame holds.
    contents: PlainWords,
    /// The harvest before which each page was written last.
    written: Vec<AtomicU64>,
    /// The harvest in which each page was last.
    harvested: Vec<AtomicU64>,
    /// The harvest that is under way or was the last.
    harvest: AtomicU64,
}

impl Shadow {
    fn new() -> Self {
        let words = |count: u64, value| (0..count).map(|_| AtomicU64::new(value)).collect();
        Self {
            owners: words(FRAMES, FREE),
            contents: PlainWords::new(FRAMES),
            written: words(TABLES * PAGES, 0),
            harvested: words(TABLES * PAGES, 0),
            harvest: AtomicU64::new(0),
        }
    }

    fn own(&self, frame: Pa, ipa: u64) {
        let owner = &self.owners[(frame.raw() / PAGE) as usize];
        owner.compare_exchange(FREE, ipa, Relaxed, Relaxed).expect("a frame that was free");
        self.contents.write(frame);
    }

    fn disown(&self, frame: Pa, ipa: u64) {
        let owner = &self.owners[(frame.raw() / PAGE) as usize];
        owner.compare_exchange(ipa, FREE, Relaxed, Relaxed).expect("a frame of this page");
    }
}

/// Whether a removed frame is used again only after the grace period, as it must be.
#[derive(Clone, Copy, PartialEq)]
enum Grace {
    Kept,
    Broken,
}

/// One CPU: its own free frames, and those that wait for a grace period.
struct Cpu<'s> {
    shadow: &'s Shadow,
    frames: RefCell<Vec<Pa>>,
    removed: Vec<Quiescing<'static, Pa>>,
    grace: Grace,
    random: u64,
}

impl Backing for Cpu<'_> {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(RW)
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        let frame = self.frames.borrow_mut().pop().ok_or(Unavailable::Later)?;
        self.shadow.own(frame, ipa.raw());
        Ok(Page { frame, content: Content::New })
    }

    fn unused(&self, ipa: Ipa, page: Page) {
        self.shadow.disown(page.frame, ipa.raw());
        self.frames.borrow_mut().push(page.frame);
    }
}

impl Cpu<'_> {
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Frames whose grace period is over can be used again.
    fn collect(&mut self) {
        for frame in core::mem::take(&mut self.removed) {
            if self.grace == Grace::Broken {
                self.frames.borrow_mut().push(*frame.peek());
                continue;
            }
            match frame.poll() {
                Ok(frame) => self.frames.borrow_mut().push(frame),
                Err((frame, _)) => self.removed.push(frame),
            }
        }
    }

    fn fault(&mut self, loaded: &Here<'_, 'static>, reader: &Reader<'_>) {
        let page = self.random(TABLES * PAGES);
        let ipa = ipa_of(page);
        let (syndrome, write) = match self.random(3) {
            0 => (read_fault(ipa), false),
            1 => (write_fault(ipa), true),
            _ => (data_abort(ipa, code::PERMISSION | WRITE), true),
        };
        let harvest = self.shadow.harvest.load(Relaxed);
        let outcome = loaded.resolve(reader, self, syndrome).unwrap();
        if write && outcome == Outcome::Resumed {
            self.shadow.written[page as usize].fetch_max(harvest, Relaxed);
        }
    }

    fn map(&mut self, tree: &Tree<'static>, reader: &Reader<'_>) {
        let Some(frame) = self.frames.borrow_mut().pop() else { return };
        let ipa = ipa_of(self.random(TABLES * PAGES));
        self.shadow.own(frame, ipa);
        if let Err(error) = tree.map(reader, range(ipa, PAGE), frame, RW, Content::New) {
            let MapError::Stopped(stopped) = error else { panic!("{error:?}") };
            assert!(matches!(stopped.cause, MapCause::Exists | MapCause::Retry), "{stopped:?}");
            self.shadow.disown(frame, ipa);
            self.frames.borrow_mut().push(frame);
        }
    }

    /// A few pages, a table or all of them.
    fn some_range(&mut self) -> IpaRange {
        let first = ipa_of(self.random(TABLES * PAGES));
        match self.random(20) {
            0 => range(0, 4 << 30),
            1..=4 => range(first / TABLE * TABLE, TABLE),
            _ => range(first, (1 + self.random(4)) * PAGE),
        }
    }

    fn unmap(&mut self, tree: &Tree<'static>, reader: &Reader<'_>) {
        let range = self.some_range();
        let (shadow, removed) = (self.shadow, &mut self.removed);
        let result = tree.unmap_with(reader, range, |leaf| {
            shadow.contents.read(*leaf.frame.peek());
            shadow.disown(*leaf.frame.peek(), leaf.ipa.raw());
            removed.push(leaf.frame);
        });
        if let Err(error) = result {
            let UnmapError::Stopped(stopped) = error else { panic!("{error:?}") };
            assert_eq!(stopped.cause, ChangeCause::Retry);
        }
    }

    fn step(&mut self, tree: &Tree<'static>, loaded: &mut Here<'_, 'static>, reader: &mut Reader<'static>) {
        match self.random(32) {
            0..=15 => self.fault(loaded, reader),
            16..=18 => self.map(tree, reader),
            19..=21 => self.unmap(tree, reader),
            22 => {
                let range = self.some_range();
                tree.protect(reader, range, [Permissions::R, Permissions::RW][self.random(2) as usize]).unwrap();
            }
            23 => tree.write_protect(reader, self.some_range()).unwrap(),
            24..=26 => {
                if let Some(mapping) = tree.query(reader, Ipa::new(ipa_of(self.random(TABLES * PAGES)))).unwrap() {
                    self.shadow.contents.read(mapping.pa);
                }
            }
            27..=29 => {
                reader.quiescent();
                self.collect();
                tree.reclaim(reader, 4).unwrap();
            }
            30 => loaded.run(reader, std::hint::spin_loop).unwrap(),
            _ => {
                if let Ok(frozen) = tree.freeze(reader) {
                    std::thread::yield_now();
                    assert!(frozen.thaw(reader).is_ok());
                }
            }
        }
        reader.quiescent();
    }
}

/// What the one harvester does meanwhile.
fn harvest(log: &mut DirtyLog<'_, 'static, Quiet, Watched>, reader: &Reader<'_>, shadow: &Shadow) {
    let now = shadow.harvest.fetch_add(1, Relaxed) + 1;
    for table in 0..TABLES {
        let part = range(ipa_of(table * PAGES), 64 * PAGE);
        let mut bitmap = [0];
        log.scan(reader, part, &mut bitmap).unwrap();
        let _ = log.rearm(reader, part, &bitmap).unwrap();
        for bit in (0..PAGES).filter(|bit| bitmap[0] >> bit & 1 == 1) {
            shadow.harvested[page_of(part.start().raw() + bit * PAGE) as usize].store(now, Relaxed);
        }
    }
}

/// What one who only looks does meanwhile: finds pages, and copies them in the same read section, however long that takes. He
/// takes no lock, so that nothing but his quiescent states orders his looks with what comes after.
fn copy(tree: &Tree<'static>, reader: &Reader<'_>, shadow: &Shadow, table: u64) {
    let found: [Option<u64>; PAGES as usize] =
        std::array::from_fn(|page| target(tree, reader, ipa_of(table * PAGES + page as u64)));
    std::thread::yield_now();
    found.into_iter().flatten().for_each(|frame| shadow.contents.read(Pa::new(frame)));
}

#[test]
fn four_cpus_at_once_lose_no_frame_no_write_and_no_table() {
    work(Grace::Kept);
}

/// Passes, and ThreadSanitizer must say that a frame was written while others may still look at it.
#[test]
#[ignore = "a data race on purpose: ThreadSanitizer has to see it"]
fn a_frame_that_is_used_before_its_grace_period_is_over_is_a_data_race() {
    work(Grace::Broken);
}

fn work(grace: Grace) {
    let slots = Box::leak(cpus(usize::from(CPUS) + 2));
    let mmu: &'static Mmu<'static, _, _> =
        Box::leak(Box::new(Mmu::new(Quiet, Watched::new(TABLE_PAGES), features(), slots)));
    let tree: Tree<'static> = logged_guest(mmu, 0, 4 << 18);
    let shadow = Shadow::new();
    let longer =
        env::var(LONGER).ok().map(|seconds| Duration::from_secs(seconds.parse().expect("a number of seconds")));
    let (time, steps) = longer.map_or((TIME, STEPS), |time| (time, u32::MAX));
    let done = AtomicBool::new(false);
    let share = FRAMES / u64::from(CPUS);
    let mut cpus: Vec<Cpu<'_>> = (0..u64::from(CPUS))
        .map(|cpu| Cpu {
            shadow: &shadow,
            frames: RefCell::new((0..share).map(|n| Pa::new((cpu * share + n) * PAGE)).collect()),
            removed: Vec::new(),
            grace,
            random: 0x9e37_79b9_7f4a_7c15 >> cpu,
        })
        .collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = cpus
            .iter_mut()
            .enumerate()
            .map(|(index, cpu)| {
                let tree = &tree;
                scope.spawn(move || {
                    let mut reader = mmu.reader(CpuIndex(index as u16)).unwrap();
                    let mut loaded = tree.load(&reader).unwrap();
                    let until = Instant::now() + time;
                    for _ in 0..steps {
                        cpu.step(tree, &mut loaded, &mut reader);
                        if Instant::now() > until {
                            break;
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut reader = mmu.reader(CpuIndex(CPUS)).unwrap();
            let mut log = tree.start_logging(&reader, Initial::Clean).unwrap();
            while !done.load(Relaxed) {
                harvest(&mut log, &reader, &shadow);
                reader.quiescent();
            }
            harvest(&mut log, &reader, &shadow);
            log.stop();
        });
        scope.spawn(|| {
            let mut reader = mmu.reader(CpuIndex(CPUS + 1)).unwrap();
            for table in (0..TABLES).cycle().take_while(|_| !done.load(Relaxed)) {
                copy(&tree, &reader, &shadow, table);
                reader.quiescent();
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Relaxed);
        results.into_iter().for_each(|result| result.expect("a worker that did not panic"));
    });

    for page in 0..TABLES * PAGES {
        let [written, harvested] = [&shadow.written, &shadow.harvested].map(|log| log[page as usize].load(Relaxed));
        assert!(written <= harvested, "page {page}: written before harvest {written}, last in harvest {harvested}");
    }
    let mut reader = reader(mmu, 0);
    let mut mapped = 0;
    for page in 0..TABLES * PAGES {
        if let Some(pa) = target(&tree, &reader, ipa_of(page)) {
            assert_eq!(shadow.owners[(pa / PAGE) as usize].load(Relaxed), ipa_of(page));
            mapped += 1;
        }
    }
    let mut last = 0;
    tree.unmap_with(&reader, range(0, 1 << 40), |_| last += 1).unwrap();
    assert_eq!(last, mapped, "what can be seen is what there is");
    let with_cpus: usize = cpus.iter().map(|cpu| cpu.frames.borrow().len() + cpu.removed.len()).sum();
    assert_eq!((with_cpus + mapped) as u64, FRAMES);
    reclaim_all(&tree, &mut reader);
    assert_eq!(mmu.memory().live(), tree.geometry().root_tables());
    let statistics = mmu.statistics();
    assert!(statistics.tables_freed > 0, "{statistics:?}");
    assert!(tree.teardown(&reader).is_ok());
    assert_eq!(mmu.memory().live(), 0, "tables leaked");
}
