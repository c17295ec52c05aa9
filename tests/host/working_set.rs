//! The working set: ages kept by page and by table, and counted.

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::aging::{AgingError, Unit, WorkingSet};
use stage2::arch::Tlbi;
use stage2::dirty::Content;
use stage2::error::ArgumentError;
use stage2::geometry::HardwareUpdate;
use stage2::model::Event;

use crate::aging::Scene;
use crate::support::*;

const PAGES: u64 = 3 * 512;
const BYTES: u64 = PAGES * PAGE;

/// A guest with so many pages, mapped.
fn scene() -> Scene {
    let scene = Scene::new(HardwareUpdate::None, Level::LEAF);
    map(scene.guest, &scene.reader, 0, BYTES);
    scene
}

/// An interval passes, in which the guest accesses these pages.
fn interval(scene: &Scene, set: &mut WorkingSet<'_>, budget: u32, accessed: &[u64]) -> u64 {
    for page in accessed {
        scene.access_flag_fault(page * PAGE, 0);
    }
    let before = set.passes();
    let mut young = 0;
    loop {
        let aged = scene.guest.age(&scene.reader, set, budget).unwrap();
        young += aged.young;
        if aged.next.is_none() {
            assert_eq!(set.passes(), before + 1);
            return young;
        }
    }
}

fn idle(set: &WorkingSet<'_>, intervals: u8) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    set.for_each_idle(intervals, |run| runs.push((run.start().raw() / PAGE, run.bytes() / PAGE)));
    runs
}

