//! Table memory that fails at the k-th call, for every k: what was done is a prefix, what could not be linked is given back, and
//! who may hope for tables that are on their way is told so. And what never asks for memory.

use std::collections::BTreeSet;

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::descriptor::Permissions;
use stage2::dirty::{Content, DirtyBitmap, Initial, Word};
use stage2::fault::{FaultError, Outcome};
use stage2::geometry::{Geometry, GeometryOptions, Granule, Granule4K, Granule16K, Granule64K};
use stage2::memory::TableMemory;
use stage2::model::ModelArch;
use stage2::quiescence::Reader;
use stage2::stage2::{CreateError, MapCause, MapError, Stage2};

use crate::support::*;
use crate::tables::every_page_is_there_once;

/// Enough for two paths from the root, and not enough for its own test to fail for want of others.
const PAGES: usize = 24;
const FRAMES: u64 = 1 << 31;

fn guest_of<G: Granule>(ipa_bits: u8) -> Guest<ModelArch, G> {
    let mmu = machine_of(ModelArch::new(), 1, PAGES, features());
    let geometry = Geometry::<G>::new(ipa_bits, &features(), GeometryOptions::default()).unwrap();
    Stage2::new(mmu, geometry, None).unwrap()
}

fn table_bytes<G: Granule>() -> u64 {
    G::PAGE_SIZE * G::ENTRIES as u64
}

/// Three leaf tables, the first two of which have no other table in common with the third than the root.
fn across_the_root<G: Granule>(guest: &Guest<ModelArch, G>) -> IpaRange {
    let below_one_entry = G::entry_size(guest.geometry().start_level());
    let boundary = below_one_entry.max(4 * table_bytes::<G>());
    range(boundary - 2 * table_bytes::<G>(), 3 * table_bytes::<G>())
}

/// The tables below the root that the pages of `mapped` hang in.
fn tables<G: Granule>(guest: &Guest<ModelArch, G>, mapped: &[IpaRange]) -> usize {
    let below = [Level::L1, Level::L2, Level::L3].into_iter().filter(|level| *level > guest.geometry().start_level());
    let bases = |level| {
        let of_range = |range: &IpaRange| {
            let (first, last) = (G::table_base(range.start(), level), G::table_base(range.last(), level));
            (first.raw()..=last.raw()).step_by((G::entry_size(level) * G::ENTRIES as u64) as usize)
        };
        mapped.iter().flat_map(of_range).collect::<BTreeSet<u64>>().len()
    };
    guest.geometry().root_tables() + below.map(bases).sum::<usize>()
}

/// A failure that may be waited out, or not.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Coming {
    Nothing,
    Tables,
}

/// Where the path is that is on its way back while [`Coming::Tables`]: it shares nothing with the rest but the root.
fn leave_an_empty_path<G: Granule>(guest: &Guest<ModelArch, G>, reader: &Reader<'_>) {
    let at = guest.geometry().ipa_size() - table_bytes::<G>();
    map(guest, reader, at, G::PAGE_SIZE);
    unmap(guest, reader, at, G::PAGE_SIZE);
}

