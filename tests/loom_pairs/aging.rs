//! Pages that are made old beside accesses and beside others who make them old.

use loom::sync::atomic::Ordering;
use stage2::Reader;
use stage2::aging::Flush;
use stage2::dirty::{Initial, Tracking};

use crate::scene::{explore, frame, page, pages};
use crate::{Guest, PAIR, Scene, stored};

fn make_old(guest: &'static Guest, reader: &Reader<'_>, flush: Flush) -> u64 {
    let made_old = guest.make_old(reader, pages(0, 2), u32::MAX, flush).expect("the tree is sound");
    assert_eq!(made_old.next, None, "nobody takes the table out");
    made_old.young
}

fn is_young(guest: &'static Guest, reader: &Reader<'_>) -> bool {
    let mut young = [0];
    guest.scan_accessed(reader, pages(0, 2), &mut young).expect("the tree is sound");
    young[0] & 1 != 0
}

/// The guest has accessed page 0, another CPU makes it old as `other` says, and then this one: from then on an access is noted,
/// unless the other has taken it since.
fn an_access_is_noted(other: Flush) {
    explore(PAIR.updating(), move |scene: &'static Scene| {
        let guest = scene.guest();
        stored(scene, guest, 0, 0, 1);
        let first = scene.on_cpu(1, move |reader| make_old(guest, reader, other));
        let (second, is_young) = scene.alone(|reader| {
            let young = make_old(guest, reader, Flush::Now);
            let _loaded = guest.load(reader).expect("nothing is loaded");
            scene.mmu.arch().load_from(scene.mmu.memory(), page(0)).expect("the hardware sets the flag");
            (young, is_young(guest, reader))
        });
        let taken = first.join().expect("no panic") + second;
        assert!((1..=2).contains(&taken));
        assert!(is_young || taken == 2, "an access has passed unnoticed");
    });
}

#[test]
fn after_each_of_two_who_make_a_page_old_accesses_are_noted() {
    an_access_is_noted(Flush::Now);
}

#[test]
fn what_another_leaves_in_the_tlbs_is_flushed_by_who_asks_for_it() {
    an_access_is_noted(Flush::Later);
}

#[test]
fn a_store_that_the_hardware_notes_beside_a_page_being_made_old_is_not_lost() {
    explore(PAIR.updating(), |scene: &'static Scene| {
        let guest = scene.guest();
        stored(scene, guest, 0, 0, 1);
        let mut log = scene
            .alone(|reader| guest.start_logging_with(reader, Initial::Clean, Tracking::Hardware).expect("it is off"));
        let user = scene.on_cpu(1, move |reader| {
            let _loaded = guest.load(reader).expect("nothing is loaded");
            scene.mmu.arch().store(scene.mmu.memory(), page(0), 2).expect("the hardware notes it");
        });
        let young = scene.alone(|reader| make_old(guest, reader, Flush::Now));
        user.join().expect("no panic");
        assert_eq!(young, 1, "it was stored to before");
        let mut dirty = [0];
        scene.alone(|reader| log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert_eq!(dirty, [1]);
        assert_eq!(scene.mmu.arch().content(frame(0)).load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_flag_that_the_hardware_sets_beside_a_protect_is_not_lost() {
    explore(PAIR.updating(), |scene: &'static Scene| {
        let guest = scene.guest();
        stored(scene, guest, 0, 0, 1);
        scene.alone(|reader| make_old(guest, reader, Flush::Now));
        let user = scene.on_cpu(1, move |reader| {
            let _loaded = guest.load(reader).expect("nothing is loaded");
            scene.mmu.arch().load_from(scene.mmu.memory(), page(0)).expect("the hardware sets the flag");
        });
        scene.alone(|reader| guest.write_protect(reader, pages(0, 2)).expect("it is whole pages"));
        user.join().expect("no panic");
        assert!(scene.alone(|reader| is_young(guest, reader)));
    });
}
