//! Aging: young and old, with the hardware setting access flags and without; and what others do meanwhile.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::aging::{AgingError, Flush, MadeOld, MakeOldError};
use stage2::arch::{Dsb, Scope, Tlbi};
use stage2::descriptor::{Attributes, Descriptor, Permissions};
use stage2::dirty::{Content, DirtyBitmap, Initial, Tracking, Word};
use stage2::error::{ArgumentError, Corrupt, Stopped};
use stage2::fault::Outcome;
use stage2::geometry::{Features, Geometry, GeometryOptions, HardwareUpdate, IdRegisters};
use stage2::model::{Event, ModelArch};
use stage2::quiescence::Reader;
use stage2::stage2::{Mapping, Removed, Stage2};

use crate::features::RICH;
use crate::support::*;
use crate::tables::path_as_told;

const AF: u64 = 1 << 10;
const PAGES: u64 = 4 * 512;
const BYTES: u64 = PAGES * PAGE;
const GIB: u64 = 1 << 30;
const FIRST_BARRIER: fn(&Event) -> bool = |event| matches!(event, Event::Dsb(Dsb::Ishst));
const EVERYTHING: Tlbi = Tlbi::Vmalls12e1 { scope: Scope::InnerShareable };

/// A guest whose log covers its first [`PAGES`], on a machine of four CPUs.
pub(crate) struct Scene {
    pub(crate) guest: &'static Guest<Staged>,
    pub(crate) reader: Reader<'static>,
}

impl Scene {
    pub(crate) fn new(hardware: HardwareUpdate, largest: Level) -> Self {
        let mmfr1 = RICH.id_aa64mmfr1_el1 | hardware as u64;
        let features = Features::from_id_registers(&IdRegisters { id_aa64mmfr1_el1: mmfr1, ..RICH });
        let mmu = machine_of(Staged(ModelArch::new()), 4, 64, features);
        let options = GeometryOptions::default().with_hardware_update(hardware);
        let words: Box<[Word]> = (0..PAGES / 64).map(|_| Word::new(0)).collect();
        let log = DirtyBitmap { base: Ipa::new(0), words: Box::leak(words) };
        let geometry = Geometry::new(40, &features, options).unwrap();
        let guest = Stage2::new(mmu, geometry, Some(log)).unwrap().with_largest_leaf(largest);
        let (guest, reader) = (Box::leak(Box::new(guest)), reader(mmu, 0));
        give_vmid(guest, &reader);
        Self { guest, reader }
    }

    /// With pages alone, all mapped.
    fn of_pages(hardware: HardwareUpdate) -> Self {
        let scene = Self::new(hardware, Level::LEAF);
        map(scene.guest, &scene.reader, 0, BYTES);
        scene
    }

    /// With blocks of 2 MiB, all mapped.
    fn of_blocks(hardware: HardwareUpdate) -> Self {
        let scene = Self::new(hardware, Level::L2);
        map(scene.guest, &scene.reader, 0, BYTES);
        scene
    }

    fn told(&self) -> &ModelArch {
        &self.guest.mmu().arch().0
    }

    pub(crate) fn make_old(&self, start: u64, bytes: u64) -> u64 {
        let made_old = self.guest.make_old(&self.reader, range(start, bytes), u32::MAX, Flush::Now).unwrap();
        assert_eq!(made_old.next, None);
        made_old.young
    }

    /// The pages of the log's range that are young.
    pub(crate) fn young(&self) -> Vec<u64> {
        let mut bitmap = [0; PAGES as usize / 64];
        let found = self.guest.scan_accessed(&self.reader, range(0, BYTES), &mut bitmap).unwrap();
        let young = pages_of(&bitmap);
        assert_eq!(found, young.len() as u64);
        young
    }

    /// The guest accesses a page without the access flag, on a CPU that does not set it.
    pub(crate) fn access_flag_fault(&self, ipa: u64, iss: u64) -> Outcome {
        let loaded = self.guest.load(&self.reader).unwrap();
        self.told().take_events();
        resolve(&loaded, &self.reader, &Memory::at(0, RW), data_abort(ipa, code::ACCESS_FLAG | iss))
    }

    fn mapping(&self, ipa: u64) -> Mapping {
        self.guest.query(&self.reader, Ipa::new(ipa)).unwrap().unwrap()
    }