fn a_map_fails_at_each_allocation<G: Granule>(ipa_bits: u8, coming: Coming) {
    let mut failures = 0;
    for successes in 0.. {
        let guest = guest_of::<G>(ipa_bits);
        let mmu = guest.mmu();
        let mut reader = reader(mmu, 0);
        let whole = across_the_root(&guest);
        // Neighbours that must stay as they are: the page before, in the first table, and none in the second.
        let neighbour = range(whole.start().raw() - table_bytes::<G>(), G::PAGE_SIZE);
        map(&guest, &reader, neighbour.start().raw(), G::PAGE_SIZE);
        if coming == Coming::Tables {
            leave_an_empty_path(&guest, &reader);
        }
        let before = mmu.memory().live();
        mmu.memory().fail_after(successes);
        let result = guest.map(&reader, whole, Pa::new(FRAMES), RW, Content::New);
        mmu.memory().fail_after(u64::MAX);
        let done = match result {
            Ok(()) => Some(whole),
            Err(MapError::Stopped(stopped)) => {
                let expected = if coming == Coming::Nothing { MapCause::OutOfTables } else { MapCause::Retry };
                assert_eq!(stopped.cause, expected);
                let at = stopped.done.and_then(|done| done.last().checked_add(1)).unwrap_or(whole.start());
                assert_eq!((stopped.at, at.raw() % table_bytes::<G>()), (at, 0));
                stopped.done
            }
            Err(other) => panic!("{other:?}"),
        };
        let end = done.map_or(whole.start().raw(), |done| done.last().raw() + 1);
        for ipa in (whole.start().raw()..=whole.last().raw()).step_by(G::PAGE_SIZE as usize) {
            let expected = (ipa < end).then(|| FRAMES + (ipa - whole.start().raw()));
            assert_eq!(target(&guest, &reader, ipa), expected, "{successes} successes, {ipa:#x}");
        }
        assert_eq!(target(&guest, &reader, neighbour.start().raw()), Some(neighbour.start().raw()));
        // Spares went back, and no table is linked that holds nothing.
        let mapped: Vec<IpaRange> = [Some(neighbour), done].into_iter().flatten().collect();
        let linked = tables(&guest, &mapped) - tables(&guest, &[neighbour]);
        assert_eq!(mmu.memory().live() - before, linked, "{successes} successes");
        if coming == Coming::Tables {
            reclaim_all(&guest, &mut reader);
        }
        // What is missing can be mapped now, from there on.
        if let Some(rest) = IpaRange::inclusive(Ipa::new(end), whole.last()) {
            map(&guest, &reader, rest.start().raw(), rest.bytes());
        }
        assert_eq!(mmu.memory().live(), tables(&guest, &[neighbour, whole]));
        tear_down(guest, &reader);
        every_page_is_there_once(mmu, PAGES, 0);
        if result.is_ok() {
            break;
        }
        failures += 1;
    }
    let guest = guest_of::<G>(ipa_bits);
    let neighbour = range(across_the_root(&guest).start().raw() - table_bytes::<G>(), G::PAGE_SIZE);
    let allocations = tables(&guest, &[neighbour, across_the_root(&guest)]) - tables(&guest, &[neighbour]);
    assert_eq!(failures, allocations, "each allocation has failed once");
}

#[test]
fn a_map_whose_kth_allocation_fails_has_mapped_a_prefix_of_whole_tables_and_leaks_nothing() {
    a_map_fails_at_each_allocation::<Granule4K>(48, Coming::Nothing);
    a_map_fails_at_each_allocation::<Granule4K>(40, Coming::Nothing);
    a_map_fails_at_each_allocation::<Granule16K>(36, Coming::Nothing);
    a_map_fails_at_each_allocation::<Granule64K>(40, Coming::Nothing);
}

#[test]
fn a_map_whose_kth_allocation_fails_while_tables_are_on_their_way_back_is_told_to_try_again() {
    a_map_fails_at_each_allocation::<Granule4K>(48, Coming::Tables);
    a_map_fails_at_each_allocation::<Granule16K>(36, Coming::Tables);
    a_map_fails_at_each_allocation::<Granule64K>(40, Coming::Tables);
}

fn a_fault_fails_at_each_allocation<G: Granule>(ipa_bits: u8, coming: Coming) {
    let guest = guest_of::<G>(ipa_bits);
    let mmu = guest.mmu();
    let mut reader = reader(mmu, 0);
    if coming == Coming::Tables {
        leave_an_empty_path(&guest, &reader);
    }
    let ipa = across_the_root(&guest).start().raw() + 5 * G::PAGE_SIZE;
    let before = mmu.memory().live();
    let missing = guest.geometry().start_level().levels_below() as u64;
    let memory = Memory::at(FRAMES, RW);
    {
        let loaded = guest.load(&reader).unwrap();
        for successes in 0..missing {
            mmu.memory().fail_after(successes);
            let result = loaded.resolve(&reader, &memory, write_fault(ipa));
            mmu.memory().fail_after(u64::MAX);
            match coming {
                Coming::Nothing => assert_eq!(result, Err(FaultError::OutOfTables)),
                Coming::Tables => assert_eq!(result, Ok(Outcome::Retry)),
            }
            assert_eq!(memory.unused.borrow().len() as u64, successes + 1, "the page went back");
            assert_eq!(mmu.memory().live(), before, "no table is linked for nothing");
            assert_eq!(target(&guest, &reader, ipa), None);
        }
        assert_eq!(resolve(&loaded, &reader, &memory, write_fault(ipa)), Outcome::Resumed);
    }
    assert_eq!(target(&guest, &reader, ipa), Some(FRAMES));
    assert_eq!(mmu.memory().live() as u64, before as u64 + missing);
    unmap(&guest, &reader, ipa, G::PAGE_SIZE);
    reclaim_all(&guest, &mut reader);
    assert_eq!(mmu.memory().live(), guest.geometry().root_tables());
    tear_down(guest, &reader);
    every_page_is_there_once(mmu, PAGES, 0);
}

