//! A guest under loom that keeps what it found in a TLB: faults, unmap, freeze, VMIDs.
//!
//! What must hold is a property of the hardware's state: which frames the TLB leads to when one is handed back, which tree a
//! VMID's entries are of. Explored as in `loom_protocol.rs`, with the bounds stated at each test.
#![cfg(loom)]

#[path = "support/loom_backing.rs"]
mod backing;
#[path = "support/loom_hardware.rs"]
mod hardware;
#[path = "support/loom.rs"]
mod scene;

use backing::{Moving, SameFrame};
use hardware::{Fault, Hardware, guest_stores, syndrome};
use loom::sync::atomic::Ordering;
use scene::{Scene, Setting, explore, frame, map, mapped, page, pages};
use stage2::arch::Arch;

#[test]
fn a_frame_is_handed_back_when_no_tlb_leads_to_it_any_more() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        scene.alone(|reader| map(guest, reader, 0, 0)).expect("nothing is mapped");
        let user = scene.on_cpu(1, move |reader| {
            let _loaded = guest.load(reader).expect("nothing is loaded");
            let _ = scene.mmu.arch().store(scene.mmu.memory(), page(0), 1);
        });
        scene.alone(|reader| {
            guest
                .unmap_with(reader, pages(0, 2), |removed| assert!(!scene.mmu.arch().reaches(*removed.frame.peek())))
                .expect("unmap cannot fail");
            assert!(!scene.mmu.arch().reaches(frame(0)), "nor later");
        });
        user.join().expect("no panic");
    });
}

/// What is mapped after one unmap has marked is marked by the other: the first finds the marker when it settles, and has
/// not flushed for it.
#[test]
fn of_two_unmaps_neither_hands_back_a_frame_that_a_tlb_leads_to() {
    explore(Setting::new(2, 3), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        let registers = scene.alone(|reader| {
            map(guest, reader, 0, 0).expect("nothing is mapped");
            let _loaded = guest.load(reader).expect("nothing is loaded");
            scene.mmu.arch().registers()
        });
        let unmap = move |reader: &mut stage2::Reader<'static>| {
            guest
                .unmap_with(reader, pages(0, 2), |removed| assert!(!scene.mmu.arch().reaches(*removed.frame.peek())))
                .expect("unmap cannot fail");
        };
        let other = scene.on_cpu(1, unmap);
        let user = scene.on_cpu(2, move |reader| {
            let _ = map(guest, reader, 1, 1);
            scene.mmu.arch().load(registers);
            let _ = scene.mmu.arch().store(scene.mmu.memory(), page(1), 1);
        });
        scene.alone(unmap);
        other.join().expect("no panic");
        user.join().expect("no panic");
    });
}

#[test]
fn once_a_freeze_has_settled_the_guest_changes_nothing_until_the_thaw() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        scene.alone(|reader| map(guest, reader, 0, 0)).expect("nothing is mapped");
        let user = scene.on_cpu(1, move |reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(0), 1);
            guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(1), 1);
        });
        let snapshot = |reader: &stage2::Reader<'_>| {
            let content = [0, 1].map(|n| scene.mmu.arch().content(frame(n)).load(Ordering::Relaxed));
            (content, mapped(guest, reader, 1))
        };
        let (frozen, settled) = scene.alone(|reader| {
            let frozen = guest.freeze(reader).expect("it is not frozen");
            reader.quiescent();
            let settled = frozen.is_settled().is_ok().then(|| snapshot(reader));
            (frozen, settled)
        });
        user.join().expect("no panic");
        scene.alone(|reader| {
            if let Some(settled) = settled {
                assert_eq!(settled, snapshot(reader));
            }
            assert!(frozen.thaw(reader).is_ok());
            let loaded = guest.load(reader).expect("nothing is loaded");
            assert!(guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(1), 2), "it goes on");
        });
    });
}

#[test]
fn a_fault_never_maps_into_a_table_that_is_no_longer_linked() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let user = scene.on_cpu(1, move |reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(0), 1)
        });
        scene.alone(|reader| {
            guest.reclaim(reader, 1).expect("the reader is of this machine");
            reader.quiescent();
            guest.reclaim(reader, 1).expect("the reader is of this machine");
        });
        let stored = user.join().expect("no panic");
        scene.alone(|reader| {
            if stored {
                assert_eq!(mapped(guest, reader, 0), Some(frame(0)), "what was mapped is found");
            }
        });
    });
}

/// The fault has found nothing and asked the backing; then the page is mapped by another, moved and unmapped, and the entry is as
/// empty as it was.
#[test]
fn a_fault_never_maps_a_frame_that_the_content_has_moved_away_from() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        let backing = Moving::new();
        let faulting = backing.clone();
        let user = scene.on_cpu(1, move |reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            loaded.resolve(reader, &faulting, syndrome(page(0), Fault::Translation)).expect("the tree is sound")
        });
        scene.alone(|reader| {
            // The one fault or the other is first.
            let _ = map(guest, reader, 0, 0);
            guest
                .unmap_with(reader, pages(0, 1), |removed| backing.carry(scene.mmu.arch(), &removed, 2))
                .expect("unmap cannot fail");
        });
        user.join().expect("no panic");
        scene.alone(|reader| {
            if let Some(mapped) = mapped(guest, reader, 0) {
                assert_eq!(mapped, backing.home());
            }
        });
    });
}

/// Three VMIDs and four guests. At each access the TLB is asked whether the VMID's entries are of the tree that is loaded; and
/// the CPU that invalidates may fetch entries of its own accord.
#[test]
fn through_a_rollover_no_two_guests_have_one_vmid_and_no_entry_survives_its_flush() {
    explore(Setting { guests: 4, tables: 7, ..Setting::new(2, 3) }, |scene: &'static Scene<Hardware>| {
        let [running, unmapped, idle, new] = [0, 1, 2, 3].map(|n| scene.guests[n]);
        let run = |reader: &mut stage2::Reader<'static>, guest: &'static scene::Guest<Hardware>| {
            let mut loaded = guest.load(reader).expect("three CPUs have VMIDs enough");
            for _ in 0..2 {
                let stored = loaded.run(reader, || scene.mmu.arch().store(scene.mmu.memory(), page(1), 1));
                let _ = stored.expect("likewise");
            }
        };
        scene.alone(|reader| {
            for (guest, to) in [(running, 0), (unmapped, 1), (new, 2)] {
                map(guest, reader, 1, to).expect("nothing is mapped");
            }
            map(unmapped, reader, 0, 3).expect("nothing is mapped");
            for guest in [running, unmapped, idle] {
                run(reader, guest);
            }
        });
        scene.mmu.arch().speculates(scene.mmu.memory());
        let first = scene.on_cpu(1, move |reader| run(reader, running));
        let second = scene.on_cpu(2, move |reader| run(reader, new));
        scene.alone(|reader| {
            let _frames = unmapped.unmap(reader, pages(0, 1)).expect("unmap cannot fail");
            assert!(!scene.mmu.arch().reaches(frame(3)));
        });
        first.join().expect("no panic");
        second.join().expect("no panic");
        assert!(scene.mmu.vmids().rollovers() > 0, "there were not VMIDs enough");
    });
}
