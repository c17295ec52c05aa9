//! Single lines of the protocol under loom, each in the smallest scene that needs it. Who looks is a thread of its own, and who
//! stores is not: loom tries a store before another thread's earlier load only if nothing else has come between.
//!
//! Explored as in `loom_protocol.rs`, with the bounds stated at each test.
#![cfg(loom)]

#[path = "support/loom_hardware.rs"]
mod hardware;
#[path = "support/loom.rs"]
mod scene;

use hardware::{Fault, Hardware, syndrome};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use scene::{Memory, READ_WRITE, Scene, Setting, come_to_rest, explore, frame, map, mapped, page, pages};
use stage2::dirty::{Content, DirtyLog, Initial};
use stage2::fault::{Backing, Page, Region, Unavailable};
use stage2::{Ipa, Reader};

/// The hypervisor stores to the frame of page 0, and says so.
fn store_and_mark(scene: &'static Scene<Hardware>, value: u64) {
    content_of_page_0(scene).store(value, Ordering::Relaxed);
    scene.guest().mark_dirty(pages(0, 1)).expect("it is of the guest");
}

fn content_of_page_0(scene: &'static Scene<Hardware>) -> &'static AtomicU64 {
    scene.mmu.arch().content(frame(0))
}

/// Scan, rearm and only then copy; what was copied before stays where nothing is dirty.
fn harvest(
    scene: &'static Scene<Hardware>,
    log: &mut DirtyLog<'static, 'static, Hardware, Memory>,
    reader: &Reader<'_>,
    replica: &mut u64,
) {
    let mut dirty = [0];
    log.scan(reader, pages(0, 2), &mut dirty).expect("the tree is sound");
    let _rearmed = log.rearm(reader, pages(0, 2), &dirty).expect("the tree is sound");
    if dirty[0] & 1 != 0 {
        *replica = content_of_page_0(scene).load(Ordering::Relaxed);
    }
}

/// The bit that the scan has found is set a second time before it is taken out.
#[test]
fn a_store_that_is_marked_is_in_the_copy_or_in_the_next_harvest() {
    explore(Setting::new(3, 1), |scene: &'static Scene<Hardware>| {
        let mut log = scene.alone(|reader| scene.guest().start_logging(reader, Initial::Clean)).expect("it is off");
        let mut replica = 0;
        let hypervisor = loom::thread::spawn(move || {
            store_and_mark(scene, 1);
            store_and_mark(scene, 2);
        });
        scene.alone(|reader| harvest(scene, &mut log, reader, &mut replica));
        hypervisor.join().expect("no panic");
        scene.alone(|reader| harvest(scene, &mut log, reader, &mut replica));
        assert_eq!(replica, 2, "the last store is in one of the two");
    });
}

#[test]
fn a_store_that_is_marked_while_logging_starts_is_noted_or_copied() {
    explore(Setting::new(3, 1), |scene: &'static Scene<Hardware>| {
        let hypervisor = loom::thread::spawn(move || store_and_mark(scene, 1));
        // Everything is dirty: the first harvest copies it.
        let mut replica = 0;
        let mut log = scene.alone(|reader| {
            let mut log = scene.guest().start_logging(reader, Initial::Dirty).expect("it is off");
            harvest(scene, &mut log, reader, &mut replica);
            log
        });
        hypervisor.join().expect("no panic");
        scene.alone(|reader| harvest(scene, &mut log, reader, &mut replica));
        assert_eq!(replica, 1);
    });
}

#[test]
fn who_follows_an_entry_finds_the_table_as_it_was_prepared() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        let looker = scene.on_cpu(1, move |reader| {
            // A page that was never used holds what no walk may meet.
            assert!(mapped(guest, reader, 0).is_none_or(|found| found == frame(0)));
            assert_eq!(mapped(guest, reader, 1), None);
        });
        scene.alone(|reader| map(guest, reader, 0, 0)).expect("nothing is mapped");
        looker.join().expect("no panic");
    });
}

