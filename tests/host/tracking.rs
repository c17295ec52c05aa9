//! The ways to track stores: write protection, the hardware's dirty state, and that of the hardware in tables that are in use. The
//! pages are no multiple of 64 and end at the top of the IPA space.

use std::sync::atomic::Ordering;

use stage2::addr::{Ipa, IpaRange, Pa};
use stage2::arch::Dsb;
use stage2::dirty::{Content, DirtyBitmap, DirtyLog, Initial, StartError, Tracking, Word};
use stage2::fault::{Outcome, Syndrome};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule4K, HardwareUpdate, IdRegisters};
use stage2::model::{Event, ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::Stage2;

use crate::support::*;
use crate::tables::path_as_told;

const PAGES: u64 = 3 * 512 + 77;
const BYTES: u64 = PAGES * PAGE;
/// The first page: the last one ends where 40 bits do.
const BASE: u64 = (1 << 40) - BYTES;
const ALL: [Tracking; 3] = [Tracking::WriteProtect, Tracking::Hardware, Tracking::Adaptive];

const DBM: u64 = 1 << 51;
const WRITTEN: u64 = 1 << 7;
const FIRST_BARRIER: fn(&Event) -> bool = |event| matches!(event, Event::Dsb(Dsb::Ishst));

type Log<'s> = DirtyLog<'s, 'static, Staged, ModelMemory<Granule4K>>;

fn updating() -> Features {
    Features::from_id_registers(&IdRegisters {
        id_aa64mmfr0_el1: 1 << 20 | 5,
        id_aa64mmfr1_el1: 1 << 28 | 2 << 4 | 2,
        ..IdRegisters::default()
    })
}

/// A guest that stores to its pages, on a CPU whose hardware manages dirty state.
struct Scene {
    guest: &'static Guest<Staged>,
    reader: Reader<'static>,
    /// Those of its pages.
    entries: Vec<&'static Word>,
}

impl Scene {
    fn new() -> Self {
        let mmu = machine_of(Staged(ModelArch::new()), 4, 32, updating());
        let options = GeometryOptions::default().with_hardware_update(HardwareUpdate::AccessFlagAndDirty);
        let words: Box<[Word]> = (0..PAGES.div_ceil(64)).map(|_| Word::new(0)).collect();
        let log = DirtyBitmap { base: Ipa::new(BASE), words: Box::leak(words) };
        let geometry = Geometry::new(40, &updating(), options).unwrap();
        let guest: &'static _ = Box::leak(Box::new(Stage2::new(mmu, geometry, Some(log)).unwrap()));
        let reader = reader(mmu, 0);
        give_vmid(guest, &reader);
        guest.map(&reader, all(), Pa::new(0), RW, Content::New).unwrap();
        let entry = |page: u64| {
            let ipa = Ipa::new(BASE + page * PAGE);
            let [.., (_, table)] = path_as_told(guest, &mmu.arch().0, &reader, ipa)[..] else { panic!("no table") };
            word(mmu.memory(), table, (ipa.raw() / PAGE) as usize % 512)
        };
        let entries = (0..PAGES).map(entry).collect();
        Self { guest, reader, entries }
    }

    fn start(&self, tracking: Tracking) -> Log<'static> {
        self.guest.start_logging_with(&self.reader, Initial::Clean, tracking).unwrap()
    }

    /// The guest stores to a page: whether it faults.
    fn store(&self, page: u64) -> bool {
        let old = self.entries[page as usize].load(Ordering::Relaxed);
        if old & WRITTEN != 0 {
            return false;
        }
        if old & DBM != 0 {
            self.entries[page as usize].fetch_or(WRITTEN, Ordering::Relaxed);
            return false;
        }
        let ipa = BASE + page * PAGE;
        self.guest.mmu().arch().0.map_stage1(ipa, Ipa::new(ipa));
        let fault = Syndrome { hpfar: u64::MAX, ..data_abort(ipa, code::PERMISSION | WRITE) };
        let loaded = self.guest.load(&self.reader).unwrap();
        assert_eq!(resolve(&loaded, &self.reader, &Memory::at(0, RW), fault), Outcome::Resumed);
        true
    }

    fn scan(&self, log: &mut Log<'_>) -> (Vec<u64>, Vec<u64>) {
        let mut bitmap = vec![0; PAGES.div_ceil(64) as usize];
        let found = log.scan(&self.reader, all(), &mut bitmap).unwrap();
        let pages: Vec<u64> = (0..PAGES).filter(|page| bitmap[(page / 64) as usize] >> (page % 64) & 1 == 1).collect();
        assert_eq!(found, pages.len() as u64);
        (pages, bitmap)
    }

    fn harvest(&self, log: &mut Log<'_>) -> Vec<u64> {
        let (pages, bitmap) = self.scan(log);
        assert_eq!(log.rearm(&self.reader, all(), &bitmap).unwrap().cleaned, pages.len() as u64);
        pages
    }
}

