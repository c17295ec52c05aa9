//! The protocol under loom: walks against the reclaimer, and the grace period between them.
//!
//! The library's own code, through its interface, on a tree of two levels with two entries a table. Each test explores every
//! interleaving of two or three CPUs with at most the stated number of involuntary switches (the first argument of
//! `Setting::new`), and every value that the memory model lets a load return.
//!
//! What each part of the protocol is needed for is in `docs/mutants.md`: the library without it fails in the test named there, by
//! an assertion of the test or, for the grace period, by loom's report of an access to what was freed.
//!
//! A table recycled at the same place with an equal descriptor does no harm even without the grace period: it covers the same
//! addresses of the same tree, and its metadata says so.
#![cfg(loom)]

#[path = "support/loom.rs"]
mod scene;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use scene::{Scene, Setting, come_to_rest, explore, frame, map, mapped, pages};
use stage2::Reader;
use stage2::dirty::Initial;
use stage2::model::ModelArch;
use stage2::quiescence::Quiescence;
use stage2::stage2::{MapCause, MapError};

type Guest = scene::Guest<ModelArch>;

/// Whether something was mapped. If not it is to be tried again: a table there is on its way out, or all pages are.
fn done(result: Result<(), MapError>) -> bool {
    match result {
        Ok(()) => true,
        Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// Unlinks what is ready, passes a quiescent state, and frees what it can.
fn unlink_and_free(guest: &Guest, reader: &mut Reader<'_>) {
    guest.reclaim(reader, 1).expect("the reader is of this machine");
    reader.quiescent();
    guest.reclaim(reader, 1).expect("the reader is of this machine");
}

#[test]
fn a_mapping_is_never_installed_in_a_table_that_is_no_longer_linked() {
    explore(Setting::new(3, 2), |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let mapper = scene.on_cpu(1, move |reader| map(guest, reader, 0, 7));
        scene.alone(|reader| unlink_and_free(guest, reader));
        let done = done(mapper.join().expect("no panic"));
        scene
            .alone(|reader| assert_eq!(mapped(guest, reader, 0), done.then_some(frame(7)), "what was mapped is found"));
    });
}

#[test]
fn two_mappings_into_a_table_that_is_being_unlinked_are_both_found() {
    explore(Setting::new(2, 3), |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let low = scene.on_cpu(1, move |reader| map(guest, reader, 0, 7));
        let high = scene.on_cpu(2, move |reader| map(guest, reader, 1, 8));
        scene.alone(|reader| guest.reclaim(reader, 1).expect("the reader is of this machine"));
        let [low, high] = [low, high].map(|mapper| done(mapper.join().expect("no panic")));
        scene.alone(|reader| {
            assert_eq!(mapped(guest, reader, 0), low.then_some(frame(7)));
            assert_eq!(mapped(guest, reader, 1), high.then_some(frame(8)));
        });
    });
}

#[test]
fn a_scan_never_looks_at_a_table_that_was_freed() {
    explore(Setting::new(3, 2), |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        let mut log = scene.alone(|reader| guest.start_logging(reader, Initial::Clean)).expect("it is not on");
        scene.empty_table_about_to_be_unlinked();
        let scanner = scene.on_cpu(1, move |reader| {
            let mut dirty = [0];
            log.scan(reader, pages(0, 4), &mut dirty).expect("no walk meets a freed table");
            dirty[0]
        });
        scene.alone(|reader| unlink_and_free(guest, reader));
        // A freed page reads as dirty.
        assert_eq!(scanner.join().expect("no panic"), 0b1, "page 0 was written, and no other");
    });
}

#[test]
fn a_query_never_looks_at_a_table_that_was_freed_and_recycled() {
    explore(Setting { tables: 2, ..Setting::new(3, 2) }, |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let looker = scene.on_cpu(1, move |reader| {
            assert_eq!(mapped(guest, reader, 0), None, "nothing is mapped there");
            reader.quiescent();
            assert_eq!(mapped(guest, reader, 1), None, "nor there");
        });
        scene.alone(|reader| {
            unlink_and_free(guest, reader);
            // Into the one page there is, at another place of the tree; or not, if it has not come back.
            let _ = map(guest, reader, 2, 7);
            let _ = map(guest, reader, 3, 7);
        });
        looker.join().expect("no panic");
    });
}

/// The table that the mapper has found is unlinked, freed, allocated again and linked at the very same place: an equal
/// descriptor, so that comparing it shows nothing.
#[test]
fn a_mapping_beside_a_table_recycled_at_the_same_place_is_found() {
    explore(Setting { tables: 2, ..Setting::new(3, 2) }, |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let mapper = scene.on_cpu(1, move |reader| map(guest, reader, 0, 7));
        let recycled = scene.alone(|reader| {
            unlink_and_free(guest, reader);
            map(guest, reader, 1, 8)
        });
        let first = mapper.join().expect("no panic");
        for (result, other) in [(first, recycled), (recycled, first)] {
            match result {
                Ok(()) => {}
                Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry => {}
                Err(error) => assert!(other.is_ok(), "{error:?}, though the page is on its way back"),
            }
        }
        scene.alone(|reader| {
            assert_eq!(mapped(guest, reader, 0), first.is_ok().then_some(frame(7)));
            assert_eq!(mapped(guest, reader, 1), recycled.is_ok().then_some(frame(8)));
        });
    });
}