#[test]
fn of_two_tables_that_are_emptied_at_once_both_are_hinted() {
    explore(Setting::new(2, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        scene.alone(|reader| [0, 2].map(|n| map(guest, reader, n, n).expect("nothing is mapped")));
        let unmap = move |reader: &mut Reader<'static>, first| {
            let _frames = guest.unmap(reader, pages(first, 2)).expect("unmap cannot fail");
        };
        let other = scene.on_cpu(1, move |reader| unmap(reader, 0));
        scene.alone(|reader| unmap(reader, 2));
        other.join().expect("no panic");
        scene.alone(|reader| come_to_rest(guest, reader));
        assert_eq!(scene.mmu.memory().live(), 1, "the root alone is left");
    });
}

#[test]
fn a_table_that_is_hinted_while_hints_are_taken_is_not_forgotten() {
    explore(Setting::new(2, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        scene.alone(|reader| {
            for n in [0, 2] {
                map(guest, reader, n, n).expect("nothing is mapped");
            }
            let _frames = guest.unmap(reader, pages(0, 2)).expect("unmap cannot fail");
        });
        let unmapper = scene.on_cpu(1, move |reader| {
            let _frames = guest.unmap(reader, pages(2, 2)).expect("unmap cannot fail");
        });
        scene.alone(|reader| guest.reclaim(reader, 2).expect("the reader is of this machine"));
        unmapper.join().expect("no panic");
        scene.alone(|reader| come_to_rest(guest, reader));
        assert_eq!(scene.mmu.memory().live(), 1, "the root alone is left");
    });
}

/// A backing that has frame 0 for page 0 until it is given up.
#[derive(Clone)]
struct Home(Arc<AtomicU64>);

impl Backing for Home {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(READ_WRITE)
    }

    fn page(&self, _ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: frame(self.0.load(Ordering::Acquire)), content: Content::Unchanged })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

#[test]
fn a_fault_never_maps_what_was_given_up_before_an_unmap_that_found_no_table() {
    explore(Setting::new(3, 2), |scene: &'static Scene<Hardware>| {
        let guest = scene.guest();
        let home = Home(Arc::new(AtomicU64::new(0)));
        let faulting = home.clone();
        let user = scene.on_cpu(1, move |reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            loaded.resolve(reader, &faulting, syndrome(page(0), Fault::Translation)).expect("the tree is sound")
        });
        scene.alone(|reader| {
            home.0.store(1, Ordering::Release);
            let _frames = guest.unmap(reader, pages(0, 1)).expect("unmap cannot fail");
        });
        user.join().expect("no panic");
        scene.alone(|reader| assert_ne!(mapped(guest, reader, 0), Some(frame(0)), "it was given up"));
    });
}

/// Three VMIDs and four guests. The CPU that invalidates may fetch entries of its own accord, under the VMID that it holds.
#[test]
fn a_vmid_that_is_being_invalidated_is_not_given_to_another_guest() {
    explore(Setting { guests: 4, tables: 6, ..Setting::new(3, 2) }, |scene: &'static Scene<Hardware>| {
        let [unmapped, new, first, second] = [0, 1, 2, 3].map(|n| scene.guests[n]);
        scene.alone(|reader| {
            for guest in [unmapped, new] {
                map(guest, reader, 1, 1).expect("nothing is mapped");
            }
            for guest in [unmapped, first, second] {
                drop(guest.load(reader).expect("nothing is loaded"));
            }
        });
        scene.mmu.arch().speculates(scene.mmu.memory());
        let runner = scene.on_cpu(1, move |reader| {
            let _loaded = new.load(reader).expect("two CPUs have VMIDs enough");
            let _ = scene.mmu.arch().store(scene.mmu.memory(), page(1), 1);
        });
        scene.alone(|reader| {
            let _frames = unmapped.unmap(reader, pages(1, 1)).expect("unmap cannot fail");
        });
        runner.join().expect("no panic");
    });
}
