//! Reclaim beside what empties, fills, protects and cleans the tables it takes.

use stage2::Reader;
use stage2::descriptor::Permissions;
use stage2::dirty::Initial;
use stage2::model::ModelArch;

use crate::scene::{self, come_to_rest, explore, frame, map, mapped, page, pages};
use crate::{PAIR, Scene, stored, unlink_and_free};

#[test]
fn all_tables_that_one_unmap_empties_come_back_though_the_reclaimer_is_at_work() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        for n in [0, 2] {
            stored(scene, guest, n, n, 1);
        }
        let unmapper = scene.on_cpu(1, move |reader| {
            let removed = guest.unmap_with(reader, pages(0, 4), |removed| {
                assert!(!scene.mmu.arch().reaches(*removed.frame.peek()));
            });
            assert_eq!(removed.expect("unmap cannot fail").leaves, 2);
        });
        scene.alone(|reader| {
            unlink_and_free(guest, reader);
            guest.reclaim(reader, 2).expect("the reader is of this machine");
        });
        unmapper.join().expect("no panic");
        scene.alone(|reader| come_to_rest(guest, reader));
        assert_eq!(scene.mmu.memory().live(), 1, "the root alone is left");
    });
}

#[test]
fn a_protect_restricts_what_stays_and_nothing_in_the_table_that_goes() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        stored(scene, guest, 2, 2, 1);
        let protector = scene.on_cpu(1, move |reader| {
            guest.protect(reader, pages(0, 4), Permissions::R).expect("it is whole pages");
            assert!(!scene.mmu.arch().writes(frame(2)), "no TLB lets a store pass any more");
        });
        scene.alone(|reader| unlink_and_free(guest, reader));
        protector.join().expect("no panic");
        scene.alone(|reader| {
            let mapping = guest.query(reader, page(2)).expect("the tree is sound").expect("it stays");
            assert!(!mapping.permissions.write);
            assert_eq!(mapped(guest, reader, 0), None);
            come_to_rest(guest, reader);
        });
        assert_eq!(scene.mmu.memory().live(), 2, "the root and the table in use");
    });
}

/// Its empty table is on its way out; the page comes into that one or into the next at the same place.
#[test]
fn a_page_that_comes_where_a_table_goes_is_cleaned_by_a_rearm_or_found_by_the_next_scan() {
    explore(PAIR, |scene: &'static scene::Scene<ModelArch>| {
        let guest = scene.guest();
        let mut log = scene.alone(|reader| guest.start_logging(reader, Initial::Clean)).expect("it is off");
        scene.empty_table_about_to_be_unlinked();
        let reclaimer = scene.on_cpu(1, move |reader| {
            guest.reclaim(reader, 1).expect("the reader is of this machine");
            map(guest, reader, 1, 1).expect("the flush is over, and there is a table");
        });
        let rearmed = scene.alone(|reader| log.rearm(reader, pages(0, 2), &[0b11])).expect("the tree is sound");
        reclaimer.join().expect("no panic");
        let mut dirty = [0];
        scene.alone(|reader| log.scan(reader, pages(0, 4), &mut dirty)).expect("the tree is sound");
        assert_eq!(dirty[0], if rearmed.cleaned == 0 { 0b10 } else { 0 });
    });
}

#[test]
fn of_two_reclaims_one_takes_the_table_and_one_gives_it_back() {
    explore(PAIR, |scene: &'static Scene| {
        let guest = scene.guest();
        scene.empty_table_about_to_be_unlinked();
        let reclaim = move |reader: &mut Reader<'static>| {
            let mut sum = [0, 0];
            for _ in 0..2 {
                let progress = guest.reclaim(reader, 1).expect("the reader is of this machine");
                sum = [sum[0] + progress.unlinked, sum[1] + progress.freed];
                reader.quiescent();
            }
            sum
        };
        let other = scene.on_cpu(1, reclaim);
        let here = scene.alone(reclaim);
        let there = other.join().expect("no panic");
        assert_eq!(here[0] + there[0], 1, "the table was ready");
        assert!(here[1] + there[1] <= 1);
        scene.alone(|reader| come_to_rest(guest, reader));
        assert_eq!(scene.mmu.memory().live(), 1, "the root alone is left");
    });
}