    /// The word of the entry over `ipa`.
    fn entry(&self, ipa: u64) -> &'static Word {
        let path = path_as_told(self.guest, self.told(), &self.reader, Ipa::new(ipa));
        let &(level, table) = path.last().unwrap();
        let shift = 12 + 9 * (3 - level as u32);
        word(self.guest.mmu().memory(), table, (ipa >> shift) as usize % 512)
    }
}

fn pages_of(bitmap: &[u64]) -> Vec<u64> {
    (0..bitmap.len() as u64 * 64).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
}

const ALL: [HardwareUpdate; 3] = [HardwareUpdate::None, HardwareUpdate::AccessFlag, HardwareUpdate::AccessFlagAndDirty];

#[test]
fn what_is_mapped_is_young_what_is_made_old_is_not_and_the_rest_stays() {
    for hardware in ALL {
        let scene = Scene::of_pages(hardware);
        assert_eq!(scene.young(), (0..PAGES).collect::<Vec<_>>());
        // From within one table to within another.
        assert_eq!(scene.make_old(100 * PAGE, 1000 * PAGE), 1000);
        assert_eq!(scene.young(), (0..100).chain(1100..PAGES).collect::<Vec<_>>());
        assert_eq!(scene.make_old(0, BYTES), PAGES - 1000);
        assert_eq!(scene.young(), []);
        assert_eq!(scene.make_old(0, BYTES), 0);
        assert_eq!(scene.guest.mmu().statistics().pages_made_old, PAGES);
    }
}

#[test]
fn an_access_flag_fault_makes_just_its_page_young_and_invalidates_nothing() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    scene.make_old(0, BYTES);
    for page in [3, 64, 511, 512, PAGES - 1] {
        assert_eq!(scene.access_flag_fault(page * PAGE, 0), Outcome::Resumed);
        assert_eq!(barriers_and_tlbis(scene.told()), [Event::Dsb(Dsb::Ishst)], "it was in no TLB");
    }
    assert_eq!(scene.young(), [3, 64, 511, 512, PAGES - 1]);
    let counted = scene.guest.mmu().statistics();
    assert_eq!((counted.faults_access_flag, counted.faults_spurious), (5, 0));
    // Another CPU was first.
    assert_eq!(scene.access_flag_fault(3 * PAGE, 0), Outcome::Resumed);
    assert_eq!(scene.guest.mmu().statistics().faults_spurious, 1);
}

#[test]
fn a_store_to_an_old_page_that_is_clean_makes_it_young_and_dirty_in_one_fault() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    let mut log = scene.guest.start_logging(&scene.reader, Initial::Clean).unwrap();
    scene.make_old(0, BYTES);
    assert_eq!(scene.access_flag_fault(5 * PAGE, WRITE), Outcome::Resumed);
    assert_eq!(scene.access_flag_fault(6 * PAGE, 0), Outcome::Resumed);
    assert_eq!(scene.young(), [5, 6]);
    let mut dirty = [0; PAGES as usize / 64];
    log.scan(&scene.reader, range(0, BYTES), &mut dirty).unwrap();
    assert_eq!(pages_of(&dirty), [5]);
}

#[test]
fn an_old_block_is_young_as_a_whole_after_one_fault_and_one_that_is_logged_in_the_page_that_was_stored_to() {
    let scene = Scene::of_blocks(HardwareUpdate::None);
    assert_eq!(scene.young().len() as u64, PAGES);
    assert_eq!(scene.make_old(0, BYTES), PAGES);
    assert_eq!(scene.access_flag_fault(TABLE + 7 * PAGE, 0), Outcome::Resumed);
    assert_eq!(scene.young(), (512..1024).collect::<Vec<_>>());
    let _log = scene.guest.start_logging(&scene.reader, Initial::Clean).unwrap();
    // It is split; its parts are as old as it was, and the store meets its page next.
    assert_eq!(scene.access_flag_fault(2 * TABLE + 7 * PAGE, WRITE), Outcome::Resumed);
    assert_eq!(scene.young(), (512..1024).collect::<Vec<_>>());
    assert_eq!(scene.access_flag_fault(2 * TABLE + 7 * PAGE, WRITE), Outcome::Resumed);
    assert_eq!(scene.young(), (512..1024).chain([1031]).collect::<Vec<_>>());
}

