//! A harvester under loom, who keeps a replica of page 0 from the dirty log alone.

#![allow(dead_code, reason = "each test program uses a part")]

use loom::sync::atomic::Ordering;
use stage2::Reader;
use stage2::dirty::{Content, DirtyLog, Initial};

use crate::backing::SameFrame;
use crate::hardware::{Hardware, guest_stores};
use crate::scene::{Memory, READ_WRITE, Scene, frame, page, pages};

pub(crate) type Log = DirtyLog<'static, 'static, Hardware, Memory>;

/// A guest with page 0 mapped and logging on, and what the harvester has copied of the page.
pub(crate) struct Harvester {
    scene: &'static Scene<Hardware>,
    pub(crate) log: Log,
    pub(crate) replica: u64,
}

impl Harvester {
    pub(crate) fn new(scene: &'static Scene<Hardware>) -> Self {
        let guest = scene.guest();
        let log = scene.alone(|reader| {
            guest.map(reader, pages(0, 1), frame(0), READ_WRITE, Content::New).expect("nothing is mapped");
            guest.start_logging(reader, Initial::Clean).expect("it is off")
        });
        Self { scene, log, replica: 0 }
    }

    /// Scan, rearm, and only then copy.
    pub(crate) fn harvest(&mut self, reader: &Reader<'_>) {
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
    pub(crate) fn ends_with_an_equal_replica(mut self) {
        self.scene.alone(|reader| {
            self.harvest(reader);
            let mapping = self.scene.guest().query(reader, page(0)).expect("the tree is sound").expect("it is mapped");
            let content = self.scene.mmu.arch().content(mapping.pa).load(Ordering::Relaxed);
            assert_eq!(self.replica, content, "no store is in neither harvest");
        });
    }
}

/// The guest has stored to page 0, so that its TLB lets stores pass.
pub(crate) fn page_0_is_in_the_tlb(scene: &'static Scene<Hardware>) {
    scene.alone(|reader| {
        let loaded = scene.guest().load(reader).expect("nothing is loaded");
        assert!(guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(0), 1));
    });
}
