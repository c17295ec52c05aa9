//! What is told to the caches, so that the guest and the hypervisor see the same memory (rule 13).

use std::cell::Cell;
use std::rc::Rc;

use stage2::addr::{Ipa, Pa};
use stage2::arch::Dsb;
use stage2::descriptor::{Attributes, MemoryType, Permissions};
use stage2::dirty::Content;
use stage2::fault::Outcome;
use stage2::geometry::{Features, Granule4K};
use stage2::model::{Event, ModelArch};

use crate::support::*;

const RX: Attributes = Attributes::normal(Permissions::RX);
const RWX: Attributes = Attributes::normal(Permissions::RWX);
const NON_CACHEABLE: Attributes = Attributes { memory: MemoryType::NormalNonCacheable, ..RW };
const FRAME: u64 = 0x8000;

fn cleaned(frame: u64, bytes: u64) -> Event {
    Event::CleanInvalidate(Pa::new(frame), bytes)
}

fn synchronized(frame: u64, bytes: u64) -> Event {
    Event::Instructions(Pa::new(frame), bytes)
}

/// One CPU of a machine with `features`.
fn machine_with(features: Features) -> &'static Machine {
    machine_of::<_, Granule4K>(ModelArch::new(), 1, 16, features)
}

/// What `change` tells the caches of CPUs with `features`, with all barriers; TLBs have nothing to be told.
fn maintenance(
    features: Features,
    prepare: impl FnOnce(&Guest, &stage2::quiescence::Reader<'_>),
    change: impl FnOnce(&Guest, &stage2::quiescence::Reader<'_>),
) -> Vec<Event> {
    let mmu = machine_with(features);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    prepare(&guest, &reader);
    mmu.arch().take_events();
    change(&guest, &reader);
    let events = mmu.arch().take_events();
    tear_down(guest, &reader);
    events
}

/// What a page with these attributes costs that is mapped on CPUs with `features`.
fn mapping(features: Features, attributes: Attributes) -> Vec<Event> {
    let map = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        guest.map(reader, range(0, PAGE), Pa::new(FRAME), attributes, Content::New).unwrap();
    };
    maintenance(features, |_, _| {}, map)
}

const PUBLISHED: Event = Event::Dsb(Dsb::Ishst);
const COMPLETE: Event = Event::Dsb(Dsb::Ish);

#[test]
fn frames_are_maintained_before_they_are_mapped_as_far_as_the_cpus_need_it() {
    let clean = cleaned(FRAME, PAGE);
    let without_fwb = features().without_force_write_back();
    assert_eq!(mapping(features(), RWX), [PUBLISHED]);
    assert_eq!(mapping(without_fwb, RWX), [clean, COMPLETE, PUBLISHED]);
    assert_eq!(mapping(plain_features(), RWX), [clean, synchronized(FRAME, PAGE), COMPLETE, PUBLISHED]);
    assert_eq!(mapping(plain_features(), RW), [clean, COMPLETE, PUBLISHED]);
}

#[test]
fn a_non_cacheable_frame_is_cleaned_also_with_fwb() {
    for features in [features(), features().without_force_write_back(), plain_features()] {
        assert_eq!(mapping(features, NON_CACHEABLE), [cleaned(FRAME, PAGE), COMPLETE, PUBLISHED]);
    }
}

#[test]
fn an_instruction_cache_may_hold_non_cacheable_memory() {
    let executable = Attributes { memory: MemoryType::NormalNonCacheable, ..RX };
    let events = [cleaned(FRAME, PAGE), synchronized(FRAME, PAGE), COMPLETE, PUBLISHED];
    assert_eq!(mapping(plain_features(), executable), events);
}

#[test]
fn the_caches_are_told_nothing_of_devices() {
    for features in [features(), plain_features()] {
        assert_eq!(mapping(features, Attributes::device(true)), [PUBLISHED]);
    }
}

#[test]
fn every_table_of_a_long_range_is_filled_after_its_own_frames_are_maintained() {
    let map_two_tables = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        guest.map(reader, range(TABLE - PAGE, 3 * PAGE), Pa::new(FRAME), RW, Content::New).unwrap();
    };
    let events = maintenance(plain_features(), |_, _| {}, map_two_tables);
    assert_eq!(events, [cleaned(FRAME, PAGE), COMPLETE, cleaned(FRAME + PAGE, 2 * PAGE), COMPLETE, PUBLISHED]);
}

