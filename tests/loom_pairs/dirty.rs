//! The harvest beside faults, unmaps, protects and devices: no store is in neither harvest.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use stage2::Reader;
use stage2::dirty::Initial;
use stage2::model::ModelArch;

use crate::harvest::{Harvester, page_0_is_in_the_tlb};
use crate::scene::{self, explore, frame, map, page, pages};
use crate::{PAIR, Scene, store_by_fault};

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

/// Not copied, it is in the side log: by its remover, or by the harvester who has missed it.
#[test]
fn a_dirty_page_that_is_unmapped_beside_a_rearm_is_copied_now_or_dirty_in_the_next_scan() {
    explore(PAIR, |scene: &'static scene::Scene<ModelArch>| {
        let guest = scene.guest();
        let mut log = scene.alone(|reader| guest.start_logging(reader, Initial::Clean)).expect("it is off");
        scene.alone(|reader| map(guest, reader, 0, 0)).expect("nothing is mapped");
        let unmapper = scene.on_cpu(1, move |reader| {
            let unmapped = guest.unmap(reader, pages(0, 1)).expect("unmap cannot fail");
            unmapped.peek().dirty
        });
        let (cleaned, copied) = scene.alone(|reader| {
            let rearmed = log.rearm(reader, pages(0, 1), &[1]).expect("the tree is sound");
            let view = guest.view(reader, page(0)).expect("the tree is sound");
            if view.is_none() {
                guest.mark_dirty(pages(0, 1)).expect("it is of the guest");
            }
            (rearmed.cleaned, view.is_some())
        });
        assert_eq!(cleaned + unmapper.join().expect("no panic"), 1, "one of the two has found it dirty");
        let mut dirty = [0];
        scene.alone(|reader| log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert!(copied || dirty == [1]);
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