#[test]
fn pages_are_counted_by_the_intervals_since_their_last_access_whatever_the_pieces() {
    for budget in [1, 2, u32::MAX] {
        let scene = scene();
        let mut counters = vec![7; PAGES as usize];
        let mut set = scene.guest.working_set(&scene.reader, range(0, BYTES), Unit::Page, &mut counters).unwrap();
        assert_eq!((set.histogram().mapped(), set.age(Ipa::new(0))), (0, None), "nothing is known");
        assert_eq!(interval(&scene, &mut set, budget, &[]), PAGES, "what was mapped was accessed");
        assert_eq!(set.histogram().pages, [PAGES, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(interval(&scene, &mut set, budget, &[0, 511, 512, 700]), 4);
        assert_eq!(set.histogram().pages, [4, PAGES - 4, 0, 0, 0, 0, 0, 0, 0]);
        for _ in 0..2 {
            assert_eq!(interval(&scene, &mut set, budget, &[1, 1535]), 2);
        }
        assert_eq!(set.histogram().pages, [2, 0, PAGES - 2, 0, 0, 0, 0, 0, 0]);
        let ages = [0, 1, 2, 511, 1535].map(|page| set.age(Ipa::new(page * PAGE)));
        assert_eq!(ages, [2, 0, 3, 2, 0].map(Some));
        assert_eq!(set.age(Ipa::new(BYTES)), None, "it is outside");
        assert_eq!(idle(&set, 3), [(2, 509), (513, 187), (701, 834)]);
        assert_eq!(idle(&set, 2), [(0, 1), (2, 1533)]);
        assert_eq!(idle(&set, 0), [(0, PAGES)]);
        let histogram = *set.histogram();
        let within = [0, 1, 2, 3, 4, 1000].map(|intervals| histogram.accessed_within(intervals));
        assert_eq!(within, [0, 2, 2, 2, PAGES, PAGES]);
        for _ in 0..300 {
            interval(&scene, &mut set, budget, &[]);
        }
        assert_eq!(set.histogram().pages, [0, 0, 0, 0, 0, 0, 0, 0, PAGES]);
        assert_eq!(set.age(Ipa::new(0)), Some(254), "and no older");
    }
}

#[test]
fn a_tables_worth_is_as_young_as_its_youngest_page_and_counts_all_that_is_mapped_there() {
    for budget in [1, u32::MAX] {
        let scene = scene();
        let _ = unmap(scene.guest, &scene.reader, 700 * PAGE, 8 * PAGE);
        // It begins and ends within tables.
        let whole = range(200 * PAGE, 1200 * PAGE);
        let mut counters = [0; 3];
        let mut set = scene.guest.working_set(&scene.reader, whole, Unit::Table, &mut counters).unwrap();
        interval(&scene, &mut set, budget, &[]);
        interval(&scene, &mut set, budget, &[10, 1000]);
        interval(&scene, &mut set, budget, &[1399]);
        assert_eq!(set.histogram().pages, [1400 - 1024, 504, 312, 0, 0, 0, 0, 0, 0]);
        assert_eq!(idle(&set, 1), [(200, 824)], "neighbours are joined");
        assert_eq!(idle(&set, 2), [(200, 312)]);
    }
}

#[test]
fn where_nothing_is_mapped_there_is_no_age_and_what_comes_is_young() {
    let scene = Scene::new(HardwareUpdate::None, Level::LEAF);
    let whole = range(0, 5 * TABLE);
    for unit in [Unit::Page, Unit::Table] {
        map(scene.guest, &scene.reader, TABLE, PAGE);
        map(scene.guest, &scene.reader, 3 * TABLE + 5 * PAGE, PAGE);
        let mut counters = [0; 5 * 512];
        let mut set = scene.guest.working_set(&scene.reader, whole, unit, &mut counters).unwrap();
        for _ in 0..3 {
            interval(&scene, &mut set, 1, &[]);
        }
        assert_eq!(set.histogram().pages, [0, 0, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(set.age(Ipa::new(0)), None);
        let _ = unmap(scene.guest, &scene.reader, TABLE, PAGE);
        map(scene.guest, &scene.reader, 4 * TABLE, PAGE);
        interval(&scene, &mut set, 1, &[]);
        assert_eq!(set.histogram().pages, [1, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!((set.age(Ipa::new(TABLE)), set.age(Ipa::new(4 * TABLE))), (None, Some(0)));
        // It was made old by somebody else since.
        map(scene.guest, &scene.reader, TABLE, PAGE);
        scene.make_old(TABLE, PAGE);
        interval(&scene, &mut set, 1, &[]);
        assert_eq!(set.age(Ipa::new(TABLE)), Some(0));
        let _ = unmap(scene.guest, &scene.reader, 0, 5 * TABLE);
    }
}

#[test]
fn blocks_are_counted_in_pages_and_may_reach_beyond_the_budget() {
    const GIB: u64 = 1 << 30;
    for (unit, counters) in [(Unit::Page, 2 << 18), (Unit::Table, 2 << 9)] {
        let scene = Scene::new(HardwareUpdate::None, Level::L1);
        map(scene.guest, &scene.reader, GIB, GIB);
        map(scene.guest, &scene.reader, 4 * TABLE, 2 * TABLE);
        let mut counters = vec![0; counters];
        let mut set = scene.guest.working_set(&scene.reader, range(0, 2 * GIB), unit, &mut counters).unwrap();
        interval(&scene, &mut set, 100, &[]);
        assert_eq!(set.histogram().pages[0], GIB / PAGE + 1024);
        interval(&scene, &mut set, 100, &[5 * 512 + 3]);
        assert_eq!(set.histogram().pages[..2], [512, GIB / PAGE + 512]);
        assert_eq!(idle(&set, 1), [(4 * 512, 512), (GIB / PAGE, GIB / PAGE)]);
        assert_eq!((set.age(Ipa::new(5 * TABLE)), set.age(Ipa::new(2 * GIB - PAGE))), (Some(0), Some(1)));
    }
}

#[test]
fn a_pass_is_one_flush_however_many_pieces_it_is_taken_in() {
    let scene = scene();
    let told = &scene.guest.mmu().arch().0;
    let mut counters = vec![0; PAGES as usize];
    let mut set = scene.guest.working_set(&scene.reader, range(0, BYTES), Unit::Page, &mut counters).unwrap();
    let flushes = |set: &mut WorkingSet<'_>, budget| {
        scene.access_flag_fault(0, 0);
        scene.access_flag_fault(BYTES - PAGE, 0);
        told.take_events();
        interval(&scene, set, budget, &[]);
        let events = told.take_events();
        let tlbis: Vec<Event> = events.iter().filter(|event| matches!(event, Event::Tlbi(_))).cloned().collect();
        (events.iter().filter(|event| matches!(event, Event::LeaveVmid)).count(), tlbis)
    };
    let (count, tlbis) = flushes(&mut set, 1);
    assert!(count == 1 && matches!(tlbis[..], [Event::Tlbi(Tlbi::Vmalls12e1 { .. })]), "{tlbis:?}");
    // In one piece only what was young is invalidated.
    let (count, tlbis) = flushes(&mut set, u32::MAX);
    assert!(
        count == 1 && matches!(tlbis[..], [Event::Tlbi(Tlbi::Ipa { .. }), Event::Tlbi(Tlbi::Ipa { .. }), _]),
        "{tlbis:?}"
    );
}

#[test]
fn a_working_set_of_too_little_memory_of_what_is_no_range_or_of_another_guest_is_refused() {
    let scene = scene();
    let mut counters = [7; 16];
    let mut new = |range, unit| scene.guest.working_set(&scene.reader, range, unit, &mut counters).err();
    assert_eq!(new(range(0, 17 * PAGE), Unit::Page), Some(AgingError::TooShort { needed: 17 }));
    assert_eq!(new(range(511 * PAGE, 16 * TABLE), Unit::Table), Some(AgingError::TooShort { needed: 17 }));
    let everything = IpaRange::inclusive(Ipa::new(0), Ipa::new(u64::MAX)).unwrap();
    assert_eq!(new(everything, Unit::Page), Some(AgingError::Argument(ArgumentError::BeyondIpaSize(everything))));
    let askew = range(PAGE / 2, PAGE);
    assert_eq!(new(askew, Unit::Page), Some(AgingError::Argument(ArgumentError::Misaligned(askew))));
    assert_eq!(counters, [7; 16]);
    let other = guest(scene.guest.mmu());
    other.map(&scene.reader, range(0, PAGE), Pa::new(0), RW, Content::New).unwrap();
    let mut set = other.working_set(&scene.reader, range(0, PAGE), Unit::Page, &mut counters).unwrap();
    assert_eq!(scene.guest.age(&scene.reader, &mut set, 1), Err(AgingError::OtherGuest));
    let foreign = reader(machine(4), 0);
    assert_eq!(other.age(&foreign, &mut set, 1), Err(AgingError::Argument(ArgumentError::ForeignReader)));
    assert_eq!(set.passes(), 0);
    assert_eq!(other.age(&scene.reader, &mut set, 1).unwrap().young, 1);
    // The top of the IPA space, in a set that begins within a table.
    let top = range((1 << 40) - 3 * PAGE, 3 * PAGE);
    let mut set = other.working_set(&scene.reader, top, Unit::Table, &mut counters).unwrap();
    assert_eq!(other.age(&scene.reader, &mut set, 0).unwrap().next, None);
    assert_eq!(set.histogram().mapped(), 0);
}
