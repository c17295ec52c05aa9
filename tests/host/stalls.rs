//! A CPU that does not quiesce: what waits for it is bounded and stays whole, the CPU is named, and when it does quiesce all that
//! waited comes back.

use std::collections::BTreeSet;

use stage2::addr::{Ipa, Pa};
use stage2::cpu::CpuIndex;
use stage2::dirty::Content;
use stage2::fault::Outcome;
use stage2::geometry::Granule4K;
use stage2::memory::TableMemory;
use stage2::model::ModelArch;
use stage2::quiescence::{Quiescing, Reader};
use stage2::reclaim::{MAX_BATCHES, MAX_WAITING, Progress};
use stage2::stage2::{MapCause, MapError};

use crate::support::*;

/// One call of the reclaimer after this CPU has quiesced.
fn step(guest: &Guest, reader: &mut Reader<'_>) -> Progress {
    reader.quiescent();
    guest.reclaim(reader, u32::MAX).unwrap()
}

#[test]
fn hints_that_pile_up_behind_a_reader_are_reported_past_the_cap_with_its_cpu() {
    let pages = MAX_WAITING as usize + 20;
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 4, pages, features());
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    // The list of hints whose idle period is to pass is this one's alone, so that all others pile up behind it.
    map(&guest, &reader, 0, PAGE);
    let mut stuck = crate::support::reader(mmu, 3);
    unmap(&guest, &reader, 0, PAGE);
    assert_eq!(step(&guest, &mut reader), Progress { hinted: 1, ..Progress::default() });
    for table in 1..u64::from(MAX_WAITING) {
        map(&guest, &reader, table * TABLE, PAGE);
    }
    unmap(&guest, &reader, 0, u64::from(MAX_WAITING) * TABLE);
    let at_the_cap = step(&guest, &mut reader);
    assert_eq!(at_the_cap, Progress { hinted: MAX_WAITING, ..Progress::default() }, "as many as may wait");
    assert_eq!(mmu.statistics().stalls, 0);
    map(&guest, &reader, u64::from(MAX_WAITING) * TABLE, PAGE);
    unmap(&guest, &reader, u64::from(MAX_WAITING) * TABLE, PAGE);
    let live = mmu.memory().live();
    for calls in 1..=3 {
        let past = step(&guest, &mut reader);
        assert_eq!((past.hinted, past.unlinked, past.freed), (MAX_WAITING + 1, 0, 0));
        assert_eq!(past.stalled_by, Some(CpuIndex(3)));
        assert_eq!(mmu.statistics().stalls, calls);
    }
    assert_eq!(mmu.memory().live(), live, "none came back");
    // Everything comes back, also those above the leaf tables.
    stuck.quiescent();
    drop(stuck);
    reclaim_all(&guest, &mut reader);
    assert_eq!(mmu.memory().live(), guest.geometry().root_tables());
    let statistics = mmu.statistics();
    assert_eq!(statistics.tables_freed, statistics.tables_linked);
    assert_eq!(statistics.stalls, 3);
    tear_down(guest, &reader);
}

#[test]
fn tables_that_wait_for_a_reader_are_not_given_out_however_short_memory_is() {
    let mmu = machine(12);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, 8 * TABLE);
    unmap(&guest, &reader, 0, 8 * TABLE);
    step(&guest, &mut reader);
    reader.quiescent();
    let mut stuck = crate::support::reader(mmu, 2);
    assert_eq!(guest.reclaim(&reader, u32::MAX).unwrap().waiting, 8);
    assert_eq!(mmu.memory().live(), 11);
    let elsewhere = |reader: &Reader<'_>| guest.map(reader, range(1 << 30, PAGE), Pa::new(0), RW, Content::New);
    let memory = Memory::at(0x8000, RW);
    for _ in 0..20 {
        let Err(MapError::Stopped(stopped)) = elsewhere(&reader) else { panic!("mapped") };
        assert_eq!(stopped.cause, MapCause::Retry, "the caller may be who holds the grace period up");
        let loaded = guest.load(&reader).unwrap();
        assert_eq!(resolve(&loaded, &reader, &memory, write_fault(1 << 30)), Outcome::Retry);
        assert_eq!(guest.reclaim(&reader, u32::MAX).unwrap().freed, 0);
    }
    assert_eq!(memory.unused.borrow().len(), 20);
    assert_eq!(mmu.memory().live(), 11, "no spare was kept");
    reader.quiescent();
    assert_eq!(guest.reclaim(&reader, u32::MAX).unwrap().freed, 0, "one of two");
    stuck.quiescent();
    assert_eq!(guest.reclaim(&reader, 0).unwrap().freed, 8);
    elsewhere(&reader).unwrap();
    drop(stuck);
    tear_down(guest, &reader);
}

