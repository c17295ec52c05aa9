//! The dirty log: a write is in this harvest or the next, never in neither (rule 10).

use stage2::addr::{Ipa, Pa};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, DirtyBitmap, DirtyLog, Initial, RearmError, ScanError, StartError, Word};
use stage2::error::ArgumentError;
use stage2::fault::{Backing, Outcome, Region};
use stage2::model::{ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::Stage2;

use crate::support::*;

const PAGES: u64 = 1100;
const BYTES: u64 = PAGES * PAGE;

type Log<'s> = DirtyLog<'s, 'static, ModelArch, ModelMemory<stage2::geometry::Granule4K>>;

/// The pages of `bytes` from `start` on that a scan finds, by their place in the range.
fn scan(log: &mut Log<'_>, reader: &Reader<'_>, start: u64, bytes: u64) -> (Vec<u64>, Vec<u64>) {
    let mut bitmap = vec![0; (bytes / PAGE).div_ceil(64) as usize];
    let found = log.scan(reader, range(start, bytes), &mut bitmap).unwrap();
    let pages: Vec<u64> =
        (0..bitmap.len() as u64 * 64).filter(|page| bitmap[(page / 64) as usize] >> (page % 64) & 1 == 1).collect();
    assert_eq!(found, pages.len() as u64);
    (pages, bitmap)
}

/// A harvest: what is dirty, cleaned.
fn harvest(log: &mut Log<'_>, reader: &Reader<'_>, start: u64, bytes: u64) -> Vec<u64> {
    let (pages, bitmap) = scan(log, reader, start, bytes);
    let _ = log.rearm(reader, range(start, bytes), &bitmap).unwrap();
    pages
}

/// The guest stores to the page of `ipa`, which is mapped and clean.
fn store(guest: &Guest, reader: &Reader<'_>, ipa: u64) {
    let fault = store_denied(guest.mmu(), ipa);
    let loaded = guest.load(reader).unwrap();
    assert_eq!(resolve(&loaded, reader, &Memory::at(0, RW), fault), Outcome::Resumed);
}

/// A guest with [`PAGES`] pages from `base` on, all mapped and logged.
fn logged_at(base: u64) -> (Guest, Reader<'static>) {
    let mmu = machine(32);
    let guest = logged_guest(mmu, base, PAGES);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, base, BYTES);
    (guest, reader)
}