#[test]
fn only_the_access_flag_changes_whatever_a_page_is() {
    let scene = Scene::of_pages(HardwareUpdate::AccessFlagAndDirty);
    let log = scene.guest.start_logging_with(&scene.reader, Initial::Clean, Tracking::Hardware).unwrap();
    // Clean with DBM; dirty with it; write-protected and dirty; read-only; with DBM taken.
    scene.entry(PAGE).fetch_or(1 << 7, Ordering::Relaxed);
    scene.entry(2 * PAGE).fetch_or(1 << 7, Ordering::Relaxed);
    scene.guest.write_protect(&scene.reader, range(2 * PAGE, PAGE)).unwrap();
    scene.guest.protect(&scene.reader, range(3 * PAGE, PAGE), Permissions::R).unwrap();
    scene.entry(4 * PAGE).fetch_and(!(1 << 51), Ordering::Relaxed);
    let entries = [0, 1, 2, 3, 4].map(|page| scene.entry(page * PAGE));
    let before = entries.map(|entry| entry.load(Ordering::Relaxed));
    assert!(
        before.iter().enumerate().all(|(nth, raw)| before[..nth].iter().all(|one| (one ^ raw) & !(0x7 << 12) != 0))
    );
    assert_eq!(scene.make_old(0, 5 * PAGE), 5);
    assert_eq!(entries.map(|entry| entry.load(Ordering::Relaxed)), before.map(|raw| raw & !AF));
    log.stop();
}

#[test]
fn a_pass_takes_one_flush_of_what_it_has_made_old_and_none_if_that_is_nothing() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    scene.make_old(0, BYTES);
    scene.access_flag_fault(10 * PAGE, 0);
    scene.access_flag_fault(13 * PAGE, 0);
    scene.told().take_events();
    assert_eq!(scene.make_old(0, BYTES), 2);
    let issued = tlbis(scene.told());
    assert!(
        matches!(issued[..], [Tlbi::IpaRange { operand, .. }, Tlbi::Vmalle1 { .. }]
        if operand.base == Ipa::new(10 * PAGE) && operand.pages() == 4),
        "{issued:?}"
    );
    assert_eq!(scene.make_old(0, BYTES), 0);
    assert_eq!(scene.told().take_events(), [], "nothing was young");
}

#[test]
fn what_is_left_in_the_tlbs_goes_with_the_next_flush_that_is_asked_for_and_once() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    scene.told().take_events();
    let left = scene.guest.make_old(&scene.reader, range(0, BYTES), u32::MAX, Flush::Later);
    assert_eq!(left, Ok(MadeOld { young: PAGES, next: None }));
    assert_eq!(scene.young(), []);
    assert_eq!(scene.told().take_events(), []);
    assert_eq!(scene.make_old(0, PAGE), 0, "it is old");
    assert_eq!(tlbis(scene.told()), [EVERYTHING]);
    assert_eq!(scene.make_old(0, PAGE), 0);
    assert_eq!(scene.told().take_events(), []);
}

#[test]
fn who_finds_pages_that_another_has_made_old_and_not_yet_flushed_flushes_them_himself() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    let (guest, told) = (scene.guest, Rc::new(scene.guest.mmu()));
    cue(FIRST_BARRIER, move || {
        let other = reader(&told, 1);
        told.arch().0.take_events();
        let found = guest.make_old(&other, range(0, BYTES), u32::MAX, Flush::Now).unwrap();
        assert_eq!(found.young, 0, "the other was first");
        assert_eq!(tlbis(&told.arch().0), [EVERYTHING]);
    });
    assert_eq!(scene.make_old(0, BYTES), PAGES);
}

/// Between two takings of the bookkeeping: who has left something has said so before he is gone.
#[test]
fn a_flush_that_comes_for_what_was_left_is_waited_for_or_repeated() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    let guest = scene.guest;
    guest.make_old(&scene.reader, range(0, BYTES), u32::MAX, Flush::Later).unwrap();
    // CPU 0 has taken on what was left, and is about to flush; CPU 1 must not rely on that.
    cue(FIRST_BARRIER, move || {
        let other = reader(guest.mmu(), 1);
        guest.mmu().arch().0.take_events();
        assert_eq!(guest.make_old(&other, range(0, BYTES), u32::MAX, Flush::Now).unwrap().young, 0);
        assert_eq!(tlbis(&guest.mmu().arch().0), [EVERYTHING]);
    });
    scene.make_old(0, BYTES);
}

