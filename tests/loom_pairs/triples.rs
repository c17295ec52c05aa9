//! Three at once.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use stage2::Reader;
use stage2::dirty::{Content, Initial};
use stage2::stage2::Removed;

use crate::backing::{Moving, SameFrame};
use crate::hardware::guest_stores;
use crate::harvest::{Harvester, page_0_is_in_the_tlb};
use crate::scene::{READ_WRITE, Setting, explore, frame, mapped, page, pages};
use crate::{Scene, TRIPLE, store_by_fault};

#[test]
fn a_fault_an_unmap_and_a_reclaim_agree_on_what_is_mapped_and_in_the_tlb() {
    explore(TRIPLE, |scene: &'static Scene| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let user = scene.on_cpu(1, move |reader| store_by_fault(scene, guest, reader, 0, 1));
        let unmapper = scene.on_cpu(2, move |reader| {
            let removed = guest.unmap_with(reader, pages(0, 2), |removed| {
                assert!(!scene.mmu.arch().reaches(*removed.frame.peek()));
            });
            removed.expect("unmap cannot fail").leaves
        });
        scene.alone(|reader| guest.reclaim(reader, 1)).expect("the reader is of this machine");
        let stored = user.join().expect("no panic");
        let removed = unmapper.join().expect("no panic");
        let left = scene.alone(|reader| mapped(guest, reader, 0));
        assert!(left.is_none_or(|pa| pa == frame(0)));
        assert!(left.is_some() || !scene.mmu.arch().reaches(frame(0)), "what is not mapped is in no TLB");
        if stored {
            assert!(left.is_some() || removed == 1, "what was stored to is found, or was removed");
        }
    });
}

/// The page is made dirty by one CPU, and the guest stores on another, which finds the entry by its own walk.
#[test]
fn a_store_through_an_entry_that_another_cpu_has_made_dirty_is_in_the_scan_after_it() {
    explore(TRIPLE, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        let guest = scene.guest();
        let registers = scene.alone(|reader| {
            let _loaded = guest.load(reader).expect("nothing is loaded");
            scene.mmu.arch().registers()
        });
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let first = scene.on_cpu(1, move |reader| assert!(store_by_fault(scene, guest, reader, 0, 1)));
        let second = loom::thread::spawn(move || {
            stage2::arch::Arch::load(scene.mmu.arch(), registers);
            if scene.mmu.arch().store(scene.mmu.memory(), page(0), 2).is_ok() {
                told.store(true, Ordering::Release);
            }
        });
        scene.alone(|reader| {
            let before = over.load(Ordering::Acquire);
            let mut dirty = [0];
            harvester.log.scan(reader, pages(0, 2), &mut dirty).expect("the tree is sound");
            assert!(dirty == [1] || !before);
        });
        first.join().expect("no panic");
        second.join().expect("no panic");
    });
}

#[test]
fn a_store_by_fault_beside_a_write_protect_and_a_rearm_is_in_this_harvest_or_in_the_next() {
    explore(TRIPLE, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let user = scene.on_cpu(1, move |reader| store_by_fault(scene, scene.guest(), reader, 0, 2));
        let protector = scene.on_cpu(2, move |reader| scene.guest().write_protect(reader, pages(0, 2)));
        scene.alone(|reader| harvester.harvest(reader));
        user.join().expect("no panic");
        protector.join().expect("no panic").expect("it is whole pages");
        harvester.ends_with_an_equal_replica();
    });
}

#[test]
fn a_store_by_fault_to_a_page_that_is_moved_is_in_this_harvest_or_in_the_next() {
    explore(Setting { preemptions: 1, ..TRIPLE }, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let backing = Moving::new();
        let faulting = backing.clone();
        let user = scene.on_cpu(1, move |reader| {
            let loaded = scene.guest().load(reader).expect("nothing is loaded");
            guest_stores(scene.mmu, &loaded, reader, &faulting, page(0), 2)
        });
        let mover = scene.on_cpu(2, move |reader| {
            let carry = |removed: Removed<'_>| {
                assert!(!scene.mmu.arch().reaches(frame(0)));
                backing.carry(scene.mmu.arch(), &removed, 2);
            };
            scene.guest().unmap_with(reader, pages(0, 1), carry).expect("unmap cannot fail");
        });
        scene.alone(|reader| harvester.harvest(reader));
        user.join().expect("no panic");
        mover.join().expect("no panic");
        // Or the fault has.
        let _ = scene.alone(|reader| scene.guest().map(reader, pages(0, 1), frame(2), READ_WRITE, Content::Unchanged));
        harvester.ends_with_an_equal_replica();
    });
}

/// The table is unlinked while the fault is on its way into it and the scan in it.
#[test]
fn a_store_into_a_table_that_is_reclaimed_is_in_this_harvest_or_in_the_next() {
    explore(TRIPLE, |scene: &'static Scene| {
        let guest = scene.guest();
        let mut log = scene.alone(|reader| guest.start_logging(reader, Initial::Clean)).expect("it is off");
        scene.empty_table_about_to_be_unlinked();
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let user = scene.on_cpu(1, move |reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            let stored = guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(1), 1);
            told.store(stored, Ordering::Release);
            stored
        });
        let reclaimer = scene.on_cpu(2, move |reader| guest.reclaim(reader, 1).map(|progress| progress.unlinked));
        let mut scan = |reader: &Reader<'_>| {
            let mut dirty = [0];
            log.scan(reader, pages(0, 4), &mut dirty).expect("no walk meets a freed table");
            assert_eq!(dirty[0] & !0b10, 1, "page 0 is in the side log");
            dirty[0] & 0b10 != 0
        };
        scene.alone(|reader| {
            let before = over.load(Ordering::Acquire);
            assert!(scan(reader) || !before);
        });
        let stored = user.join().expect("no panic");
        reclaimer.join().expect("no panic").expect("the reader is of this machine");
        assert!(scene.alone(|reader| scan(reader)) || !stored);
    });
}