#[test]
fn a_log_that_starts_dirty_has_every_page_in_its_first_harvest_mapped_or_not() {
    let (guest, reader) = logged_at(0);
    unmap(&guest, &reader, 5 * PAGE, PAGE);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    assert!(harvest(&mut log, &reader, 0, BYTES).into_iter().eq(0..PAGES));
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), []);
    store(&guest, &reader, 7 * PAGE);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [7]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_log_that_starts_clean_has_what_is_written_after_it() {
    let (guest, reader) = logged_at(0);
    guest.mmu().arch().take_events();
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    assert!(!tlbis(guest.mmu().arch()).is_empty(), "no TLB lets a store pass");
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, []);
    for page in [0, 63, 64, 511, 512, PAGES - 1] {
        store(&guest, &reader, page * PAGE);
    }
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [0, 63, 64, 511, 512, PAGES - 1]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_scan_changes_nothing() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    guest.mmu().arch().take_events();
    let before = guest.mmu().statistics();
    let first = scan(&mut log, &reader, 0, BYTES);
    assert_eq!(scan(&mut log, &reader, 0, BYTES), first);
    assert_eq!(guest.mmu().arch().take_events(), []);
    assert_eq!(guest.mmu().statistics().walks_read_write, before.walks_read_write, "no lock either");
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_scan_adds_to_the_bitmap_and_a_rearm_cleans_what_is_in_it_and_nothing_else() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    for page in [3, 70, 600] {
        store(&guest, &reader, page * PAGE);
    }
    let mut bitmap = vec![0; 18];
    bitmap[0] = 1;
    assert_eq!(log.scan(&reader, range(0, BYTES), &mut bitmap), Ok(3), "those that were not there");
    assert_eq!(bitmap[0], 0b1001);
    bitmap[1] = 0;
    let rearmed = log.rearm(&reader, range(0, BYTES), &bitmap).unwrap();
    assert_eq!(rearmed.cleaned, 2, "page 0 was clean");
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [70]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_store_between_scan_and_rearm_is_copied_or_harvested_again() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    store(&guest, &reader, PAGE);
    let (_, bitmap) = scan(&mut log, &reader, 0, BYTES);
    store(&guest, &reader, 2 * PAGE);
    guest.mmu().arch().take_events();
    let _ = log.rearm(&reader, range(0, BYTES), &bitmap).unwrap();
    assert!(!tlbis(guest.mmu().arch()).is_empty(), "page 1 is copied after this");
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [2]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_rearm_of_nothing_costs_nothing() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    guest.mmu().arch().take_events();
    let before = guest.mmu().statistics().walks_read_write;
    let _ = log.rearm(&reader, range(0, BYTES), &[0; 18]).unwrap();
    assert_eq!(guest.mmu().arch().take_events(), []);
    assert_eq!(guest.mmu().statistics().walks_read_write, before);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn page_counts_that_are_no_multiple_of_64_and_ranges_that_begin_anywhere_are_exact() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    for (first, count) in [(0, 1), (1, 63), (63, 2), (5, 65), (100, 700), (511, 2), (PAGES - 1, 1)] {
        for page in [first, first + count - 1] {
            store(&guest, &reader, page * PAGE);
        }
        // Neighbours that are not asked for.
        let neighbours: Vec<u64> =
            [first.wrapping_sub(1), first + count].into_iter().filter(|&page| page < PAGES).collect();
        neighbours.iter().for_each(|page| store(&guest, &reader, page * PAGE));
        let mut expected = vec![0, count - 1];
        expected.dedup();
        assert_eq!(harvest(&mut log, &reader, first * PAGE, count * PAGE), expected);
        assert_eq!(harvest(&mut log, &reader, 0, BYTES), neighbours);
    }
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn memory_at_the_top_of_the_address_space_is_logged() {
    let base = (1 << 40) - BYTES;
    let (guest, reader) = logged_at(base);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    store(&guest, &reader, base);
    store(&guest, &reader, (1 << 40) - PAGE);
    guest.mark_dirty(range((1 << 40) - 2 * PAGE, PAGE)).unwrap();
    assert_eq!(harvest(&mut log, &reader, base, BYTES), [0, PAGES - 2, PAGES - 1]);
    assert_eq!(harvest(&mut log, &reader, base, BYTES), []);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_dirty_page_that_is_unmapped_is_seen_dirty_while_it_is_and_in_the_side_log_after_it() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    store(&guest, &reader, PAGE);
    let mut calls = Vec::new();
    let unmapped = guest
        .unmap_with(&reader, range(0, 3 * PAGE), |leaf| {
            calls.push((leaf.ipa.raw(), leaf.dirty));
            assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [1]);
        })
        .unwrap();
    assert_eq!(calls, [(0, false), (PAGE, true), (2 * PAGE, false)]);
    assert_eq!((unmapped.leaves, unmapped.dirty), (3, 1));
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [1]);
    store(&guest, &reader, 4 * PAGE);
    unmap(&guest, &reader, 4 * PAGE, PAGE);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [1, 4]);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), []);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_harvest_in_the_middle_of_an_unmap_does_not_lose_the_page_whose_frame_is_being_handed_over() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    store(&guest, &reader, PAGE);
    guest
        .unmap_with(&reader, range(PAGE, PAGE), |_| {
            assert_eq!(harvest(&mut log, &reader, 0, BYTES), [1]);
            // Whoever is handed it waits for the readers there were before this.
            assert!(guest.view(&reader, Ipa::new(PAGE)).unwrap().is_none());
        })
        .unwrap();
    assert!(guest.view(&reader, Ipa::new(PAGE)).unwrap().is_none());
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [1], "its remover has told the log after that harvest");
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_dirty_page_that_loses_its_permission_stays_in_the_log() {
    for protect in [
        |guest: &Guest, reader: &Reader<'_>| guest.protect(reader, range(PAGE, PAGE), Permissions::R).unwrap(),
        |guest: &Guest, reader: &Reader<'_>| guest.write_protect(reader, range(PAGE, PAGE)).unwrap(),
    ] {
        let (guest, reader) = logged_at(0);
        let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
        store(&guest, &reader, PAGE);
        store(&guest, &reader, 2 * PAGE);
        protect(&guest, &reader);
        assert_eq!(harvest(&mut log, &reader, 0, BYTES), [1, 2]);
        assert_eq!(harvest(&mut log, &reader, 0, BYTES), []);
        store(&guest, &reader, 2 * PAGE);
        protect(&guest, &reader);
        unmap(&guest, &reader, 0, BYTES);
        assert_eq!(harvest(&mut log, &reader, 0, BYTES), [2]);
        log.stop();
        tear_down(guest, &reader);
    }
}

