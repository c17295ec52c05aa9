//! What is told to the TLBs, instruction by instruction (rule 7).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::arch::{Dsb, Scope, Stage2Registers, Tlbi, ttl};
use stage2::cpu::CpuIndex;
use stage2::descriptor::{Permissions, Xn};
use stage2::dirty::Content;
use stage2::fault::Outcome;
use stage2::geometry::{Features, Granule4K};
use stage2::memory::TreeId;
use stage2::mmu::{Invalidation, Mmu};
use stage2::model::{Event, ModelArch, ModelMemory};

use crate::support::*;

const IS: Scope = Scope::InnerShareable;
const VMALLE1: Tlbi = Tlbi::Vmalle1 { scope: IS };
const VMALLS12E1: Tlbi = Tlbi::Vmalls12e1 { scope: IS };

/// What `change` tells the TLBs of CPUs with `features`, on a guest with pages at 0..600 and an empty table at 2.
fn invalidations(features: Features, change: impl FnOnce(&Guest, &stage2::quiescence::Reader<'_>)) -> Vec<Event> {
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 1, 16, features);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, 0, 600 * PAGE);
    mmu.arch().take_events();
    change(&guest, &reader);
    let events = mmu.arch().take_events();
    tear_down(guest, &reader);
    events
}

fn only_tlbis(events: &[Event]) -> Vec<Tlbi> {
    events.iter().filter_map(|event| if let Event::Tlbi(tlbi) = event { Some(*tlbi) } else { None }).collect()
}

fn by_ipa(ipa: u64, leaf: Option<Level>) -> Tlbi {
    Tlbi::Ipa { ipa: Ipa::new(ipa), ttl: ttl(12, leaf), scope: IS }
}

#[test]
fn the_unmap_of_a_page_is_the_whole_sequence_of_barriers_and_invalidations() {
    for (features, leaf) in [(features(), Some(Level::L3)), (features().without_level_hint(), None)] {
        let events = invalidations(features, |guest, reader| {
            unmap(guest, reader, 3 * PAGE, PAGE);
        });
        let [Event::Dsb(Dsb::Ishst), Event::EnterVmid(registers), rest @ ..] = &events[..] else {
            panic!("{events:?}")
        };
        assert_ne!(registers.vttbr >> 48, 0, "under the guest's VMID");
        assert_eq!(
            rest,
            [
                Event::Tlbi(by_ipa(3 * PAGE, leaf)),
                Event::Dsb(Dsb::Ish),
                Event::Tlbi(VMALLE1),
                Event::Dsb(Dsb::Ish),
                Event::Isb,
                Event::LeaveVmid,
                // The entry that is none now.
                Event::Dsb(Dsb::Ishst),
            ]
        );
    }
}