#[test]
fn an_access_while_pages_are_being_made_old_is_noted_and_the_flush_waits_for_no_fault() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    let guest = scene.guest;
    cue(FIRST_BARRIER, move || {
        // It has just been made old, and TLBs may have it.
        let other = reader(guest.mmu(), 1);
        let loaded = guest.load(&other).unwrap();
        let fault = data_abort(3 * PAGE, code::ACCESS_FLAG);
        assert_eq!(resolve(&loaded, &other, &Memory::at(0, RW), fault), Outcome::Resumed);
        let mut young = [0; PAGES as usize / 64];
        assert_eq!(guest.scan_accessed(&other, range(0, BYTES), &mut young), Ok(1));
    });
    assert_eq!(scene.make_old(0, BYTES), PAGES);
    assert_eq!(scene.young(), [3]);
}

#[test]
fn what_is_being_removed_is_neither_young_nor_made_old_and_its_flag_is_handed_over() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    let guest = scene.guest;
    cue(FIRST_BARRIER, move || {
        // Its number is where the access flag was.
        let other = reader(guest.mmu(), 1);
        let mut young = [0; PAGES as usize / 64];
        guest.scan_accessed(&other, range(0, BYTES), &mut young).unwrap();
        assert_eq!(pages_of(&young), (8..PAGES).collect::<Vec<_>>());
        assert_eq!(guest.make_old(&other, range(0, 16 * PAGE), u32::MAX, Flush::Later).unwrap().young, 8);
    });
    assert_eq!(unmap(guest, &scene.reader, 0, 8 * PAGE).leaves, 8);
    let mut accessed = Vec::new();
    let hand_back = |removed: Removed<'_>| accessed.push(removed.accessed);
    guest.unmap_with(&scene.reader, range(15 * PAGE, 2 * PAGE), hand_back).unwrap();
    assert_eq!(accessed, [false, true], "who takes it is told");
    assert_eq!(scene.young(), (17..PAGES).collect::<Vec<_>>());
}

#[test]
fn a_block_that_is_being_split_is_seen_young_and_left_so_and_its_parts_are_what_it_was() {
    let scene = Scene::of_blocks(HardwareUpdate::AccessFlag);
    let guest = scene.guest;
    scene.make_old(TABLE, TABLE);
    cue(FIRST_BARRIER, move || {
        let other = reader(guest.mmu(), 1);
        let mut young = [0; PAGES as usize / 64];
        guest.scan_accessed(&other, range(0, BYTES), &mut young).unwrap();
        assert_eq!(pages_of(&young), (0..512).chain(1024..PAGES).collect::<Vec<_>>());
        assert_eq!(guest.make_old(&other, range(0, TABLE), u32::MAX, Flush::Later).unwrap().young, 0);
    });
    assert_eq!(guest.split(&scene.reader, range(0, 2 * TABLE)), Ok(2));
    assert_eq!(scene.young(), (0..512).chain(1024..PAGES).collect::<Vec<_>>());
    assert_eq!(scene.mapping(0).level, Level::L3);
}

#[test]
fn a_block_is_young_if_any_of_the_pages_was_that_made_it() {
    for young in [None, Some(0), Some(77), Some(511)] {
        let scene = Scene::of_blocks(HardwareUpdate::None);
        scene.guest.split(&scene.reader, range(0, TABLE)).unwrap();
        scene.make_old(0, TABLE);
        if let Some(page) = young {
            scene.access_flag_fault(page * PAGE, 0);
        }
        assert_eq!(scene.guest.collapse(&scene.reader, range(0, TABLE)), Ok(1));
        assert_eq!((scene.mapping(0).level, scene.mapping(0).accessed), (Level::L2, young.is_some()), "{young:?}");
    }
}

#[test]
fn what_is_made_old_or_accessed_while_its_table_is_joined_is_so_in_the_block() {
    for page in [None, Some(9)] {
        let scene = Scene::of_blocks(HardwareUpdate::AccessFlag);
        let guest = scene.guest;
        guest.split(&scene.reader, range(0, TABLE)).unwrap();
        let entry = scene.entry(9 * PAGE);
        cue(FIRST_BARRIER, move || {
            let other = reader(guest.mmu(), 1);
            assert_eq!(guest.make_old(&other, range(0, TABLE), u32::MAX, Flush::Later).unwrap().young, 512);
            // The hardware, through a walk that is under way.
            page.into_iter().for_each(|_: u64| _ = entry.fetch_or(AF, Ordering::Relaxed));
        });
        assert_eq!(guest.collapse(&scene.reader, range(0, TABLE)), Ok(1));
        assert_eq!(scene.mapping(0).accessed, page.is_some());
    }
}