#[test]
fn a_dirty_page_that_loses_its_permission_and_is_unmapped_is_in_the_log() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    store(&guest, &reader, PAGE);
    guest.protect(&reader, range(0, BYTES), Permissions::R).unwrap();
    guest.protect(&reader, range(0, BYTES), Permissions::RW).unwrap();
    unmap(&guest, &reader, 0, BYTES);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [1]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn what_the_hypervisor_stores_is_marked_page_by_page() {
    let (guest, reader) = logged_at(0);
    guest.mark_dirty(range(0, PAGE)).unwrap();
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [], "what was marked before was before");
    // From the last byte of page 9 to the first of page 12.
    guest.mark_dirty(range(10 * PAGE - 1, 2 * PAGE + 2)).unwrap();
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [9, 10, 11, 12]);
    guest.mark_dirty(range(0, BYTES)).unwrap();
    assert!(harvest(&mut log, &reader, 0, BYTES).into_iter().eq(0..PAGES));
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn what_is_not_all_logged_is_refused_and_nothing_of_it_is_noted() {
    // The log ends with its last word: beyond that there are no bits.
    const LOGGED: u64 = PAGES.div_ceil(64) * 64 * PAGE;
    let base = TABLE;
    let (guest, reader) = logged_at(base);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    for outside in [
        range(base - PAGE, 2 * PAGE),
        range(base - PAGE, PAGE),
        range(base + LOGGED - PAGE, 2 * PAGE),
        range(base + LOGGED, PAGE),
        range(0, 1 << 40),
    ] {
        let refused = ArgumentError::NotLogged(outside);
        assert_eq!(guest.mark_dirty(outside), Err(refused));
        if outside.bytes() <= LOGGED {
            let mut bitmap = [0; 1];
            let scanned = log.scan(&reader, outside, &mut bitmap);
            assert_eq!((scanned, bitmap), (Err(ScanError::Argument(refused)), [0]));
            assert_eq!(log.rearm(&reader, outside, &[1]).err(), Some(RearmError::Argument(refused)));
        }
    }
    // A byte beyond is too much, too.
    let one_more = range(base + LOGGED - 1, 2);
    assert_eq!(guest.mark_dirty(one_more), Err(ArgumentError::NotLogged(one_more)));
    assert_eq!(scan(&mut log, &reader, base, LOGGED).0, []);
    guest.mark_dirty(range(base + LOGGED - 1, 1)).unwrap();
    assert_eq!(scan(&mut log, &reader, base, LOGGED).0, [LOGGED / PAGE - 1]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn logging_ends_when_the_log_is_dropped_and_another_can_start() {
    let (guest, reader) = logged_at(0);
    let log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    assert_eq!(guest.start_logging(&reader, Initial::Clean).err(), Some(StartError::Started));
    drop(log);
    guest.mark_dirty(range(0, PAGE)).unwrap();
    unmap(&guest, &reader, 3 * PAGE, PAGE);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [], "nobody was noting");
    store(&guest, &reader, 5 * PAGE);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [5]);
    drop(log);
    tear_down(guest, &reader);
}