#[test]
fn the_reader_that_is_named_is_one_that_still_holds_it_up() {
    let mmu = machine(64);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let tables = MAX_BATCHES as u64 + 1;
    map(&guest, &reader, 0, tables * TABLE);
    unmap(&guest, &reader, 0, tables * TABLE);
    step(&guest, &mut reader);
    reader.quiescent();
    let mut stuck = [1, 2, 3].map(|cpu| crate::support::reader(mmu, cpu));
    for _ in 0..MAX_BATCHES {
        assert_eq!(guest.reclaim(&reader, 1).unwrap().unlinked, 1);
    }
    assert_eq!(guest.reclaim(&reader, 1).unwrap().stalled_by, Some(CpuIndex(0)), "this one's own section is one, too");
    for (reader_of, cpu) in [(None, 1), (Some(0), 2), (Some(2), 2)] {
        if let Some(index) = reader_of {
            stuck[index].quiescent();
        }
        assert_eq!(step(&guest, &mut reader).stalled_by, Some(CpuIndex(cpu)));
    }
    stuck[1].quiescent();
    let progress = step(&guest, &mut reader);
    assert_eq!((progress.freed, progress.stalled_by), (MAX_BATCHES as u32, None));
    drop(stuck);
    reclaim_all(&guest, &mut reader);
    tear_down(guest, &reader);
}

#[test]
fn a_removed_frame_is_held_back_by_each_reader_that_was_in_a_section_and_named() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, 100 * PAGE);
    let mut looking = crate::support::reader(mmu, 1);
    assert!(looking.offline(|| {
        // A CPU that comes later cannot have seen anything.
        let removed = *guest.unmap(&reader, range(99 * PAGE, PAGE)).unwrap().peek();
        removed.leaves == 1
    }));
    let view = guest.view(&looking, Ipa::new(5 * PAGE)).unwrap().expect("it is mapped");
    let mut removed: Vec<Quiescing<'_, Pa>> = Vec::new();
    guest.unmap_with(&reader, range(0, 50 * PAGE), |leaf| removed.push(leaf.frame)).unwrap();
    let mut rest = Some(guest.unmap(&reader, range(50 * PAGE, 40 * PAGE)).unwrap());
    assert!(removed.iter().any(|frame| *frame.peek() == view.pa()));
    reader.quiescent();
    for _ in 0..3 {
        removed = core::mem::take(&mut removed)
            .into_iter()
            .map(|frame| {
                let (frame, waiting) = frame.poll().expect_err("somebody is copying from it");
                assert_eq!(waiting.0, CpuIndex(1));
                frame
            })
            .collect();
        let (unmapped, waiting) = rest.take().unwrap().poll().expect_err("nor those of the region");
        assert_eq!((unmapped.peek().leaves, waiting.0), (40, CpuIndex(1)));
        rest = Some(unmapped);
        reader.quiescent();
    }
    assert_eq!(view.bytes(), PAGE);
    looking.quiescent();
    let frames: BTreeSet<Pa> = removed.into_iter().map(|frame| frame.poll().map_err(|_| ()).unwrap()).collect();
    assert_eq!(frames, (0..50).map(|page| Pa::new(page * PAGE)).collect());
    assert!(rest.unwrap().poll().is_ok());
    tear_down(guest, &reader);
}

#[test]
fn a_reader_that_was_given_up_stalls_nothing() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let stuck = crate::support::reader(mmu, 1);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    for _ in 0..5 {
        assert_eq!(step(&guest, &mut reader).freed, 0);
    }
    drop(stuck);
    assert_eq!(reclaim_all(&guest, &mut reader), 2);
    assert!(mmu.memory().alloc().is_ok());
}