#[test]
fn map_unmap_and_reclaim_agree_on_what_is_mapped() {
    explore(Setting::new(2, 3), |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let mapper = scene.on_cpu(1, move |reader| map(guest, reader, 0, 7));
        let unmapper = scene.on_cpu(2, move |reader| {
            let unmapped = guest.unmap(reader, pages(0, 2)).expect("unmap cannot fail");
            unmapped.peek().leaves
        });
        scene.alone(|reader| guest.reclaim(reader, 1).expect("the reader is of this machine"));
        let done = done(mapper.join().expect("no panic"));
        let removed = unmapper.join().expect("no panic") != 0;
        let left = (done && !removed).then_some(frame(7));
        scene.alone(|reader| assert_eq!(mapped(guest, reader, 0), left));
    });
}

#[test]
fn no_table_that_was_emptied_is_forgotten() {
    explore(Setting::new(3, 2), |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let user = scene.on_cpu(1, move |reader| {
            let done = done(map(guest, reader, 0, 7));
            let unmapped = guest.unmap(reader, pages(0, 1)).expect("unmap cannot fail");
            assert_eq!(unmapped.peek().leaves, u64::from(done));
        });
        scene.alone(|reader| unlink_and_free(guest, reader));
        user.join().expect("no panic");
        scene.alone(|reader| come_to_rest(guest, reader));
        assert_eq!(scene.mmu.memory().live(), 1, "the root alone is left");
    });
}

#[test]
fn two_unmaps_of_one_range_hand_back_each_frame_once() {
    explore(Setting::new(3, 2), |scene: &'static Scene<ModelArch>| {
        let guest = scene.guest();
        scene
            .alone(|reader| guest.map(reader, pages(0, 2), frame(7), scene::READ_WRITE, stage2::dirty::Content::New))
            .expect("nothing is mapped");
        let unmap = move |reader: &mut Reader<'static>| {
            let mut frames = Vec::new();
            guest.unmap_with(reader, pages(0, 2), |removed| frames.push(*removed.frame.peek())).expect("cannot fail");
            frames
        };
        let other = scene.on_cpu(1, unmap);
        let mut frames = scene.alone(unmap);
        frames.extend(other.join().expect("no panic"));
        frames.sort();
        assert_eq!(frames, [frame(7), frame(8)]);
    });
}

/// What readers find through a flag, as they find a table through its parent's entry. Loom knows when it is used and
/// freed with nothing to order the two.
struct Published {
    linked: AtomicBool,
    value: UnsafeCell<bool>,
}

// SAFETY: that its accesses are ordered is what is tested, and loom judges it.
unsafe impl Sync for Published {}

impl Published {
    fn new() -> Arc<Self> {
        Arc::new(Self { linked: AtomicBool::new(true), value: UnsafeCell::new(true) })
    }

    fn look(&self) {
        if self.linked.load(Ordering::Relaxed) {
            // SAFETY: loom reports it if it is written meanwhile.
            self.value.with(|alive| assert!(unsafe { *alive }, "what a reader finds has not been freed"));
        }
    }

    /// Unlinks it, and frees it if its grace period is over at one of a few looks.
    fn retire_and_free(&self, domain: &Quiescence<'_>) {
        const POLLS: usize = 2;
        self.linked.store(false, Ordering::Relaxed);
        let mut waiting = Some(domain.retire(()));
        for _ in 0..POLLS {
            match waiting.take().map(|waiting| waiting.poll()) {
                Some(Ok(())) => {
                    // SAFETY: loom reports it if it is read meanwhile.
                    self.value.with_mut(|alive| unsafe { *alive = false });
                    return;
                }
                Some(Err((still, _))) => waiting = Some(still),
                None => return,
            }
        }
    }
}

#[test]
fn a_grace_period_outlasts_the_sections_of_two_readers() {
    explore(Setting::new(3, 2), |scene: &'static Scene<ModelArch>| {
        let published = Published::new();
        let readers = [0, 1].map(|cpu| {
            let published = published.clone();
            scene.on_cpu(cpu, move |reader| {
                published.look();
                reader.quiescent();
                published.look();
            })
        });
        published.retire_and_free(scene.mmu.quiescence());
        for reader in readers {
            reader.join().expect("no panic");
        }
    });
}

#[test]
fn a_reader_that_comes_back_online_is_waited_for_or_sees_the_unlinking() {
    explore(Setting::new(3, 1), |scene: &'static Scene<ModelArch>| {
        let published = Published::new();
        let reader = {
            let published = published.clone();
            scene.on_cpu(0, move |reader| {
                reader.offline(|| ());
                published.look();
                reader.offline(|| ());
                published.look();
            })
        };
        published.retire_and_free(scene.mmu.quiescence());
        reader.join().expect("no panic");
    });
}