#[test]
fn a_harvest_that_is_given_back_appears_again() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    let written = [1, 64, 513, PAGES - 1];
    written.iter().for_each(|page| store(&guest, &reader, page * PAGE));
    let lost = harvest(&mut log, &reader, 0, BYTES);
    assert_eq!(lost, written);
    lost.iter().for_each(|page| guest.mark_dirty(range(page * PAGE, PAGE)).unwrap());
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), written);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_new_mapping_begins_dirty_and_one_with_unchanged_content_clean() {
    let (guest, reader) = logged_at(0);
    unmap(&guest, &reader, 0, 8 * PAGE);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    guest.map(&reader, range(0, PAGE), Pa::new(0), RW, Content::New).unwrap();
    guest.map(&reader, range(PAGE, PAGE), Pa::new(0), RW, Content::Unchanged).unwrap();
    let loaded = guest.load(&reader).unwrap();
    for (page, content, fault) in [
        (2, Content::New, read_fault(2 * PAGE)),
        (3, Content::Unchanged, read_fault(3 * PAGE)),
        (4, Content::Unchanged, write_fault(4 * PAGE)),
    ] {
        let memory = Memory::at(0x8000, RW).with_content(content);
        assert_eq!(resolve(&loaded, &reader, &memory, fault), Outcome::Resumed, "{page}");
    }
    drop(loaded);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [0, 2, 4]);
    log.stop();
    // Nobody harvests: a clean page would only fault once more.
    guest.map(&reader, range(5 * PAGE, PAGE), Pa::new(0), RW, Content::Unchanged).unwrap();
    assert!(guest.query(&reader, Ipa::new(5 * PAGE)).unwrap().unwrap().dirty);
    tear_down(guest, &reader);
}

