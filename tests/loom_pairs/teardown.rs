//! Teardown beside what goes on in another guest: they share table memory, VMIDs, the TLBs and the readers.
//!
//! The guest that goes has stored to its page 0, frame 1, and its entries are in the TLB.

use loom::sync::atomic::Ordering;
use stage2::cpu::CpuIndex;
use stage2::descriptor::Permissions;
use stage2::dirty::{Content, Initial};
use stage2::stage2::InUse;
use stage2::{Pa, Reader};

use crate::harvest::{Harvester, page_0_is_in_the_tlb};
use crate::scene::{READ_WRITE, Setting, explore, frame, map, mapped, page, pages};
use crate::{Guest, PAIR, Scene, store_by_fault, stored, unlink_and_free};

/// Room for two roots and a table for each guest.
const TWO_GUESTS: Setting = Setting { tables: 4, ..PAIR };

/// The guest that goes.
fn going(scene: &'static Scene) -> Box<Guest> {
    let guest = scene.another_guest();
    stored(scene, &guest, 0, 1, 7);
    guest
}

/// Tears it down, after which nothing of it is in a TLB.
fn tear_down(scene: &'static Scene, guest: Box<Guest>, reader: &Reader<'_>) {
    tear_down_from(scene, guest, frame(1), reader);
}

/// The same of a guest that has stored to `frame`. Not inlined: a guest is large, and the stacks of loom's threads are small.
#[inline(never)]
fn tear_down_from(scene: &'static Scene, guest: Box<Guest>, frame: Pa, reader: &Reader<'_>) {
    assert!(guest.teardown(reader).is_ok(), "nobody has it loaded");
    assert!(!scene.mmu.arch().reaches(frame), "no entry of it is left");
}

/// No store of another guest has reached its frame.
fn its_frame_is_as_it_was(scene: &'static Scene) {
    assert_eq!(scene.mmu.arch().content(frame(1)).load(Ordering::Relaxed), 7);
}

#[test]
fn a_fault_beside_the_teardown_of_another_guest_maps_into_its_own_tables() {
    explore(TWO_GUESTS, |scene: &'static Scene| {
        let (guest, other) = (scene.guest(), going(scene));
        let end = scene.on_cpu(1, move |reader| tear_down(scene, other, reader));
        assert!(scene.alone(|reader| store_by_fault(scene, guest, reader, 0, 5)));
        end.join().expect("no panic");
        scene.alone(|reader| assert_eq!(mapped(guest, reader, 0), Some(frame(0))));
        assert_eq!(scene.mmu.arch().content(frame(0)).load(Ordering::Relaxed), 5);
        its_frame_is_as_it_was(scene);
    });
}

/// There are three VMIDs, and three guests have them: a fourth has to get the one that is given back, or begin a new generation.
#[test]
fn the_vmid_of_a_guest_that_was_torn_down_brings_none_of_its_translations() {
    explore(Setting { tables: 8, guests: 3, ..PAIR }, |scene: &'static Scene| {
        let [first, second, newcomer] = [0, 1, 2].map(|n| scene.guests[n]);
        stored(scene, first, 1, 2, 1);
        let other = going(scene);
        scene.alone(|reader| {
            drop(second.load(reader).expect("nothing is loaded"));
            map(newcomer, reader, 0, 0).expect("nothing is mapped");
        });
        let end = scene.on_cpu(1, move |reader| tear_down(scene, other, reader));
        assert!(scene.alone(|reader| store_by_fault(scene, newcomer, reader, 0, 5)));
        end.join().expect("no panic");
        assert_eq!(scene.mmu.arch().content(frame(0)).load(Ordering::Relaxed), 5);
        its_frame_is_as_it_was(scene);
    });
}

#[test]
fn an_unmap_and_the_teardown_of_another_guest_each_invalidate_their_own() {
    explore(TWO_GUESTS, |scene: &'static Scene| {
        let (guest, other) = (scene.guest(), going(scene));
        stored(scene, guest, 0, 0, 1);
        let end = scene.on_cpu(1, move |reader| tear_down(scene, other, reader));
        scene.alone(|reader| {
            let removed = guest.unmap_with(reader, pages(0, 2), |removed| {
                assert!(!scene.mmu.arch().reaches(*removed.frame.peek()));
            });
            assert_eq!(removed.expect("unmap cannot fail").leaves, 1);
        });
        end.join().expect("no panic");
        its_frame_is_as_it_was(scene);
    });
}

#[test]
fn a_protect_and_the_teardown_of_another_guest_each_invalidate_their_own() {
    explore(TWO_GUESTS, |scene: &'static Scene| {
        let (guest, other) = (scene.guest(), going(scene));
        stored(scene, guest, 0, 0, 1);
        let end = scene.on_cpu(1, move |reader| tear_down(scene, other, reader));
        scene.alone(|reader| {
            guest.protect(reader, pages(0, 2), Permissions::R).expect("it is whole pages");
            assert!(!scene.mmu.arch().writes(frame(0)));
            assert!(!store_by_fault(scene, guest, reader, 0, 2), "it is read-only");
        });
        end.join().expect("no panic");
    });
}

