//! The dirty contract under loom, with a guest that stores through a TLB: a write is in this harvest or in the next.
//!
//! A replica is copied in two harvests, one beside the guest's store, one after it; then it must hold what the page holds. A
//! store that ends up in neither is one that the replica misses. Explored as in `loom_protocol.rs`, with the bounds stated
//! at each test.
#![cfg(loom)]

#[path = "support/loom_backing.rs"]
mod backing;
#[path = "support/loom_hardware.rs"]
mod hardware;
#[path = "support/loom_harvest.rs"]
mod harvest;
#[path = "support/loom.rs"]
mod scene;

use backing::SameFrame;
use hardware::{Hardware, guest_stores};
use harvest::{Harvester, page_0_is_in_the_tlb};
use scene::{Scene, Setting, explore, page, pages};

#[test]
fn a_store_that_faults_is_in_this_harvest_or_in_the_next() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let mut harvester = Harvester::new(scene);
        let guest = scene.on_cpu(1, move |reader| {
            let loaded = scene.guest().load(reader).expect("nothing is loaded");
            guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(0), 2)
        });
        scene.alone(|reader| harvester.harvest(reader));
        guest.join().expect("no panic");
        harvester.ends_with_an_equal_replica();
    });
}

#[test]
fn a_store_through_the_tlb_is_in_this_harvest_or_in_the_next() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let guest = scene.on_cpu(1, move |reader| {
            let _loaded = scene.guest().load(reader).expect("nothing is loaded");
            // If it faults, it is not done.
            let _ = scene.mmu.arch().store(scene.mmu.memory(), page(0), 2);
        });
        scene.alone(|reader| harvester.harvest(reader));
        guest.join().expect("no panic");
        harvester.ends_with_an_equal_replica();
    });
}

#[test]
fn a_store_beside_a_write_protect_is_in_this_harvest_or_in_the_next() {
    explore(Setting::new(2, 3), |scene: &'static Scene<Hardware>| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let guest = scene.on_cpu(1, move |reader| {
            let _loaded = scene.guest().load(reader).expect("nothing is loaded");
            let _ = scene.mmu.arch().store(scene.mmu.memory(), page(0), 2);
        });
        let protector = scene.on_cpu(2, move |reader| scene.guest().write_protect(reader, pages(0, 2)));
        scene.alone(|reader| harvester.harvest(reader));
        guest.join().expect("no panic");
        protector.join().expect("no panic").expect("it is whole pages");
        harvester.ends_with_an_equal_replica();
    });
}

/// This one finds the page restricted by the other, who may not have flushed yet.
#[test]
fn after_a_write_protect_the_next_store_faults_whoever_else_protects() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let other = scene.on_cpu(1, move |reader| scene.guest().write_protect(reader, pages(0, 2)));
        scene.alone(|reader| {
            scene.guest().write_protect(reader, pages(0, 2)).expect("it is whole pages");
            let _loaded = scene.guest().load(reader).expect("nothing is loaded");
            assert!(scene.mmu.arch().store(scene.mmu.memory(), page(0), 2).is_err());
        });
        other.join().expect("no panic").expect("it is whole pages");
        harvester.ends_with_an_equal_replica();
    });
}

#[test]
fn a_dirty_page_that_is_unmapped_is_seen_in_its_entry_or_in_the_side_log() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let unmapper = scene.on_cpu(1, move |reader| {
            let unmapped = scene.guest().unmap(reader, pages(0, 2)).expect("unmap cannot fail");
            assert_eq!(unmapped.peek().dirty, 1);
            // And then its table.
            scene.guest().reclaim(reader, 1).expect("the reader is of this machine");
        });
        let mut dirty = [0];
        scene.alone(|reader| harvester.log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert_eq!(dirty, [0b1]);
        unmapper.join().expect("no panic");
    });
}
