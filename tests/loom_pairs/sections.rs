//! What a read section keeps from being used again until its CPU quiesces.

use loom::sync::atomic::Ordering;
use stage2::Reader;
use stage2::descriptor::Permissions;
use stage2::dirty::Initial;
use stage2::quiescence::Quiescing;

use crate::harvest::{Harvester, page_0_is_in_the_tlb};
use crate::scene::{Setting, explore, frame, map, page, pages};
use crate::{Guest, PAIR, Scene, stored, unlink_and_free};

/// What a frame holds once it is somebody else's.
const REUSED: u64 = 99;

/// Unmaps page 0 and uses its frame again as soon as that is allowed, if it is at one of a few looks.
fn unmap_and_reuse(scene: &'static Scene, guest: &Guest, reader: &mut Reader<'static>) {
    const LOOKS: usize = 2;
    let mut waiting = None;
    guest.unmap_with(reader, pages(0, 1), |removed| waiting = Some(removed.frame)).expect("unmap cannot fail");
    reader.quiescent();
    for _ in 0..LOOKS {
        match waiting.take().map(Quiescing::poll) {
            Some(Ok(frame)) => scene.mmu.arch().content(frame).store(REUSED, Ordering::Relaxed),
            Some(Err((still, _))) => waiting = Some(still),
            None => return,
        }
    }
}

#[test]
fn the_frame_of_a_view_is_not_used_again_before_the_end_of_the_section() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        stored(scene, guest, 0, 0, 1);
        let viewer = scene.on_cpu(1, move |reader| {
            for _ in 0..2 {
                if let Some(view) = guest.view(reader, page(0)).expect("the tree is sound") {
                    assert_eq!(scene.mmu.arch().content(view.pa()).load(Ordering::Relaxed), 1);
                }
                reader.quiescent();
            }
        });
        scene.alone(|reader| unmap_and_reuse(scene, guest, reader));
        viewer.join().expect("no panic");
    });
}

/// Cleaned, and then copied in the same section; or given back to the log, since it is gone.
#[test]
fn a_page_that_is_rearmed_is_copied_before_its_frame_is_used_again_or_stays_in_the_log() {
    explore(Setting { preemptions: 2, ..PAIR }, |scene: &'static Scene| {
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let user = scene.on_cpu(1, move |reader| unmap_and_reuse(scene, scene.guest(), reader));
        scene.alone(|reader| {
            harvester.harvest(reader);
            reader.quiescent();
        });
        user.join().expect("no panic");
        let mut dirty = [0];
        scene.alone(|reader| harvester.log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert!(harvester.replica == 1 || dirty == [1], "{}, {dirty:?}", harvester.replica);
        assert!(harvester.replica <= 1, "never what the next owner stores");
    });
}

/// The one page of tables there is goes from pages 0 and 1 to pages 2 and 3.
#[test]
fn a_scan_in_its_next_section_sees_no_table_at_the_place_it_was_freed_from() {
    explore(Setting { tables: 2, ..PAIR }, |scene: &'static Scene| {
        let guest = scene.guest();
        let mut log = scene.alone(|reader| guest.start_logging(reader, Initial::Clean)).expect("it is off");
        scene.empty_table_about_to_be_unlinked();
        let scanner = scene.on_cpu(1, move |reader| {
            for _ in 0..2 {
                let mut dirty = [0];
                log.scan(reader, pages(0, 4), &mut dirty).expect("no walk meets a freed table");
                assert!([0b1, 0b101].contains(&dirty[0]), "page 0 was written, and 2 perhaps: {dirty:?}");
                reader.quiescent();
            }
        });
        scene.alone(|reader| {
            unlink_and_free(guest, reader);
            let _ = map(guest, reader, 2, 2);
        });
        scanner.join().expect("no panic");
    });
}

#[test]
fn a_protect_never_reaches_a_table_that_was_recycled_at_another_place() {
    explore(Setting { tables: 2, ..PAIR }, |scene: &'static Scene| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let protector = scene.on_cpu(1, move |reader| {
            for _ in 0..2 {
                guest.protect(reader, pages(0, 2), Permissions::R).expect("no walk meets a freed table");
                reader.quiescent();
            }
        });
        let recycled = scene.alone(|reader| {
            unlink_and_free(guest, reader);
            map(guest, reader, 2, 2).is_ok()
        });
        protector.join().expect("no panic");
        let mapping = scene.alone(|reader| guest.query(reader, page(2))).expect("the tree is sound");
        assert_eq!(mapping.is_some(), recycled);
        assert!(mapping.is_none_or(|mapping| mapping.permissions.write && mapping.pa == frame(2)));
    });
}