/// Has CPU 1 look, right before this CPU's next DSB ISH, that `ipa` is not mapped yet. Whether it has looked.
fn not_mapped_at_the_barrier(mmu: &'static Machine<Staged>, guest: &'static Guest<Staged>, ipa: u64) -> Rc<Cell<bool>> {
    let looked = Rc::new(Cell::new(false));
    let at_cue = looked.clone();
    cue(
        |event| *event == COMPLETE,
        move || {
            assert_eq!(target(guest, &reader(mmu, 1), ipa), None);
            at_cue.set(true);
        },
    );
    looked
}

fn on_plain_stage() -> (&'static Machine<Staged>, &'static Guest<Staged>) {
    let mmu = machine_of(Staged(ModelArch::new()), 2, 16, plain_features());
    (mmu, Box::leak(Box::new(guest(mmu))))
}

#[test]
fn a_map_installs_the_entry_after_the_maintenance_is_complete() {
    let (mmu, guest) = on_plain_stage();
    let reader = reader(mmu, 0);
    let looked = not_mapped_at_the_barrier(mmu, guest, 0);
    guest.map(&reader, range(0, PAGE), Pa::new(FRAME), RWX, Content::New).unwrap();
    assert!(looked.get());
    assert_eq!(target(guest, &reader, 0), Some(FRAME));
}

#[test]
fn a_fault_installs_the_entry_after_the_maintenance_is_complete() {
    let (mmu, guest) = on_plain_stage();
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    mmu.arch().0.take_events();
    let looked = not_mapped_at_the_barrier(mmu, guest, 0);
    let fetch = instruction_abort(0, code::TRANSLATION);
    assert_eq!(resolve(&loaded, &reader, &Memory::at(FRAME, RX), fetch), Outcome::Resumed);
    assert!(looked.get());
    let events = mmu.arch().0.take_events();
    assert_eq!(events, [cleaned(FRAME, PAGE), synchronized(FRAME, PAGE), COMPLETE, PUBLISHED]);
}

#[test]
fn a_page_that_becomes_executable_is_synchronized_before_it_does_and_one_that_was_is_not() {
    let two_pages = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        guest.map(reader, range(0, PAGE), Pa::new(FRAME), RW, Content::New).unwrap();
        guest.map(reader, range(PAGE, PAGE), Pa::new(FRAME + PAGE), RWX, Content::New).unwrap();
    };
    let to = |permissions| {
        move |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
            guest.protect(reader, range(0, TABLE), permissions).unwrap();
        }
    };
    let events = maintenance(plain_features(), two_pages, to(Permissions::RWX));
    assert_eq!(events, [synchronized(FRAME, PAGE), COMPLETE, PUBLISHED]);
    assert_eq!(maintenance(features(), two_pages, to(Permissions::RWX)), [PUBLISHED], "the caches see to it");
    let events = maintenance(plain_features(), two_pages, to(Permissions::R));
    assert!(!events.iter().any(|event| matches!(event, Event::Instructions(..))), "nobody fetches: {events:?}");

    let (mmu, guest) = on_plain_stage();
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    cue(
        |event| *event == COMPLETE,
        move || {
            let mapping = guest.query(&crate::support::reader(mmu, 1), Ipa::new(0)).unwrap().unwrap();
            assert_eq!(mapping.permissions, Permissions::RW, "not yet");
        },
    );
    guest.protect(&reader, range(0, PAGE), Permissions::RWX).unwrap();
    assert_eq!(guest.query(&reader, Ipa::new(0)).unwrap().unwrap().permissions, Permissions::RWX);
}

#[test]
fn an_unmap_hands_over_frames_that_the_hypervisor_sees_as_the_guest_did() {
    let mmu = machine_with(features().without_force_write_back());
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    guest.map(&reader, range(0, 3 * PAGE), Pa::new(FRAME), RW, Content::New).unwrap();
    mmu.arch().take_events();
    let mut before = Vec::new();
    guest.unmap_with(&reader, range(0, TABLE), |_| before.push(mmu.arch().take_events())).unwrap();
    let [first, others @ ..] = &before[..] else { panic!("three frames") };
    // After the invalidation: until then the guest may store.
    let flushed = first.iter().position(|event| *event == Event::LeaveVmid).expect("a flush");
    let of_frames: Vec<Event> = (0..3).map(|page| cleaned(FRAME + page * PAGE, PAGE)).chain([COMPLETE]).collect();
    assert_eq!(first[flushed + 1..], of_frames);
    assert_eq!(others, [[], []], "one barrier for all of them");
    tear_down(guest, &reader);
}

