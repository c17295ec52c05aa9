//! The dirty contract under loom, with a guest that stores through a TLB: a write is in this harvest or in the next.
//!
//! A replica is copied in two harvests, one beside the guest's store, one after it; then it must hold what the page holds. A
//! store that ends up in neither is one that the replica misses. Explored as in `loom_protocol.rs`, with the bounds stated
//! at each test.
#![cfg(loom)]

#[path = "support/loom_hardware.rs"]
mod hardware;
#[path = "support/loom.rs"]
mod scene;

use hardware::{Hardware, SameFrame, guest_stores};
use loom::sync::atomic::Ordering;
use scene::{Memory, READ_WRITE, Scene, Setting, explore, frame, page, pages};
use stage2::Reader;
use stage2::dirty::{Content, DirtyLog, Initial};

type Log = DirtyLog<'static, 'static, Hardware, Memory>;

/// A scene with page 0 mapped and logging on, and what the harvester has copied of the page.
struct Harvester {
    scene: &'static Scene<Hardware>,
    log: Log,
    replica: u64,
}

impl Harvester {
    fn new(scene: &'static Scene<Hardware>) -> Self {
        let guest = scene.guest();
        let log = scene.alone(|reader| {
            guest.map(reader, pages(0, 1), frame(0), READ_WRITE, Content::New).expect("nothing is mapped");
            guest.start_logging(reader, Initial::Clean).expect("it is off")
        });
        Self { scene, log, replica: 0 }
    }

    /// Scan, rearm, and only then copy.
    fn harvest(&mut self, reader: &Reader<'_>) {
        let mut dirty = [0];
        self.log.scan(reader, pages(0, 2), &mut dirty).expect("the tree is sound");
        let _rearmed = self.log.rearm(reader, pages(0, 2), &dirty).expect("the tree is sound");
        if dirty[0] & 1 == 0 {
            return;
        }
        let guest = self.scene.guest();
        match guest.view(reader, page(0)).expect("the tree is sound") {
            Some(view) => self.replica = self.scene.mmu.arch().content(view.pa()).load(Ordering::Relaxed),
            None => guest.mark_dirty(pages(0, 1)).expect("it is of the guest"),
        }
    }

    /// The last harvest, when nothing goes on any more: the replica is what the page holds.
    fn ends_with_an_equal_replica(mut self) {
        self.scene.alone(|reader| {
            self.harvest(reader);
            let mapping = self.scene.guest().query(reader, page(0)).expect("the tree is sound").expect("it is mapped");
            let content = self.scene.mmu.arch().content(mapping.pa).load(Ordering::Relaxed);
            assert_eq!(self.replica, content, "no store is in neither harvest");
        });
    }
}

/// The guest has stored to page 0, so that its TLB lets stores pass.
fn page_0_is_in_the_tlb(scene: &'static Scene<Hardware>) {
    scene.alone(|reader| {
        let loaded = scene.guest().load(reader).expect("nothing is loaded");
        assert!(guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(0), 1));
    });
}

#[test]
fn a_store_that_faults_is_in_this_harvest_or_in_the_next() {
    explore(Setting::new(2, 2), |scene: &'static Scene<Hardware>| {
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
    explore(Setting::new(2, 2), |scene: &'static Scene<Hardware>| {
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
