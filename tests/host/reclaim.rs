//! Reclaim: an empty table goes back once nobody can be looking at it, and not before.

use stage2::cpu::CpuIndex;
use stage2::error::ArgumentError;
use stage2::quiescence::Reader;
use stage2::reclaim::{MAX_BATCHES, MAX_WAITING, Progress};

use crate::support::*;

/// One call of the reclaimer after this CPU has quiesced.
fn step(guest: &Guest, reader: &mut Reader<'_>) -> Progress {
    reader.quiescent();
    guest.reclaim(reader, u32::MAX).unwrap()
}

#[test]
fn an_emptied_table_is_unlinked_after_an_idle_period_and_freed_after_another() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, 4 * PAGE);
    // So that the table above stays.
    map(&guest, &reader, 8 * TABLE, PAGE);
    let live = mmu.memory().live();
    unmap(&guest, &reader, 0, 3 * PAGE);
    assert_eq!(step(&guest, &mut reader), Progress::default(), "not empty yet");
    unmap(&guest, &reader, 3 * PAGE, PAGE);
    // Seen; then its idle period has to pass, and then, out of the tree, the readers' one.
    assert_eq!(step(&guest, &mut reader), Progress { hinted: 1, ..Progress::default() });
    assert_eq!(guest.reclaim(&reader, 8).unwrap(), Progress { hinted: 1, ..Progress::default() });
    assert_eq!(step(&guest, &mut reader), Progress { unlinked: 1, waiting: 1, ..Progress::default() });
    assert_eq!(mmu.memory().live(), live);
    assert_eq!(guest.reclaim(&reader, 8).unwrap(), Progress { waiting: 1, ..Progress::default() });
    assert_eq!(step(&guest, &mut reader), Progress { freed: 1, ..Progress::default() });
    assert_eq!(mmu.memory().live(), live - 1);
    let statistics = mmu.statistics();
    assert_eq!((statistics.tables_linked, statistics.tables_unlinked, statistics.tables_freed), (3, 1, 1));
    tear_down(guest, &reader);
}

#[test]
fn a_table_that_is_used_again_in_its_idle_period_is_kept() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    step(&guest, &mut reader);
    map(&guest, &reader, 5 * PAGE, PAGE);
    let live = mmu.memory().live();
    for _ in 0..4 {
        assert_eq!(step(&guest, &mut reader).unlinked, 0);
    }
    assert_eq!(mmu.memory().live(), live);
    assert_eq!(target(&guest, &reader, 5 * PAGE), Some(5 * PAGE));
    // And it can go when it is empty once more.
    unmap(&guest, &reader, 5 * PAGE, PAGE);
    assert_eq!(reclaim_all(&guest, &mut reader), 2);
    tear_down(guest, &reader);
}

#[test]
fn a_table_that_was_emptied_filled_and_emptied_in_its_idle_period_is_hinted_once() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    for _ in 0..5 {
        map(&guest, &reader, 0, PAGE);
        unmap(&guest, &reader, 0, PAGE);
    }
    assert_eq!(step(&guest, &mut reader).hinted, 1);
    assert_eq!(reclaim_all(&guest, &mut reader), 2);
    tear_down(guest, &reader);
}

#[test]
fn tables_go_from_the_leaves_upwards_and_the_root_stays() {
    let mmu = machine(32);
    // 48 bits: four levels.
    let guest: Guest = stage2::stage2::Stage2::new(mmu, geometry(48), None).unwrap();
    let mut reader = reader(mmu, 0);
    let root = mmu.memory().live();
    map(&guest, &reader, 1 << 47, PAGE);
    assert_eq!(mmu.memory().live(), root + 3);
    unmap(&guest, &reader, 1 << 47, PAGE);
    let mut unlinked = Vec::new();
    while mmu.memory().live() > root {
        unlinked.push(step(&guest, &mut reader));
        assert!(unlinked.len() < 20);
    }
    unlinked.retain(|progress| progress.unlinked > 0);
    let steps: Vec<_> = unlinked.iter().map(|progress| (progress.unlinked, progress.hinted)).collect();
    assert_eq!(steps, [(1, 1), (1, 1), (1, 0)], "each after the one below, and the root is not even hinted");
    for _ in 0..10 {
        assert_eq!(step(&guest, &mut reader), Progress::default());
    }
    assert_eq!(mmu.memory().live(), root);
    tear_down(guest, &reader);
}

