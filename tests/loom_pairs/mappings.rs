//! Faults, unmaps and protects of the same pages.

use loom::sync::atomic::Ordering;
use stage2::descriptor::Permissions;
use stage2::fault::Outcome;

use crate::backing::{Moving, OwnFrame, Revoked};
use crate::hardware::{Fault, guest_stores, syndrome};
use crate::scene::{explore, frame, map, mapped, page, pages};
use crate::{PAIR, Scene, store_by_fault, stored};

#[test]
fn of_two_faults_of_a_page_one_maps_its_frame_and_both_store_there() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        let backings = [OwnFrame::new(0), OwnFrame::new(1)];
        let [first, second] = backings.clone();
        let other = scene.on_cpu(1, move |reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            guest_stores(scene.mmu, &loaded, reader, &second, page(0), 2)
        });
        let here = scene.alone(|reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            guest_stores(scene.mmu, &loaded, reader, &first, page(0), 1)
        });
        let there = other.join().expect("no panic");
        assert!(here && there, "neither has to try for long");
        let mapped = scene.alone(|reader| mapped(guest, reader, 0)).expect("one of the two has mapped it");
        for (number, backing) in (0..).zip(&backings) {
            let used = mapped == frame(number);
            assert_eq!(backing.in_use(), u64::from(used), "the other's page went back");
            let content = scene.mmu.arch().content(frame(number)).load(Ordering::Relaxed);
            assert_eq!(content != 0, used, "no store is in a frame that went back");
        }
        assert_eq!(scene.mmu.memory().live(), 2, "a spare table went back too");
    });
}

#[test]
fn two_faults_under_one_missing_table_are_both_found() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        let other = scene.on_cpu(1, move |reader| store_by_fault(scene, guest, reader, 1, 2));
        let here = scene.alone(|reader| store_by_fault(scene, guest, reader, 0, 1));
        assert!(other.join().expect("no panic") && here, "neither has to try for long");
        scene.alone(|reader| {
            for n in 0..2 {
                assert_eq!(mapped(guest, reader, n), Some(frame(n)));
            }
        });
        assert_eq!(scene.mmu.memory().live(), 2, "the root and one table");
    });
}

#[test]
fn beside_an_unmap_a_fault_maps_the_frame_that_holds_the_content_or_none() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        let backing = Moving::new();
        scene.alone(|reader| map(guest, reader, 0, 0)).expect("nothing is mapped");
        let faulting = backing.clone();
        let user = scene.on_cpu(1, move |reader| {
            let loaded = guest.load(reader).expect("nothing is loaded");
            guest_stores(scene.mmu, &loaded, reader, &faulting, page(0), 1)
        });
        let hardware = scene.mmu.arch();
        scene.alone(|reader| {
            guest
                .unmap_with(reader, pages(0, 1), |removed| {
                    assert!(!hardware.reaches(*removed.frame.peek()));
                    backing.carry(hardware, &removed, 2);
                })
                .expect("unmap cannot fail");
        });
        let stored = user.join().expect("no panic");
        assert!(!hardware.reaches(frame(0)), "nor later");
        let mapped = scene.alone(|reader| mapped(guest, reader, 0));
        assert!(mapped.is_none_or(|frame| frame == backing.home()));
        assert_eq!(hardware.content(backing.home()).load(Ordering::Relaxed), u64::from(stored), "no store is lost");
    });
}

/// Nothing is mapped as yet; a fault is to map the page. The backing has another frame for it when the unmap begins.
fn a_frame_taken_back_before_an_unmap(scene: &'static Scene) {
    let guest = scene.guest();
    let backing = Moving::new();
    let faulting = backing.clone();
    let user = scene.on_cpu(1, move |reader| {
        let loaded = guest.load(reader).expect("nothing is loaded");
        loaded.resolve(reader, &faulting, syndrome(page(0), Fault::Translation)).expect("the tree is sound")
    });
    let removed = scene.alone(|reader| {
        backing.settle(2);
        guest.unmap_with(reader, pages(0, 1), |_| ()).expect("unmap cannot fail").leaves
    });
    let resumed = user.join().expect("no panic") == Outcome::Resumed;
    let mapped = scene.alone(|reader| mapped(guest, reader, 0));
    assert_eq!(resumed, mapped.is_some() || removed == 1, "a fault that is resolved has mapped");
    assert!(mapped.is_none_or(|frame| frame == backing.home()), "{mapped:?}");
}