#[test]
fn a_long_range_costs_a_handful_of_invalidations() {
    let events = invalidations(features(), |guest, reader| {
        unmap(guest, reader, 0, 1 << 30);
    });
    let tlbis = only_tlbis(&events);
    assert!(tlbis.len() <= 6, "{tlbis:?}");
    assert_eq!(tlbis.last(), Some(&VMALLE1));
    // They cover it, no page before and none behind.
    let mut at = 0;
    for tlbi in &tlbis[..tlbis.len() - 1] {
        match tlbi {
            Tlbi::IpaRange { operand, scope: IS } => {
                assert_eq!((operand.base.raw(), operand.level), (at, 3));
                at += operand.pages() * PAGE;
            }
            Tlbi::Ipa { ipa, scope: IS, .. } => {
                assert_eq!(ipa.raw(), at);
                at += PAGE;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((600 * PAGE..=2 * TABLE).contains(&at), "{at:#x}: the tables that there are");
}

#[test]
fn without_range_invalidation_few_pages_go_one_by_one_and_many_all_at_once() {
    let features = features().without_range_tlbi();
    let few = invalidations(features, |guest, reader| {
        unmap(guest, reader, 0, 16 * PAGE);
    });
    let expected: Vec<Tlbi> = (0..16).map(|page| by_ipa(page * PAGE, Some(Level::L3))).chain([VMALLE1]).collect();
    assert_eq!(only_tlbis(&few), expected);
    let many = invalidations(features, |guest, reader| {
        unmap(guest, reader, 0, 17 * PAGE);
    });
    assert_eq!(only_tlbis(&many), [VMALLS12E1]);
    let barriers: Vec<&Event> = many.iter().filter(|event| matches!(event, Event::Dsb(_) | Event::Isb)).collect();
    assert_eq!(barriers[..3], [&Event::Dsb(Dsb::Ishst), &Event::Dsb(Dsb::Ish), &Event::Isb]);
}

#[test]
fn many_scattered_ranges_are_all_of_the_vmid() {
    let mmu = machine(64);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    (0..10).for_each(|n| map(&guest, &reader, n << 30, PAGE));
    mmu.arch().take_events();
    unmap(&guest, &reader, 0, 10 << 30);
    assert_eq!(tlbis(mmu.arch()), [VMALLS12E1]);
    tear_down(guest, &reader);
}

#[test]
fn a_table_that_is_taken_out_is_invalidated_for_every_level() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, TABLE, PAGE);
    unmap(&guest, &reader, TABLE, PAGE);
    mmu.arch().take_events();
    let freed = reclaim_all(&guest, &mut reader);
    assert_eq!(freed, 2);
    // First the leaf table, then the one above: never with a level.
    assert_eq!(tlbis(mmu.arch()), [by_ipa(TABLE, None), VMALLE1, by_ipa(0, None), VMALLE1]);
    tear_down(guest, &reader);
}

#[test]
fn to_map_invalidates_nothing() {
    let events = invalidations(features(), |guest, reader| map(guest, reader, TABLE * 4, 1000 * PAGE));
    assert_eq!(events, [Event::Dsb(Dsb::Ishst)], "but what was written is made seen");
}

#[test]
fn to_page_in_invalidates_nothing() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    mmu.arch().take_events();
    let memory = Memory::at(0x8000, RW);
    assert_eq!(resolve(&loaded, &reader, &memory, write_fault(0x4000)), Outcome::Resumed);
    assert_eq!(mmu.arch().take_events(), [Event::Dsb(Dsb::Ishst)]);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn to_restrict_invalidates_and_to_relax_does_not() {
    let protect = |permissions| {
        invalidations(features(), move |guest, reader| {
            guest.protect(reader, range(0, PAGE), permissions).unwrap();
        })
    };
    assert_eq!(only_tlbis(&protect(Permissions::R)), [by_ipa(0, Some(Level::L3)), VMALLE1]);
    assert_eq!(only_tlbis(&protect(Permissions::RX)), [by_ipa(0, Some(Level::L3)), VMALLE1]);
    assert_eq!(protect(Permissions::RWX), [Event::Dsb(Dsb::Ishst)]);
    assert_eq!(protect(Permissions::RW), [Event::Dsb(Dsb::Ishst)]);
    let write_protect = invalidations(features(), |guest, reader| {
        guest.write_protect(reader, range(0, PAGE)).unwrap();
    });
    assert_eq!(only_tlbis(&write_protect), [by_ipa(0, Some(Level::L3)), VMALLE1]);
    let again = invalidations(features(), |guest, reader| {
        guest.write_protect(reader, range(0, PAGE)).unwrap();
        guest.mmu().arch().take_events();
        guest.write_protect(reader, range(0, PAGE)).unwrap();
    });
    assert_eq!(only_tlbis(&again), [], "it was clean already");
}

/// What a CPU does for itself after a permission was relaxed.
fn local(ipa: u64) -> [Event; 6] {
    [
        Event::Dsb(Dsb::Nshst),
        Event::Tlbi(Tlbi::Ipa { ipa: Ipa::new(ipa), ttl: 0, scope: Scope::Local }),
        Event::Dsb(Dsb::Nsh),
        Event::Tlbi(Tlbi::Vmalle1 { scope: Scope::Local }),
        Event::Dsb(Dsb::Nsh),
        Event::Isb,
    ]
}

#[test]
fn a_relaxed_permission_is_invalidated_by_each_cpu_that_meets_the_old_one() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0x4000, PAGE);
    guest.write_protect(&reader, range(0x4000, PAGE)).unwrap();
    let memory = Memory::at(0, RW);
    let fault = store_denied(mmu, 0x4000);
    let loaded = guest.load(&reader).unwrap();
    mmu.arch().take_events();
    assert_eq!(resolve(&loaded, &reader, &memory, fault), Outcome::Resumed);
    assert_eq!(mmu.arch().take_events(), local(0x4000), "nobody else is troubled");
    let other = crate::support::reader(mmu, 1);
    let other_loaded = guest.load(&other).unwrap();
    mmu.arch().take_events();
    let before = mmu.statistics().faults_spurious;
    assert_eq!(resolve(&other_loaded, &other, &memory, fault), Outcome::Resumed);
    assert_eq!(mmu.arch().take_events(), local(0x4000), "or it would fault for ever");
    assert_eq!(mmu.statistics().faults_spurious, before + 1);
    drop((loaded, other_loaded));
    tear_down(guest, &reader);
}