#[test]
fn a_fault_whose_kth_allocation_fails_gives_its_page_back_and_can_be_taken_again() {
    for coming in [Coming::Nothing, Coming::Tables] {
        a_fault_fails_at_each_allocation::<Granule4K>(48, coming);
        a_fault_fails_at_each_allocation::<Granule4K>(40, coming);
        a_fault_fails_at_each_allocation::<Granule16K>(36, coming);
        a_fault_fails_at_each_allocation::<Granule64K>(40, coming);
    }
}

#[test]
fn a_guest_whose_root_cannot_be_had_is_not_made_whatever_the_size_of_the_root() {
    for (ipa_bits, tables) in [(39, 1), (40, 2), (41, 4), (42, 8), (43, 16), (44, 1), (48, 1)] {
        let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 1, 16, features());
        mmu.memory().fail_after(0);
        let made = |()| Stage2::new(mmu, geometry::<Granule4K>(ipa_bits), None);
        assert_eq!(made(()).err(), Some(CreateError::OutOfTables));
        assert_eq!(mmu.memory().live(), 0);
        let guest = made(()).unwrap();
        assert_eq!(mmu.memory().live(), tables, "{ipa_bits} bits");
        tear_down(guest, &reader(mmu, 0));
        every_page_is_there_once(mmu, 16, 0);
    }
}

/// Does `operation` while the next allocation fails: it must not have been the one to find out.
fn without_memory<T>(guest: &Guest, operation: impl FnOnce() -> T) -> T {
    let memory = guest.mmu().memory();
    memory.fail_after(0);
    let result = operation();
    assert!(memory.alloc().is_err(), "something was allocated");
    result
}

#[test]
fn what_takes_away_looks_or_changes_permissions_allocates_nothing() {
    let mmu = machine(16);
    let words: Box<[Word]> = (0..16).map(|_| Word::new(0)).collect();
    let log = DirtyBitmap { base: Ipa::new(0), words: Box::leak(words) };
    let guest: Guest = Stage2::new(mmu, geometry(40), Some(log)).unwrap();
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, TABLE + 8 * PAGE);
    let whole = range(0, TABLE + 8 * PAGE);
    let (mut bitmap, memory) = (vec![0; 16], Memory::at(FRAMES, RW));

    without_memory(&guest, || guest.protect(&reader, whole, Permissions::R)).unwrap();
    without_memory(&guest, || guest.protect(&reader, whole, Permissions::RWX)).unwrap();
    without_memory(&guest, || guest.write_protect(&reader, whole)).unwrap();
    without_memory(&guest, || guest.query(&reader, Ipa::new(0))).unwrap();
    without_memory(&guest, || guest.view(&reader, Ipa::new(0)).map(|_| ())).unwrap();
    without_memory(&guest, || guest.flush_mapped(&reader, whole)).unwrap();
    for initial in [Initial::Dirty, Initial::Clean] {
        let mut log = without_memory(&guest, || guest.start_logging(&reader, initial)).unwrap();
        without_memory(&guest, || guest.mark_dirty(whole)).unwrap();
        without_memory(&guest, || log.scan(&reader, whole, &mut bitmap)).unwrap();
        let _ = without_memory(&guest, || log.rearm(&reader, whole, &bitmap)).unwrap();
        without_memory(&guest, || log.stop());
    }
    // A store to a page that is there: only its permission is missing.
    let loaded = without_memory(&guest, || guest.load(&reader)).unwrap();
    for fault in [store_denied(mmu, 0), write_fault(PAGE), read_fault(PAGE)] {
        let outcome = without_memory(&guest, || loaded.resolve(&reader, &memory, fault));
        assert_eq!(outcome, Ok(Outcome::Resumed));
    }
    drop(loaded);
    let frozen = without_memory(&guest, || guest.freeze(&reader)).unwrap();
    assert!(without_memory(&guest, || frozen.thaw(&reader)).is_ok());
    without_memory(&guest, || guest.unmap_with(&reader, range(0, 8 * PAGE), |_| {})).unwrap();
    let _ = without_memory(&guest, || guest.unmap(&reader, whole)).unwrap();
    assert!(without_memory(&guest, || reclaim_all(&guest, &mut reader)) > 0);
    map(&guest, &reader, 0, PAGE);
    mmu.memory().fail_after(0);
    assert!(guest.teardown(&reader).is_ok());
    assert!(mmu.memory().alloc().is_err(), "something was allocated");
    every_page_is_there_once(mmu, 16, 0);
}