#[test]
fn a_block_that_the_range_cuts_stays_young_and_a_scan_shows_the_part() {
    let scene = Scene::of_blocks(HardwareUpdate::None);
    assert_eq!(scene.make_old(PAGE, 2 * TABLE), 512, "the one in the middle");
    assert_eq!(scene.young(), (0..512).chain(1024..PAGES).collect::<Vec<_>>());
    let mut bitmap = [0; 16];
    assert_eq!(scene.guest.scan_accessed(&scene.reader, range(510 * PAGE, 516 * PAGE), &mut bitmap), Ok(4));
    assert_eq!(pages_of(&bitmap), [0, 1, 514, 515]);
    let large = Scene::new(HardwareUpdate::None, Level::L1);
    map(large.guest, &large.reader, GIB, GIB);
    assert_eq!(large.mapping(GIB).level, Level::L1);
    assert_eq!(large.make_old(GIB, TABLE), 0);
    assert_eq!(large.make_old(0, 4 * GIB), GIB / PAGE);
    assert!(!large.mapping(GIB).accessed);
}

#[test]
fn a_frozen_guest_ages_but_for_blocks_in_its_root() {
    let scene = Scene::new(HardwareUpdate::None, Level::L1);
    map(scene.guest, &scene.reader, GIB, GIB);
    map(scene.guest, &scene.reader, 0, BYTES);
    let frozen = scene.guest.freeze(&scene.reader).unwrap();
    assert_eq!(scene.make_old(0, 4 * GIB), PAGES);
    let mut bitmap = vec![0; (2 * GIB / PAGE / 64) as usize];
    assert_eq!(scene.guest.scan_accessed(&scene.reader, range(0, 2 * GIB), &mut bitmap), Ok(GIB / PAGE));
    assert!(frozen.thaw(&scene.reader).is_ok());
    assert!(scene.mapping(GIB).accessed && !scene.mapping(0).accessed);
}

#[test]
fn a_scan_of_the_young_changes_nothing() {
    let scene = Scene::of_pages(HardwareUpdate::AccessFlag);
    scene.make_old(5 * PAGE, 600 * PAGE);
    scene.told().take_events();
    let before = scene.guest.mmu().statistics();
    let first = scene.young();
    assert_eq!(scene.young(), first);
    assert_eq!(scene.told().take_events(), []);
    assert_eq!(scene.guest.mmu().statistics().walks_read_write, before.walks_read_write, "no lock either");
    // It adds to the bitmap.
    let mut bitmap = [u64::MAX, 0];
    assert_eq!(scene.guest.scan_accessed(&scene.reader, range(0, 70 * PAGE), &mut bitmap), Ok(0));
    assert_eq!(bitmap, [u64::MAX, 0]);
}

#[test]
fn making_old_stops_after_a_number_of_tables_and_goes_on_from_there() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    // A hole, and a table far off.
    map(scene.guest, &scene.reader, 100 * GIB, PAGE);
    let everything = range(0, 1 << 40);
    for budget in [0, 1, 2, 3, u32::MAX] {
        let (mut rest, mut young, mut calls) = (Some(everything), 0, 0);
        while let Some(left) = rest {
            let made_old = scene.guest.make_old(&scene.reader, left, budget, Flush::Now).unwrap();
            assert!(made_old.young <= u64::from(budget.max(1)) * 512);
            young += made_old.young;
            calls += 1;
            rest = made_old.next.and_then(|next| left.starting_at(next));
        }
        assert_eq!((young, calls), (PAGES + 1, 5_u32.div_ceil(budget.max(1))));
        let _ = scene.guest.unmap(&scene.reader, everything).unwrap();
        map(scene.guest, &scene.reader, 0, BYTES);
        map(scene.guest, &scene.reader, 100 * GIB, PAGE);
    }
}