#[test]
fn the_vmid_is_read_after_the_first_barrier() {
    // A VMID that is given out in between belongs to a tree whose change is seen: it needs no invalidation under the
    // old one. Here the guest gets its first VMID in between.
    let mmu = staged_machine(16);
    let guest: &'static Guest<Staged> = Box::leak(Box::new(guest(mmu)));
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    // The map has come to an end: the next DSB is the flush's.
    cue(
        |event| matches!(event, Event::Dsb(Dsb::Ishst)),
        move || {
            let others: Vec<Guest<Staged>> = (0..3).map(|_| crate::support::guest(mmu)).collect();
            let other = crate::support::reader(mmu, 1);
            for guest in &others {
                drop(guest.load(&other).unwrap());
            }
            drop(guest.load(&other).unwrap());
        },
    );
    unmap(guest, &reader, 0, PAGE);
    let events = mmu.arch().0.take_events();
    let last_load = events.iter().rev().find_map(|event| if let Event::Load(to) = event { Some(*to) } else { None });
    let entered = events.iter().find_map(|event| if let Event::EnterVmid(to) = event { Some(*to) } else { None });
    assert_eq!(entered, last_load);
}

#[test]
fn nothing_a_rollover_does_meanwhile_gives_the_vmid_of_an_invalidation_to_somebody_else() {
    let arch = Staged(ModelArch::new());
    let mmu = machine_of::<_, Granule4K>(arch, 2, 600, features().without_vmid16());
    let guest: &'static Guest<Staged> = Box::leak(Box::new(guest(mmu)));
    let reader = reader(mmu, 0);
    give_vmid(guest, &reader);
    map(guest, &reader, 0, PAGE);
    mmu.arch().0.take_events();
    let rolled_over = std::rc::Rc::new(std::cell::Cell::new(false));
    let at_cue = rolled_over.clone();
    cue(
        |event| matches!(event, Event::Tlbi(Tlbi::Ipa { .. })),
        move || {
            let mut events = mmu.arch().0.take_events();
            events.retain(|event| matches!(event, Event::EnterVmid(_)));
            let [Event::EnterVmid(held)] = events[..] else { panic!("{events:?}") };
            let other = crate::support::reader(mmu, 1);
            let others: Vec<Guest<Staged>> = (0..258).map(|_| crate::support::guest(mmu)).collect();
            others.iter().for_each(|guest| drop(guest.load(&other).unwrap()));
            assert!(mmu.vmids().rollovers() > 0);
            let events = mmu.arch().0.take_events();
            let rollover =
                events.iter().position(|event| matches!(event, Event::Tlbi(Tlbi::Alle1 { .. }))).expect("a rollover");
            let vmid = |registers: &Stage2Registers| registers.vttbr >> 48;
            let loads = events[rollover..].iter();
            let loads = loads.filter_map(|event| if let Event::Load(to) = event { Some(vmid(to)) } else { None });
            assert!(loads.clone().count() > 0);
            assert!(loads.clone().all(|loaded| loaded != vmid(&held)));
            others.into_iter().for_each(|guest| guest.teardown(&other).map_err(|(_, why)| why).unwrap());
            at_cue.set(true);
        },
    );
    unmap(guest, &reader, 0, PAGE);
    assert!(rolled_over.get());
}