#[test]
fn a_frame_taken_back_before_an_unmap_is_not_mapped_after_it() {
    explore(PAIR, |scene: &'static Scene| {
        // Its neighbour is mapped: there is a table to lock.
        scene.alone(|reader| map(scene.guest(), reader, 1, 1)).expect("nothing is mapped");
        a_frame_taken_back_before_an_unmap(scene);
    });
}

#[test]
fn a_frame_taken_back_before_an_unmap_is_not_mapped_after_it_where_there_was_no_table() {
    explore(PAIR, a_frame_taken_back_before_an_unmap);
}

fn a_permission_taken_back_before_a_protect(scene: &'static Scene) {
    let guest = scene.guest();
    let backing = Revoked::not_yet();
    let faulting = backing.clone();
    let user = scene.on_cpu(1, move |reader| {
        let loaded = guest.load(reader).expect("nothing is loaded");
        guest_stores(scene.mmu, &loaded, reader, &faulting, page(0), 1)
    });
    let hardware = scene.mmu.arch();
    let content = || hardware.content(frame(0)).load(Ordering::Relaxed);
    let then = scene.alone(|reader| {
        backing.revoke();
        guest.protect(reader, pages(0, 2), Permissions::R).expect("it is whole pages");
        assert!(!hardware.writes(frame(0)), "no TLB lets a store pass any more");
        content()
    });
    user.join().expect("no panic");
    assert!(!hardware.writes(frame(0)), "nor later");
    assert_eq!(then, content(), "what is protected does not change");
    scene.alone(|reader| {
        let mapping = guest.query(reader, page(0)).expect("the tree is sound");
        assert!(mapping.is_none_or(|mapping| !mapping.permissions.write));
    });
}

#[test]
fn a_permission_taken_back_before_a_protect_is_not_given_after_it() {
    explore(PAIR, |scene: &'static Scene| {
        scene.alone(|reader| map(scene.guest(), reader, 1, 1)).expect("nothing is mapped");
        a_permission_taken_back_before_a_protect(scene);
    });
}

#[test]
fn a_permission_taken_back_before_a_protect_is_not_given_after_it_where_there_was_no_table() {
    explore(PAIR, a_permission_taken_back_before_a_protect);
}

/// The page is clean and may be written: the fault that makes it dirty judges it before and under the lock.
#[test]
fn a_fault_that_makes_a_page_dirty_does_not_undo_a_protect() {
    explore(PAIR, |scene: &'static Scene| {
        scene.alone(|reader| {
            map(scene.guest(), reader, 0, 0).expect("nothing is mapped");
            scene.guest().write_protect(reader, pages(0, 1)).expect("it is whole pages");
        });
        a_permission_taken_back_before_a_protect(scene);
    });
}

#[test]
fn a_page_that_was_stored_to_is_dirty_when_it_goes_though_it_is_protected_meanwhile() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        stored(scene, guest, 0, 0, 1);
        let hardware = scene.mmu.arch();
        let protector = scene.on_cpu(1, move |reader| {
            guest.protect(reader, pages(0, 2), Permissions::R).expect("what is removed is skipped");
            assert!(!hardware.writes(frame(0)), "no TLB lets a store pass any more");
        });
        scene.alone(|reader| {
            let unmapped = guest.unmap_with(reader, pages(0, 2), |removed| {
                assert!(removed.dirty && !hardware.reaches(*removed.frame.peek()));
            });
            assert_eq!(unmapped.expect("unmap cannot fail").leaves, 1);
        });
        protector.join().expect("no panic");
        assert!(!hardware.reaches(frame(0)), "nor later");
        scene.alone(|reader| assert_eq!(mapped(guest, reader, 0), None, "a protect brings nothing back"));
    });
}

/// The one finds the markers of the other, who may not have flushed.
#[test]
fn after_each_of_two_unmaps_no_tlb_leads_to_a_frame_of_the_range() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        stored(scene, guest, 0, 0, 1);
        let unmap = move |reader: &mut stage2::Reader<'static>| {
            let hardware = scene.mmu.arch();
            let unmapped = guest.unmap_with(reader, pages(0, 2), |removed| {
                assert!(!hardware.reaches(*removed.frame.peek()));
            });
            assert!(!hardware.reaches(frame(0)), "whoever hands it back");
            unmapped.expect("unmap cannot fail").leaves
        };
        let other = scene.on_cpu(1, unmap);
        let removed = scene.alone(unmap);
        assert_eq!(removed + other.join().expect("no panic"), 1);
        let again = scene.alone(|reader| store_by_fault(scene, guest, reader, 0, 2));
        assert!(again, "the place is free");
    });
}