#[test]
fn new_content_is_a_write_even_where_the_guest_cannot() {
    let (guest, reader) = logged_at(0);
    unmap(&guest, &reader, 0, 8 * PAGE);
    let read_only = Attributes::normal(Permissions::RX);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    guest.map(&reader, range(0, PAGE), Pa::new(0), read_only, Content::New).unwrap();
    guest.map(&reader, range(PAGE, PAGE), Pa::new(0), read_only, Content::Unchanged).unwrap();
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory { region: Region::Memory(read_only), ..Memory::at(0x8000, read_only) };
    assert_eq!(memory.region(Ipa::new(0)), Region::Memory(read_only));
    assert_eq!(resolve(&loaded, &reader, &memory, read_fault(2 * PAGE)), Outcome::Resumed);
    drop(loaded);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [0, 2]);
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), []);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn the_entries_of_a_group_that_is_clean_are_not_looked_at_and_a_store_makes_them_be_again() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    // What nobody but this test does: an entry is dirtied behind the back of its table.
    let [leaf_table, ..] = leaf_tables(&guest, 0, 3)[..] else { panic!() };
    let entry = word(guest.mmu().memory(), leaf_table, 9);
    const DIRTY: u64 = 1 << 7;
    entry.fetch_or(DIRTY, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [], "the table is known to be clean");
    store(&guest, &reader, 16 * PAGE);
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [16], "it is not any more, but the entry's group is");
    store(&guest, &reader, 12 * PAGE);
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [9, 12, 16], "nor that");
    assert_eq!(harvest(&mut log, &reader, 0, BYTES), [9, 12, 16]);
    entry.fetch_or(DIRTY, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [], "and is again");
    entry.fetch_and(!DIRTY, std::sync::atomic::Ordering::Relaxed);
    // One page of two is cleaned: the table stays dirty.
    store(&guest, &reader, 30 * PAGE);
    store(&guest, &reader, 31 * PAGE);
    let _ = log.rearm(&reader, range(30 * PAGE, PAGE), &[1]).unwrap();
    assert_eq!(scan(&mut log, &reader, 0, BYTES).0, [31]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_bitmap_that_is_too_short_is_an_error_and_stays_as_it_is() {
    let (guest, reader) = logged_at(0);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    let mut bitmap = [0; 17];
    assert_eq!(log.scan(&reader, range(0, BYTES), &mut bitmap), Err(ScanError::BitmapTooShort { needed: 18 }));
    assert_eq!(bitmap, [0; 17]);
    let rearmed = log.rearm(&reader, range(0, BYTES), &[u64::MAX; 17]);
    assert_eq!(rearmed.err(), Some(RearmError::BitmapTooShort { needed: 18 }));
    assert!(log.scan(&reader, range(0, 17 * 64 * PAGE), &mut bitmap).is_ok());
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn there_is_one_harvester_at_a_time_and_none_without_a_bitmap() {
    let (guest, reader) = logged_at(0);
    let log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    assert_eq!(guest.start_logging(&reader, Initial::Clean).err(), Some(StartError::Started));
    log.stop();
    guest.start_logging(&reader, Initial::Clean).unwrap().stop();
    tear_down(guest, &reader);
    let mmu = machine(8);
    let guest = crate::support::guest(mmu);
    let reader = crate::support::reader(mmu, 0);
    assert_eq!(guest.start_logging(&reader, Initial::Dirty).err(), Some(StartError::NoBitmap));
}

#[test]
fn a_side_log_that_begins_within_a_page_begins_with_that_page() {
    let mmu = machine(16);
    let words: &'static [Word] = Box::leak(Box::new([Word::new(0), Word::new(0)]));
    let log = DirtyBitmap { base: Ipa::new(4 * PAGE + 0x123), words };
    let guest: Guest = Stage2::new(mmu, geometry(40), Some(log)).unwrap();
    let reader = reader(mmu, 0);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    assert!(harvest(&mut log, &reader, 4 * PAGE, 128 * PAGE).into_iter().eq(0..128));
    guest.mark_dirty(range(4 * PAGE, PAGE)).unwrap();
    assert_eq!(harvest(&mut log, &reader, 4 * PAGE, 128 * PAGE), [0]);
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn a_side_log_longer_than_the_address_space_is_cut_off() {
    let mmu = machine(16);
    let guest = logged_guest(mmu, (1 << 40) - PAGE, 64);
    let reader = reader(mmu, 0);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    assert_eq!(harvest(&mut log, &reader, (1 << 40) - PAGE, PAGE), [0]);
    log.stop();
    let mmu = machine(16);
    let guest = logged_guest(mmu, u64::MAX - PAGE + 1, 64);
    let reader = crate::support::reader(mmu, 0);
    assert_eq!(guest.start_logging(&reader, Initial::Clean).err(), Some(StartError::NoBitmap), "nothing is logged");
}

#[test]
fn a_view_shows_the_frame_of_a_page_cleaned_where_the_guest_can_pass_the_caches() {
    let (guest, reader) = logged_at(0);
    let view = guest.view(&reader, Ipa::new(3 * PAGE + 5)).unwrap().unwrap();
    assert_eq!((view.pa(), view.bytes()), (Pa::new(3 * PAGE), PAGE));
    assert!(guest.view(&reader, Ipa::new(BYTES)).unwrap().is_none());
    tear_down(guest, &reader);
}

/// The leaf tables over `count` tables' worth of addresses from `start` on, found as the hardware would.
fn leaf_tables(guest: &Guest, start: u64, count: u64) -> Vec<Pa> {
    let memory = guest.mmu().memory();
    let reader = guest.mmu().reader(stage2::cpu::CpuIndex(3)).unwrap();
    let root = {
        let loaded = guest.load(&reader).unwrap();
        let events = guest.mmu().arch().take_events();
        drop(loaded);
        let vttbr = events
            .iter()
            .find_map(|event| if let stage2::model::Event::Load(to) = event { Some(to.vttbr) } else { None })
            .unwrap();
        Pa::new(vttbr & 0xffff_ffff_fffe)
    };
    let next = |table: Pa, index: u64| {
        let entry = word(memory, table, index as usize).load(std::sync::atomic::Ordering::Relaxed);
        Pa::new(entry & 0xffff_ffff_f000)
    };
    (0..count)
        .map(|n| start + n * TABLE)
        .map(|ipa| next(next(root.offset(ipa >> 39 << 12), ipa >> 30 & 511), ipa >> 21 & 511))
        .collect()
}
