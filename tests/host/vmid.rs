//! VMIDs: rollover, and no two trees under one VMID.

use std::collections::BTreeSet;

use stage2::arch::{Dsb, Scope, Tlbi};
use stage2::geometry::Granule4K;
use stage2::model::{Event, ModelArch};

use crate::support::*;

const ALLE1: Event = Event::Tlbi(Tlbi::Alle1 { scope: Scope::InnerShareable });

fn eight_bits(cpus: usize) -> &'static Machine {
    machine_of::<_, Granule4K>(ModelArch::new(), cpus, 2048, features().without_vmid16())
}

/// The VMID that was loaded last.
fn last_loaded(events: &[Event]) -> u64 {
    let loaded = |event: &Event| if let Event::Load(registers) = event { Some(registers.vttbr >> 48) } else { None };
    events.iter().rev().find_map(loaded).expect("a load")
}

#[test]
fn with_300_guests_and_8_bits_everything_is_invalidated_before_a_vmid_is_used_again() {
    let mmu = eight_bits(1);
    let reader = reader(mmu, 0);
    let guests: Vec<Guest> = (0..300).map(|_| guest(mmu)).collect();
    let mut used = BTreeSet::new();
    let mut generations = 0;
    for _ in 0..3 {
        for guest in &guests {
            mmu.arch().take_events();
            drop(guest.load(&reader).unwrap());
            let events = mmu.arch().take_events();
            let vmid = last_loaded(&events);
            assert!((1..256).contains(&vmid), "VMID 0 is nobody's");
            // The very first VMID begins so, too: whoever ran here before may have left anything.
            if let Some(at) = events.iter().position(|event| *event == ALLE1) {
                assert_eq!(events[at - 1], Event::Dsb(Dsb::Ishst));
                assert_eq!(events[at + 1], Event::Dsb(Dsb::Ish));
                assert!(matches!(events[at + 2], Event::Load(_)), "before anything is loaded");
                used.clear();
                generations += 1;
            }
            assert!(used.insert(vmid), "{vmid} was used since the last rollover");
        }
    }
    assert_eq!(mmu.vmids().rollovers(), 900 / 255);
    assert_eq!(generations, 1 + 900 / 255);
    for guest in guests {
        guest.teardown(&reader).map_err(|(_, why)| why).unwrap();
    }
    assert_eq!(mmu.memory().live(), 0);
}

#[test]
fn the_first_vmid_of_a_machine_is_given_out_with_clean_tlbs() {
    let mmu = machine(16);
    let reader = reader(mmu, 0);
    let (first, second) = (guest(mmu), guest(mmu));
    drop(first.load(&reader).unwrap());
    let events = mmu.arch().take_events();
    assert!(matches!(events[..], [Event::Dsb(Dsb::Ishst), ALLE1, Event::Dsb(Dsb::Ish), Event::Load(_), Event::Unload]));
    drop(second.load(&reader).unwrap());
    assert!(matches!(mmu.arch().take_events()[..], [Event::Load(_), Event::Unload]), "once is enough");
    assert_eq!(mmu.vmids().rollovers(), 0);
}

#[test]
fn a_guest_that_is_loaded_through_rollovers_keeps_its_vmid_and_nobody_else_gets_it() {
    let mmu = eight_bits(3);
    let mut resident_reader = reader(mmu, 0);
    let mut away_reader = reader(mmu, 2);
    let reader = reader(mmu, 1);
    let (resident, away) = (guest(mmu), guest(mmu));
    let mut loaded = resident.load(&resident_reader).unwrap();
    let vmid = last_loaded(&mmu.arch().take_events());
    // In the guest through all of it.
    let mut away_loaded = away.load(&away_reader).unwrap();
    let away_vmid = last_loaded(&mmu.arch().take_events());
    let guests: Vec<Guest> = (0..300).map(|_| guest(mmu)).collect();
    for round in 0..4 {
        for guest in &guests {
            drop(guest.load(&reader).unwrap());
            let other = last_loaded(&mmu.arch().take_events());
            assert!(other != vmid && other != away_vmid);
        }
        assert!(mmu.vmids().rollovers() > round);
        loaded.run(&mut resident_reader, || {}).unwrap();
        let events = mmu.arch().take_events();
        assert!(!events.iter().any(|event| matches!(event, Event::Load(_))), "nothing to load anew: {events:?}");
    }
    away_loaded.run(&mut away_reader, || {}).unwrap();
    assert!(!mmu.arch().take_events().iter().any(|event| matches!(event, Event::Load(_))));
    drop((loaded, away_loaded));
}

