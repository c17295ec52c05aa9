//! The harvest beside faults, unmaps, protects and devices: no store is in neither harvest.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use stage2::Reader;

use crate::backing::Moving;
use crate::harvest::{Harvester, page_0_is_in_the_tlb};
use crate::scene::{READ_WRITE, Setting, explore, frame, page, pages};
use crate::{PAIR, Scene, store_by_fault};
use stage2::dirty::Content;

#[test]
fn a_store_that_was_over_before_a_scan_is_in_it_and_any_other_in_the_next() {
    explore(PAIR, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let user = scene.on_cpu(1, move |reader| {
            assert!(store_by_fault(scene, scene.guest(), reader, 0, 1));
            told.store(true, Ordering::Release);
        });
        let mut scan = |reader: &Reader<'_>| {
            let mut dirty = [0];
            harvester.log.scan(reader, pages(0, 4), &mut dirty).expect("the tree is sound");
            assert_eq!(dirty[0] & !1, 0, "no other page is dirty");
            dirty[0] == 1
        };
        scene.alone(|reader| {
            let before = over.load(Ordering::Acquire);
            assert!(scan(reader) || !before);
        });
        user.join().expect("no panic");
        assert!(scene.alone(|reader| scan(reader)), "a scan takes nothing away");
    });
}

/// What is copied before the page is removed is in the replica; what is not, the side log brings to the next harvest.
#[test]
fn a_page_that_is_moved_beside_a_harvest_is_copied_from_where_it_was_or_where_it_is() {
    explore(Setting { preemptions: 2, ..PAIR }, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let mover = scene.on_cpu(1, move |reader| {
            let (guest, backing) = (scene.guest(), Moving::new());
            let removed = guest.unmap_with(reader, pages(0, 1), |removed| backing.carry(scene.mmu.arch(), &removed, 2));
            assert_eq!(removed.expect("unmap cannot fail").leaves, 1);
            guest.map(reader, pages(0, 1), frame(2), READ_WRITE, Content::Unchanged).expect("the place is free");
        });
        scene.alone(|reader| harvester.harvest(reader));
        mover.join().expect("no panic");
        harvester.ends_with_an_equal_replica();
    });
}

#[test]
fn a_page_that_loses_its_write_permission_is_dirty_to_every_scan() {
    explore(PAIR, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let protector = scene.on_cpu(1, move |reader| {
            scene.guest().write_protect(reader, pages(0, 2)).expect("it is whole pages");
            assert!(!scene.mmu.arch().writes(frame(0)), "no TLB lets a store pass any more");
        });
        let mut dirty = [0];
        scene.alone(|reader| harvester.log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert_eq!(dirty, [0b1]);
        protector.join().expect("no panic");
    });
}

/// The rearm finds the page restricted by the other, who may not have flushed yet.
#[test]
fn after_a_rearm_the_next_store_faults_though_another_has_protected_the_page() {
    explore(PAIR, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let protector = scene.on_cpu(1, move |reader| scene.guest().write_protect(reader, pages(0, 2)));
        scene.alone(|reader| {
            harvester.harvest(reader);
            assert!(!scene.mmu.arch().writes(frame(0)), "what was copied cannot change unseen");
        });
        protector.join().expect("no panic").expect("it is whole pages");
        harvester.ends_with_an_equal_replica();
    });
}

/// Of the device nothing is in the tree: page 0 is clean there.
#[test]
fn what_a_device_has_stored_and_marked_twice_is_in_this_harvest_or_in_the_next() {
    explore(PAIR, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        let device = scene.on_cpu(1, move |_| {
            for value in [1, 2] {
                scene.mmu.arch().content(frame(0)).store(value, Ordering::Relaxed);
                scene.guest().mark_dirty(pages(0, 1)).expect("it is of the guest");
            }
        });
        scene.alone(|reader| harvester.harvest(reader));
        device.join().expect("no panic");
        harvester.ends_with_an_equal_replica();
    });
}

/// After the harvest the guest's TLB may have the clean page, and its next store must come through all the same.
#[test]
fn a_store_beside_a_rearm_passes_in_the_end() {
    explore(PAIR, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let user = scene.on_cpu(1, move |reader| {
            for value in [2, 3] {
                assert!(store_by_fault(scene, scene.guest(), reader, 0, value));
            }
        });
        scene.alone(|reader| harvester.harvest(reader));
        user.join().expect("no panic");
        let content = scene.mmu.arch().content(frame(0)).load(Ordering::Relaxed);
        assert_eq!(content, 3);
        assert!(scene.alone(|reader| scene.guest().query(reader, page(0))).is_ok_and(|mapping| mapping.is_some()));
        harvester.ends_with_an_equal_replica();
    });
}