#[test]
fn ranges_and_bitmaps_that_do_not_fit_are_refused_and_nothing_changes() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    scene.told().take_events();
    let (size, mut bitmap) = (1u64 << 40, [0; 4]);
    for (bad, error) in [
        (range(1, PAGE), ArgumentError::Misaligned as fn(_) -> _),
        (range(0, PAGE - 1), ArgumentError::Misaligned),
        (range(u64::MAX, 1), ArgumentError::Misaligned),
        (range(size - PAGE, 2 * PAGE), ArgumentError::BeyondIpaSize),
        (range(u64::MAX - PAGE + 1, PAGE), ArgumentError::BeyondIpaSize),
        (IpaRange::inclusive(Ipa::new(0), Ipa::new(u64::MAX)).unwrap(), ArgumentError::BeyondIpaSize),
    ] {
        let refused = scene.guest.make_old(&scene.reader, bad, u32::MAX, Flush::Now);
        assert_eq!(refused, Err(MakeOldError::Argument(error(bad))));
        let refused = scene.guest.scan_accessed(&scene.reader, bad, &mut bitmap);
        assert_eq!(refused, Err(AgingError::Argument(error(bad))));
    }
    let refused = scene.guest.scan_accessed(&scene.reader, range(0, 257 * PAGE), &mut bitmap);
    assert_eq!(refused, Err(AgingError::TooShort { needed: 5 }));
    let foreign = reader(machine(4), 0);
    let refused = scene.guest.make_old(&foreign, range(0, PAGE), 1, Flush::Now);
    assert_eq!(refused, Err(MakeOldError::Argument(ArgumentError::ForeignReader)));
    let refused = scene.guest.scan_accessed(&foreign, range(0, PAGE), &mut bitmap);
    assert_eq!(refused, Err(AgingError::Argument(ArgumentError::ForeignReader)));
    assert_eq!(bitmap, [0; 4]);
    assert_eq!(scene.told().take_events(), []);
    assert_eq!(scene.young().len() as u64, PAGES);
    // The top of the IPA space.
    map(scene.guest, &scene.reader, size - PAGE, PAGE);
    assert_eq!(scene.make_old(size - 2 * PAGE, 2 * PAGE), 1);
}

#[test]
fn at_an_entry_that_must_not_be_aging_stops_and_what_came_before_is_done() {
    let scene = Scene::of_pages(HardwareUpdate::None);
    let entry = scene.entry(700 * PAGE);
    let sound = entry.swap(0b01 | AF, Ordering::Relaxed);
    let corrupt = Corrupt { ipa: Ipa::new(700 * PAGE), level: Level::L3 };
    let stopped = Stopped { done: Some(range(0, 700 * PAGE)), at: corrupt.ipa, cause: corrupt };
    let mut bitmap = [0; PAGES as usize / 64];
    let ended = scene.guest.scan_accessed(&scene.reader, range(0, BYTES), &mut bitmap);
    assert_eq!(ended, Err(AgingError::Stopped(stopped)));
    assert_eq!(pages_of(&bitmap), (0..700).collect::<Vec<_>>());
    // Next to it, in one word and one step, nothing is wrong.
    assert_eq!(scene.guest.scan_accessed(&scene.reader, range(701 * PAGE, PAGE), &mut [0]), Ok(1));
    scene.told().take_events();
    let ended = scene.guest.make_old(&scene.reader, range(0, BYTES), u32::MAX, Flush::Now);
    assert_eq!(ended, Err(MakeOldError::Stopped(stopped)));
    assert!(!tlbis(scene.told()).is_empty(), "what was made old is flushed");
    entry.store(sound, Ordering::Relaxed);
    assert_eq!(scene.young(), (700..PAGES).collect::<Vec<_>>());
}

#[test]
fn a_page_that_was_made_old_is_mapped_protected_and_logged_as_any_other() {
    let scene = Scene::of_pages(HardwareUpdate::AccessFlagAndDirty);
    scene.make_old(0, BYTES);
    let mut log = scene.guest.start_logging_with(&scene.reader, Initial::Clean, Tracking::Hardware).unwrap();
    let entry = scene.entry(9 * PAGE);
    // The hardware notes a store: both bits at once.
    entry.fetch_or(AF | 1 << 7, Ordering::Relaxed);
    scene.guest.write_protect(&scene.reader, range(0, BYTES)).unwrap();
    let mut dirty = [0; PAGES as usize / 64];
    log.scan(&scene.reader, range(0, BYTES), &mut dirty).unwrap();
    assert_eq!(pages_of(&dirty), [9]);
    assert_eq!(log.rearm(&scene.reader, range(0, BYTES), &dirty).unwrap().cleaned, 1);
    assert_eq!(scene.young(), [9], "no operation takes the flag, and none gives it");
    scene.guest.protect(&scene.reader, range(0, BYTES), Permissions::R).unwrap();
    assert_eq!(scene.young(), [9]);
    assert!(Descriptor::from_raw(entry.load(Ordering::Relaxed)).is_accessed());
    let attributes = Attributes::normal(Permissions::RW);
    unmap(scene.guest, &scene.reader, 0, PAGE);
    scene.guest.map(&scene.reader, range(0, PAGE), Pa::new(0), attributes, Content::New).unwrap();
    assert_eq!(scene.young(), [0, 9], "what is mapped is young");
    log.stop();
}