fn all() -> IpaRange {
    range(BASE, BYTES)
}

#[test]
fn each_way_finds_what_was_stored_since_the_last_harvest_and_nothing_else() {
    for tracking in ALL {
        let scene = Scene::new();
        let mut log = scene.start(tracking);
        assert_eq!(log.tracking(), tracking);
        assert_eq!(scene.harvest(&mut log), [], "{tracking}: it begins clean");
        let rounds: [&[u64]; 5] = [&[0, 63, 64, 511, 512, PAGES - 1], &[1, 64], &[], &[PAGES - 1], &[7, 8, 9, 1024]];
        for stored in rounds {
            stored.iter().for_each(|&page| _ = scene.store(page));
            assert_eq!(scene.harvest(&mut log), stored, "{tracking}");
        }
    }
}

#[test]
fn write_protection_faults_for_each_page_the_hardware_for_none_and_the_adaptive_way_once_a_table() {
    for (tracking, faults) in [(Tracking::WriteProtect, 1536), (Tracking::Hardware, 0), (Tracking::Adaptive, 4)] {
        let scene = Scene::new();
        let mut log = scene.start(tracking);
        // The first page of all is somewhere within a table: these are in four.
        assert_eq!((0..1536).filter(|&page| scene.store(page)).count(), faults, "{tracking}");
        assert_eq!(scene.harvest(&mut log).len(), 1536);
        let again = (0..1536).filter(|&page| scene.store(page)).count();
        assert_eq!(
            again,
            if tracking == Tracking::WriteProtect { 1536 } else { 0 },
            "{tracking}: what is in use stays armed"
        );
    }
}

#[test]
fn a_table_that_is_not_stored_to_for_a_harvest_is_write_protected_again_and_scans_skip_it() {
    let scene = Scene::new();
    let mut log = scene.start(Tracking::Adaptive);
    assert!(scene.store(5) && !scene.store(6));
    assert_eq!(scene.harvest(&mut log), [5, 6]);
    assert!(!scene.store(7), "it is armed");
    assert_eq!(scene.harvest(&mut log), [7]);
    scene.guest.mmu().arch().0.take_events();
    assert_eq!(scene.harvest(&mut log), [], "this one finds nothing");
    assert!(!tlbis(&scene.guest.mmu().arch().0).is_empty(), "no TLB lets the hardware note a store any more");
    let before = log.progress();
    assert_eq!(scene.harvest(&mut log), []);
    assert_eq!(log.progress().tables_scanned, before.tables_scanned, "nothing can be dirty");
    assert_eq!(log.progress().tables_skipped, before.tables_skipped + 4);
    assert!(scene.store(8), "the first store faults again");
    assert_eq!(scene.harvest(&mut log), [8]);
}

#[test]
fn what_the_hardware_still_makes_dirty_while_a_table_is_write_protected_again_is_in_the_next_harvest() {
    let scene = Scene::new();
    let mut log = scene.start(Tracking::Adaptive);
    scene.store(5);
    assert_eq!(scene.harvest(&mut log), [5]);
    let entry = scene.entries[9];
    // Before the flush: by a TLB that has the entry with DBM.
    cue(FIRST_BARRIER, move || {
        assert_eq!(entry.load(Ordering::Relaxed) & DBM, 0, "it was taken");
        entry.fetch_or(WRITTEN, Ordering::Relaxed);
    });
    assert_eq!(scene.harvest(&mut log), []);
    assert_eq!(scene.harvest(&mut log), [9]);
    assert_eq!(scene.harvest(&mut log), []);
}