#[test]
fn with_fwb_an_unmap_has_nothing_to_clean() {
    let three_pages = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        guest.map(reader, range(0, 3 * PAGE), Pa::new(FRAME), RW, Content::New).unwrap();
    };
    let events = maintenance(features(), three_pages, |guest, reader| {
        guest.unmap_with(reader, range(0, 3 * PAGE), |_| {}).unwrap();
    });
    assert_eq!(events, [PUBLISHED, PUBLISHED]);
}

#[test]
fn flush_mapped_cleans_what_is_mapped_in_the_range_and_nothing_else() {
    let some_pages = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        for (page, attributes) in
            [(0, RW), (1, RW), (3, RX), (5, NON_CACHEABLE), (6, Attributes::device(true)), (9, RW)]
        {
            guest
                .map(reader, range(page * PAGE, PAGE), Pa::new(FRAME + page * PAGE), attributes, Content::New)
                .unwrap();
        }
        guest.map(reader, range(TABLE, PAGE), Pa::new(FRAME + TABLE), RW, Content::New).unwrap();
        guest.map(reader, range(1 << 39, PAGE), Pa::new(0), RW, Content::New).unwrap();
    };
    let flush = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        guest.flush_mapped(reader, range(PAGE, TABLE)).unwrap();
    };
    let cleaned = |pages: &[u64]| {
        let pages = pages.iter().map(|page| cleaned(FRAME + page * PAGE, PAGE));
        pages.chain([COMPLETE]).collect::<Vec<_>>()
    };
    assert_eq!(maintenance(features().without_force_write_back(), some_pages, flush), cleaned(&[1, 3, 5, 9, 512]));
    assert_eq!(maintenance(features(), some_pages, flush), cleaned(&[5]), "what passes the caches");
}

#[test]
fn a_view_is_cleaned_where_the_guest_can_pass_the_caches() {
    let two_pages = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        guest.map(reader, range(0, PAGE), Pa::new(FRAME), RW, Content::New).unwrap();
        guest.map(reader, range(PAGE, PAGE), Pa::new(FRAME + PAGE), NON_CACHEABLE, Content::New).unwrap();
    };
    let view = |page| {
        move |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
            assert!(guest.view(reader, Ipa::new(page * PAGE)).unwrap().is_some());
        }
    };
    assert_eq!(maintenance(features(), two_pages, view(0)), []);
    assert_eq!(maintenance(features(), two_pages, view(1)), [cleaned(FRAME + PAGE, PAGE), COMPLETE]);
    assert_eq!(maintenance(plain_features(), two_pages, view(0)), [cleaned(FRAME, PAGE), COMPLETE]);
}

#[test]
fn a_frame_is_cleaned_on_its_way_out_as_its_memory_type_needs_it() {
    let all_kinds = |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
        for (page, attributes) in [(0, RW), (1, NON_CACHEABLE), (2, Attributes::device(true))] {
            guest
                .map(reader, range(page * PAGE, PAGE), Pa::new(FRAME + page * PAGE), attributes, Content::New)
                .unwrap();
        }
    };
    let unmap = |page: u64| {
        move |guest: &Guest, reader: &stage2::quiescence::Reader<'_>| {
            guest.unmap_with(reader, range(page * PAGE, PAGE), |_| ()).unwrap();
        }
    };
    let nothing = [PUBLISHED, PUBLISHED];
    let clean = |page: u64| [PUBLISHED, cleaned(FRAME + page * PAGE, PAGE), COMPLETE, PUBLISHED];
    assert_eq!(maintenance(features(), all_kinds, unmap(0)), nothing);
    assert_eq!(maintenance(features(), all_kinds, unmap(1)), clean(1), "the guest has passed the caches");
    assert_eq!(maintenance(features(), all_kinds, unmap(2)), nothing);
    assert_eq!(maintenance(plain_features(), all_kinds, unmap(0)), clean(0));
    assert_eq!(
        maintenance(plain_features(), all_kinds, unmap(2)),
        nothing,
        "a device, which may be mapped nowhere else"
    );
}
