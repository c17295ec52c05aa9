//! What a read section keeps from being used again until its CPU quiesces.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use stage2::Reader;
use stage2::descriptor::Permissions;
use stage2::dirty::Initial;
use stage2::model::ModelArch;
use stage2::quiescence::Quiescing;

use crate::scene::{self, Setting, explore, frame, map, page, pages};
use crate::{PAIR, unlink_and_free};

/// What a frame holds once it is somebody else's.
const REUSED: u64 = 99;

type Scene = scene::Scene<ModelArch>;

/// A frame's content.
type Content = Arc<AtomicU64>;

/// Unmaps page 0 and uses its frame again as soon as that is allowed, if it is at one of some `looks`.
fn unmap_and_reuse(scene: &Scene, content: &Content, reader: &mut Reader<'static>, looks: usize) {
    let mut waiting = None;
    scene.guest().unmap_with(reader, pages(0, 1), |removed| waiting = Some(removed.frame)).expect("unmap cannot fail");
    reader.quiescent();
    for _ in 0..looks {
        match waiting.take().map(Quiescing::poll) {
            Some(Ok(_)) => content.store(REUSED, Ordering::Relaxed),
            Some(Err((still, _))) => waiting = Some(still),
            None => return,
        }
    }
}

#[test]
fn the_frame_of_a_view_is_not_used_again_before_the_end_of_the_section() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        let content = Content::default();
        scene.alone(|reader| map(guest, reader, 0, 0)).expect("nothing is mapped");
        let viewed = content.clone();
        let viewer = scene.on_cpu(1, move |reader| {
            for _ in 0..2 {
                if guest.view(reader, page(0)).expect("the tree is sound").is_some() {
                    assert_eq!(viewed.load(Ordering::Relaxed), 0);
                }
                reader.quiescent();
            }
        });
        scene.alone(|reader| unmap_and_reuse(scene, &content, reader, 2));
        viewer.join().expect("no panic");
    });
}

/// The rearm and the view are of one section.
#[test]
fn a_page_that_is_rearmed_is_copied_before_its_frame_is_used_again() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        let content = Content::default();
        let mut log = scene.alone(|reader| guest.start_logging(reader, Initial::Clean)).expect("it is off");
        scene.alone(|reader| map(guest, reader, 0, 0)).expect("nothing is mapped");
        let copied = content.clone();
        let harvester = scene.on_cpu(1, move |reader| {
            let _rearmed = log.rearm(reader, pages(0, 1), &[1]).expect("the tree is sound");
            if guest.view(reader, page(0)).expect("the tree is sound").is_some() {
                assert_eq!(copied.load(Ordering::Relaxed), 0);
            }
        });
        scene.alone(|reader| unmap_and_reuse(scene, &content, reader, 1));
        harvester.join().expect("no panic");
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