/// What was torn down is linked into the guest that is scanned: with nothing of the life before.
#[test]
fn a_scan_sees_nothing_of_the_guest_whose_tables_it_meets_again() {
    explore(TWO_GUESTS, |scene: &'static Scene| {
        let (guest, other) = (scene.guest(), going(scene));
        let mut log = scene.alone(|reader| {
            map(&other, reader, 1, 3).expect("nothing is mapped");
            map(guest, reader, 0, 0).expect("nothing is mapped");
            guest.start_logging(reader, Initial::Clean).expect("it is off")
        });
        let end = scene.on_cpu(1, move |reader| {
            tear_down(scene, other, reader);
            guest.map(reader, pages(2, 1), frame(2), READ_WRITE, Content::New).expect("there are tables again");
        });
        let mut dirty = [0];
        scene.alone(|reader| log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert!([0, 0b100].contains(&dirty[0]), "page 2 came, perhaps: {dirty:?}");
        end.join().expect("no panic");
        dirty = [0];
        scene.alone(|reader| log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert_eq!(dirty, [0b100]);
    });
}

#[test]
fn a_rearm_and_the_teardown_of_another_guest_each_invalidate_their_own() {
    explore(TWO_GUESTS, |scene: &'static Scene| {
        let other = going(scene);
        let mut harvester = Harvester::new(scene);
        page_0_is_in_the_tlb(scene);
        let end = scene.on_cpu(1, move |reader| tear_down(scene, other, reader));
        scene.alone(|reader| {
            harvester.harvest(reader);
            assert!(!scene.mmu.arch().writes(frame(0)), "what was copied cannot change unseen");
        });
        end.join().expect("no panic");
        harvester.ends_with_an_equal_replica();
    });
}

/// Of the guest that goes a table waits for readers: of these there can be none any more.
#[test]
fn a_teardown_gives_back_what_waits_and_no_reader_of_another_guest_meets_it() {
    explore(TWO_GUESTS, |scene: &'static Scene| {
        let (guest, other) = (scene.guest(), going(scene));
        scene.alone(|reader| {
            map(guest, reader, 0, 0).expect("nothing is mapped");
            let _frames = other.unmap(reader, pages(0, 1)).expect("it is whole pages");
            other.reclaim(reader, 1).expect("the reader is of this machine");
            reader.quiescent();
            let progress = other.reclaim(reader, 1).expect("the reader is of this machine");
            assert_eq!((progress.unlinked, progress.waiting), (1, 1));
        });
        let looker = scene.on_cpu(1, move |reader| {
            for _ in 0..2 {
                assert_eq!(mapped(guest, reader, 0), Some(frame(0)));
                assert!(mapped(guest, reader, 2).is_none_or(|pa| pa == frame(2)));
                reader.quiescent();
            }
        });
        scene.alone(|reader| {
            tear_down(scene, other, reader);
            assert_eq!(scene.mmu.memory().live(), 2, "the other guest's");
            map(guest, reader, 2, 2).expect("there are tables again");
        });
        looker.join().expect("no panic");
    });
}

#[test]
fn a_reclaim_and_the_teardown_of_another_guest_give_back_each_table_once() {
    explore(TWO_GUESTS, |scene: &'static Scene| {
        let (guest, other) = (scene.guest(), going(scene));
        scene.empty_table_about_to_be_unlinked();
        let end = scene.on_cpu(1, move |reader| tear_down(scene, other, reader));
        scene.alone(|reader| unlink_and_free(guest, reader));
        end.join().expect("no panic");
        scene.alone(|reader| crate::scene::come_to_rest(guest, reader));
        assert_eq!(scene.mmu.memory().live(), 1, "the root alone is left");
    });
}

#[test]
fn two_guests_can_be_torn_down_at_once() {
    explore(Setting { tables: 5, ..PAIR }, |scene: &'static Scene| {
        let (first, second) = (going(scene), scene.another_guest());
        stored(scene, &second, 0, 2, 7);
        let end = scene.on_cpu(1, move |reader| tear_down(scene, first, reader));
        scene.alone(|reader| tear_down_from(scene, second, frame(2), reader));
        end.join().expect("no panic");
        assert_eq!(scene.mmu.memory().live(), 1, "the root of the guest that stays");
    });
}

/// Its `Loaded` was forgotten: no borrow says any more that the CPU has the tree.
#[test]
fn a_tree_that_a_cpu_has_loaded_is_not_torn_down_under_it() {
    explore(Setting { kept: 2, ..TWO_GUESTS }, |scene: &'static Scene| {
        let other = scene.another_guest();
        scene.alone(|reader| {
            map(&other, reader, 0, 1).expect("nothing is mapped");
            core::mem::forget(other.load(reader).expect("nothing is loaded"));
        });
        let registers = scene.mmu.arch().registers();
        let user = loom::thread::spawn(move || {
            stage2::arch::Arch::load(scene.mmu.arch(), registers);
            for value in [1, 2] {
                assert_eq!(scene.mmu.arch().store(scene.mmu.memory(), page(0), value), Ok(()), "it runs on");
            }
        });
        let refused = scene.alone(|reader| {
            other.teardown(reader).map_err(|(kept, refused)| {
                core::mem::forget(kept);
                refused
            })
        });
        assert_eq!(refused, Err(InUse::Loaded(CpuIndex(0))));
        user.join().expect("no panic");
    });
}