#[test]
fn a_guest_that_runs_on_two_cpus_has_one_vmid_also_after_a_rollover() {
    let mmu = eight_bits(3);
    let mut readers = [reader(mmu, 0), reader(mmu, 1)];
    let shared = guest(mmu);
    let reader = reader(mmu, 2);
    let guests: Vec<Guest> = (0..300).map(|_| guest(mmu)).collect();
    let mut loaded: Vec<_> = readers.iter().map(|reader| shared.load(reader).unwrap()).collect();
    let events = mmu.arch().take_events();
    let vmids: BTreeSet<u64> =
        events.iter().filter_map(|e| if let Event::Load(to) = e { Some(to.vttbr >> 48) } else { None }).collect();
    assert_eq!(vmids.len(), 1);
    for guest in &guests {
        drop(guest.load(&reader).unwrap());
    }
    assert!(mmu.vmids().rollovers() > 0);
    // One CPU goes away and comes back, the other stays.
    drop(loaded.pop());
    mmu.arch().take_events();
    loaded.push(shared.load(&readers[1]).unwrap());
    assert_eq!(Some(&last_loaded(&mmu.arch().take_events())), vmids.first());
    for (loaded, reader) in loaded.iter_mut().zip(&mut readers) {
        loaded.run(reader, || {}).unwrap();
    }
    assert!(!mmu.arch().take_events().iter().any(|event| matches!(event, Event::Load(_))));
}

#[test]
fn the_vmid_of_a_guest_that_was_torn_down_can_be_had_again() {
    let mmu = eight_bits(1);
    let reader = reader(mmu, 0);
    for _ in 0..1000 {
        let guest = guest(mmu);
        drop(guest.load(&reader).unwrap());
        mmu.arch().take_events();
        tear_down(guest, &reader);
    }
    assert_eq!(mmu.vmids().rollovers(), 0);
}

#[test]
fn more_guests_in_use_at_once_than_there_are_vmids_is_an_error() {
    let mmu = eight_bits(256);
    let guests: Vec<Guest> = (0..256).map(|_| guest(mmu)).collect();
    let mut readers: Vec<_> = (0..256).map(|cpu| reader(mmu, cpu)).collect();
    let mut loaded: Vec<_> =
        guests.iter().zip(&readers).take(255).map(|(guest, reader)| guest.load(reader).unwrap()).collect();
    let events = mmu.arch().take_events();
    let vmids: BTreeSet<u64> =
        events.iter().filter_map(|e| if let Event::Load(to) = e { Some(to.vttbr >> 48) } else { None }).collect();
    assert_eq!(vmids.len(), 255);
    assert_eq!(guests[255].load(&readers[255]).err(), Some(stage2::stage2::LoadError::OutOfVmids));
    // They are where they were, and can be run.
    mmu.arch().take_events();
    loaded[7].run(&mut readers[7], || {}).unwrap();
    assert_eq!(mmu.arch().take_events(), []);
    drop(loaded.remove(3));
    // Its number is free after the next rollover.
    loaded.push(guests[255].load(&readers[255]).unwrap());
    let last = last_loaded(&mmu.arch().take_events());
    assert_eq!(last, 4);
}

#[test]
fn a_cpu_has_one_tree_at_a_time_and_only_its_own_reader_runs_it() {
    let mmu = machine(8);
    let (mut reader, mut other) = (reader(mmu, 0), reader(mmu, 1));
    let (first, second) = (guest(mmu), guest(mmu));
    let mut loaded = first.load(&reader).unwrap();
    assert_eq!(second.load(&reader).err(), Some(stage2::stage2::LoadError::Loaded));
    assert_eq!(loaded.run(&mut other, || {}), Err(stage2::stage2::RunError::OtherCpu));
    assert_eq!(loaded.run(&mut reader, || 5), Ok(5));
    drop(loaded);
    assert!(second.load(&reader).is_ok());
    let elsewhere = crate::support::reader(machine(4), 0);
    assert_eq!(first.load(&elsewhere).err(), Some(stage2::stage2::LoadError::ForeignReader));
}

#[test]
fn no_grace_period_waits_for_a_cpu_that_runs_a_guest() {
    let mmu = machine(8);
    let mut reader = reader(mmu, 0);
    let guest = guest(mmu);
    let mut loaded = guest.load(&reader).unwrap();
    let period = mmu.quiescence().begin();
    assert!(mmu.quiescence().poll(period).is_err());
    assert!(loaded.run(&mut reader, || mmu.quiescence().poll(period)).unwrap().is_ok());
    drop(loaded);
    tear_down(guest, &reader);
}