/// What the hook was told: the tree, the VMID and the ranges.
type Told = (TreeId, Option<u16>, Option<Vec<IpaRange>>);

/// A machine whose invalidation hook writes down what it is told.
fn hooked_machine(calls: &'static Mutex<Vec<Told>>) -> &'static Machine {
    let hook = |told: Invalidation<'_>| {
        let call = (told.tree, told.vmid.map(|vmid| vmid.raw()), told.ranges.map(<[IpaRange]>::to_vec));
        calls.lock().unwrap().push(call);
    };
    let mmu = Mmu::new(ModelArch::new(), ModelMemory::<Granule4K>::new(16), features(), Box::leak(cpus(1)));
    Box::leak(Box::new(mmu.with_invalidation_hook(Box::leak(Box::new(hook)))))
}

#[test]
fn the_embedders_hook_runs_once_a_flush_between_the_invalidation_and_the_frames() {
    static CALLS: Mutex<Vec<Told>> = Mutex::new(Vec::new());
    let mmu = hooked_machine(&CALLS);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, 0, 600 * PAGE);
    let mut called = None;
    guest
        .unmap_with(&reader, range(0, PAGE), |_| {
            called.get_or_insert_with(|| CALLS.lock().unwrap().clone());
        })
        .unwrap();
    let Some([(tree, vmid @ Some(1..), Some(ranges))]) = called.as_deref() else { panic!("one call: {called:?}") };
    assert_eq!((*tree, &ranges[..]), (guest.id(), &[range(0, PAGE)][..]));
    CALLS.lock().unwrap().clear();
    guest.protect(&reader, range(10 * PAGE, PAGE), Permissions::R).unwrap();
    let _ = guest.unmap(&reader, range(20 * PAGE, PAGE)).unwrap();
    let told = core::mem::take(&mut *CALLS.lock().unwrap());
    let expected = [10, 20].map(|page| (guest.id(), *vmid, Some(vec![range(page * PAGE, PAGE)])));
    assert_eq!(told, expected);
    let frozen = guest.freeze(&reader).unwrap();
    assert_eq!(*CALLS.lock().unwrap(), [(guest.id(), *vmid, None)], "all of the VMID");
    frozen.thaw(&reader).map_err(|(_, why)| why).unwrap();
    tear_down(guest, &reader);
}

#[test]
fn the_hook_is_told_of_a_guest_that_never_had_a_vmid() {
    // A device may have its entries by another name.
    static CALLS: Mutex<Vec<Told>> = Mutex::new(Vec::new());
    let mmu = hooked_machine(&CALLS);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    assert_eq!(*CALLS.lock().unwrap(), [(guest.id(), None, Some(vec![range(0, PAGE)]))]);
    tear_down(guest, &reader);
}