#[test]
fn a_reader_that_does_not_quiesce_holds_up_all_freeing_but_nothing_else_and_it_goes_on_when_it_does() {
    let mmu = machine(64);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let mut stuck = crate::support::reader(mmu, 2);
    // Tables to unlink one by one, whose idle period is over.
    let tables = MAX_BATCHES as u64 + 4;
    map(&guest, &reader, 0, tables * TABLE);
    map(&guest, &reader, 100 * TABLE, PAGE);
    unmap(&guest, &reader, 0, tables * TABLE);
    let live = mmu.memory().live();
    step(&guest, &mut reader);
    stuck.quiescent();
    let mut last = Progress::default();
    for _ in 0..2 * MAX_BATCHES {
        reader.quiescent();
        last = guest.reclaim(&reader, 1).unwrap();
        assert_eq!(last.freed, 0);
    }
    assert_eq!(mmu.memory().live(), live, "nothing is freed");
    assert_eq!(last.unlinked, 0, "nor unlinked any more");
    assert_eq!(last.waiting, MAX_BATCHES as u32);
    assert_eq!(last.stalled_by, Some(CpuIndex(2)));
    assert!(mmu.statistics().stalls > 0);
    // Everything else goes on.
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    stuck.quiescent();
    let progress = step(&guest, &mut reader);
    assert_eq!(progress.freed, MAX_BATCHES as u32);
    assert_eq!(progress.stalled_by, None);
    drop(stuck);
    reclaim_all(&guest, &mut reader);
    assert_eq!(mmu.memory().live() as u64, live as u64 - tables);
    tear_down(guest, &reader);
}

#[test]
fn no_more_tables_wait_than_the_cap_allows() {
    let tables = u64::from(MAX_WAITING) + 100;
    let mmu = machine(2000);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let mut stuck = crate::support::reader(mmu, 1);
    for table in 0..tables {
        map(&guest, &reader, table * TABLE, PAGE);
    }
    unmap(&guest, &reader, 0, tables * TABLE);
    step(&guest, &mut reader);
    stuck.quiescent();
    let progress = step(&guest, &mut reader);
    assert_eq!((progress.unlinked, progress.waiting), (MAX_WAITING, MAX_WAITING));
    let progress = step(&guest, &mut reader);
    assert_eq!((progress.unlinked, progress.stalled_by), (0, Some(CpuIndex(1))));
    stuck.quiescent();
    assert_eq!(step(&guest, &mut reader).freed, MAX_WAITING);
    drop(stuck);
    reclaim_all(&guest, &mut reader);
    tear_down(guest, &reader);
}

#[test]
fn a_cpu_that_is_offline_holds_nothing_up() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let mut parked = crate::support::reader(mmu, 1);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    assert_eq!(parked.offline(|| reclaim_all(&guest, &mut reader)), 2);
    tear_down(guest, &reader);
}

#[test]
fn a_budget_is_the_number_of_tables_looked_at() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, 5 * TABLE);
    unmap(&guest, &reader, 0, 5 * TABLE);
    step(&guest, &mut reader);
    reader.quiescent();
    assert_eq!(guest.reclaim(&reader, 0).unwrap().unlinked, 0);
    assert_eq!(guest.reclaim(&reader, 2).unwrap().unlinked, 2);
    assert_eq!(guest.reclaim(&reader, 100).unwrap().unlinked, 3);
    tear_down(guest, &reader);
}

#[test]
fn touching_and_unmapping_for_ever_takes_no_more_and_no_more_tables() {
    let mmu = machine(24);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0x8000, RW);
    let mut peak = 0;
    for n in 0..5000u64 {
        let ipa = n * TABLE + n % 512 * PAGE;
        assert_eq!(resolve(&loaded, &reader, &memory, write_fault(ipa)), stage2::fault::Outcome::Resumed);
        guest.unmap_with(&reader, range(ipa, PAGE), |_| {}).unwrap();
        reader.quiescent();
        guest.reclaim(&reader, 8).unwrap();
        peak = peak.max(mmu.memory().live());
    }
    assert!(peak <= 12, "{peak}");
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_table_below_a_frozen_root_waits_for_the_thaw() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    let frozen = guest.freeze(&reader).unwrap();
    for _ in 0..6 {
        step(&guest, &mut reader);
    }
    assert_eq!(mmu.memory().live(), 3, "the leaf table is gone, the one in the root is not");
    frozen.thaw(&reader).map_err(|(_, why)| why).unwrap();
    assert_eq!(reclaim_all(&guest, &mut reader), 1);
    map(&guest, &reader, 0, PAGE);
    tear_down(guest, &reader);
}

#[test]
fn the_reader_of_another_machine_reclaims_nothing() {
    let guest = guest(machine(8));
    let elsewhere = reader(machine(8), 0);
    assert_eq!(guest.reclaim(&elsewhere, 1), Err(ArgumentError::ForeignReader));
}