#[test]
fn the_ways_follow_one_another_over_one_tree() {
    let scene = Scene::new();
    for tracking in ALL.into_iter().chain(ALL.into_iter().rev()) {
        for initial in [Initial::Clean, Initial::Dirty] {
            let mut log = scene.guest.start_logging_with(&scene.reader, initial, tracking).unwrap();
            let first = scene.harvest_unasked(&mut log);
            assert_eq!(first, if initial == Initial::Dirty { (0..PAGES).collect() } else { vec![] }, "{tracking}");
            for page in [3, 600, PAGES - 2] {
                scene.store(page);
                assert_eq!(scene.harvest(&mut log), [page], "{tracking}");
            }
            scene.store(40);
            log.stop();
        }
    }
}

impl Scene {
    /// A harvest of which not all was dirty.
    fn harvest_unasked(&self, log: &mut Log<'_>) -> Vec<u64> {
        let (pages, bitmap) = self.scan(log);
        let _rearmed = log.rearm(&self.reader, all(), &bitmap).unwrap();
        pages
    }
}

#[test]
fn without_hardware_dirty_state_there_is_write_protection_alone() {
    let mmu = machine(16);
    let guest = logged_guest(mmu, 0, 64);
    let reader = reader(mmu, 0);
    assert_eq!(guest.default_tracking(), Tracking::WriteProtect);
    for tracking in [Tracking::Hardware, Tracking::Adaptive] {
        let refused = guest.start_logging_with(&reader, Initial::Clean, tracking).err();
        assert_eq!(refused, Some(StartError::NoHardwareState));
    }
    assert!(guest.start_logging(&reader, Initial::Clean).is_ok(), "it was not left on");
}

#[test]
fn runs_are_what_a_scan_finds_neighbours_joined_whatever_the_budget() {
    let scene = Scene::new();
    let mut log = scene.start(Tracking::WriteProtect);
    for page in [0, 1, 2, 63, 64, 65, 511, 512, 700, PAGES - 2, PAGES - 1] {
        scene.store(page);
    }
    for budget in [0, 1, 2, u32::MAX] {
        let (mut runs, mut rest, mut found) = (Vec::new(), Some(all()), 0);
        while let Some(left) = rest {
            let scanned = log
                .scan_runs(&scene.reader, left, budget, |run| {
                    runs.push(((run.start().raw() - BASE) / PAGE, run.bytes() / PAGE))
                })
                .unwrap();
            found += scanned.found;
            rest = scanned.next.and_then(|next| IpaRange::inclusive(next, all().last()));
        }
        assert_eq!(runs, [(0, 3), (63, 3), (511, 2), (700, 1), (PAGES - 2, 2)]);
        assert_eq!(found, 11);
    }
    let outside = range(0, PAGE);
    assert!(log.scan_runs(&scene.reader, outside, 1, |_| panic!("a run")).is_err());
}

#[test]
fn a_harvest_that_is_given_back_is_in_the_next() {
    for tracking in ALL {
        let scene = Scene::new();
        let mut log = scene.start(tracking);
        scene.store(3);
        scene.store(700);
        let (_, bitmap) = scene.scan(&mut log);
        let _rearmed = log.rearm(&scene.reader, all(), &bitmap).unwrap();
        scene.store(9);
        log.merge(all(), &bitmap).unwrap();
        assert_eq!(scene.harvest_unasked(&mut log), [3, 9, 700], "{tracking}");
        assert_eq!(scene.harvest_unasked(&mut log), []);
        // A part, from a page in the midst of the log's words.
        log.merge(range(BASE + 100 * PAGE, 70 * PAGE), &[1, 1 << 5]).unwrap();
        assert_eq!(scene.harvest_unasked(&mut log), [100, 169]);
        assert!(log.merge(range(0, PAGE), &[1]).is_err() && log.merge(all(), &[0]).is_err());
    }
}