#[test]
fn the_hook_still_has_the_vmid_that_it_is_told() {
    // A rollover within the hook does not give it to another guest.
    let mmu: &'static OnceLock<&'static Machine> = Box::leak(Box::new(OnceLock::new()));
    let calls: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let hook = move |told: Invalidation<'_>| {
        let (Some(mmu), Some(vmid)) = (mmu.get(), told.vmid) else { return };
        if calls.fetch_add(1, Ordering::Relaxed) > 0 {
            return;
        }
        let other = crate::support::reader(mmu, 1);
        let others: Vec<Guest> = (0..258).map(|_| guest(mmu)).collect();
        mmu.arch().take_events();
        others.iter().for_each(|guest| give_vmid(guest, &other));
        assert!(mmu.vmids().rollovers() > 0);
        let events = mmu.arch().take_events();
        let rollover = events.iter().position(|event| matches!(event, Event::Tlbi(Tlbi::Alle1 { .. }))).unwrap();
        assert!(events[rollover..].iter().any(|event| matches!(event, Event::Load(_))));
        let same = |event: &Event| matches!(event, Event::Load(to) if to.vttbr >> 48 == u64::from(vmid.raw()));
        assert!(!events[rollover..].iter().any(same), "{vmid:?} is another guest's");
        core::mem::forget(others);
    };
    let memory = ModelMemory::<Granule4K>::new(600);
    let machine = Mmu::new(ModelArch::new(), memory, features().without_vmid16(), Box::leak(cpus(2)));
    let machine: &'static Machine = Box::leak(Box::new(machine.with_invalidation_hook(Box::leak(Box::new(hook)))));
    assert!(mmu.set(machine).is_ok());
    let guest = guest(machine);
    let reader = reader(machine, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[test]
fn freeze_takes_all_of_the_vmid_and_thaw_nothing() {
    let events = invalidations(features(), |guest, reader| {
        let frozen = guest.freeze(reader).unwrap();
        let events = guest.mmu().arch().take_events();
        assert!(matches!(
            events[..],
            [
                Event::Dsb(Dsb::Ishst),
                Event::EnterVmid(_),
                Event::Tlbi(VMALLS12E1),
                Event::Dsb(Dsb::Ish),
                Event::Isb,
                Event::LeaveVmid
            ]
        ));
        frozen.thaw(reader).map_err(|(_, why)| why).unwrap();
    });
    assert_eq!(events, [Event::Dsb(Dsb::Ishst)]);
}

#[test]
fn teardown_takes_all_of_the_vmid_before_a_table_is_free() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, 0, PAGE);
    mmu.arch().take_events();
    tear_down(guest, &reader);
    assert_eq!(
        barriers_and_tlbis(mmu.arch()),
        [Event::Dsb(Dsb::Ishst), Event::Tlbi(VMALLS12E1), Event::Dsb(Dsb::Ish), Event::Isb]
    );
    assert_eq!(CpuIndex(0), reader.cpu());
}

#[test]
fn what_each_flush_costs_is_counted() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    guest.map(&reader, range(0, 8 * PAGE), Pa::new(0), RW, Content::New).unwrap();
    let before = mmu.statistics();
    unmap(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, PAGE, 4 * PAGE);
    let frozen = guest.freeze(&reader).unwrap();
    frozen.thaw(&reader).map_err(|(_, why)| why).unwrap();
    let now = mmu.statistics();
    assert_eq!(now.tlbi_by_ipa - before.tlbi_by_ipa, 1);
    assert_eq!(now.tlbi_by_range - before.tlbi_by_range, 1);
    assert_eq!(now.tlbi_by_vmid - before.tlbi_by_vmid, 1);
    tear_down(guest, &reader);
}

#[test]
fn the_flush_of_a_guest_that_never_had_a_vmid_only_publishes() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, 8 * PAGE);
    mmu.arch().take_events();
    guest.protect(&reader, range(0, PAGE), Permissions::R).unwrap();
    assert_eq!(mmu.arch().take_events(), [Event::Dsb(Dsb::Ishst)]);
    unmap(&guest, &reader, 0, 8 * PAGE);
    assert_eq!(mmu.arch().take_events(), [Event::Dsb(Dsb::Ishst); 2], "no TLB has anything of it");
    tear_down(guest, &reader);
}

#[test]
fn to_allow_fetches_of_one_el_only_invalidates() {
    // A fetch that faults there is not told from one that may not pass: no stale entry may be the reason.
    for only in [Xn::El0Only, Xn::El1Only] {
        let events = invalidations(features(), |guest, reader| {
            guest.protect(reader, range(0, PAGE), Permissions { execute: only, ..Permissions::RW }).unwrap();
        });
        assert_eq!(only_tlbis(&events), [by_ipa(0, Some(Level::L3)), VMALLE1]);
        let again = invalidations(features(), |guest, reader| {
            for _ in 0..2 {
                guest.mmu().arch().take_events();
                guest.protect(reader, range(0, PAGE), Permissions { execute: only, ..Permissions::RW }).unwrap();
            }
        });
        assert_eq!(only_tlbis(&again), [], "it was so already");
    }
}
