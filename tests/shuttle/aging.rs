//! Guests whose pages are made old while they run, and harvested, moved, split and joined.

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use stage2::addr::Level;
use stage2::aging::Flush;
use stage2::dirty::Tracking;
use stage2::geometry::HardwareUpdate;

use crate::blocks::reshapes;
use crate::harvests::{harvested_with, moves};
use crate::scene::*;

const ALL: [HardwareUpdate; 3] = [HardwareUpdate::None, HardwareUpdate::AccessFlag, HardwareUpdate::AccessFlagAndDirty];

fn make_old(scene: &Scene<'_, '_>, reader: &stage2::Reader<'_>, flush: Flush) {
    let mut rest = Some(pages(0, PAGES));
    while let Some(left) = rest {
        let made_old = scene.guest.make_old(reader, left, 4, flush).unwrap();
        rest = made_old.next.and_then(|next| left.starting_at(next));
        if rest.is_some() {
            thread::yield_now();
        }
    }
}

/// Makes pages old, as CPU `cpu`.
fn ages(scene: &Scene<'_, '_>, cpu: u16) {
    let (_seat, mut reader) = scene.sit(cpu);
    for _ in 0..2 {
        make_old(scene, &reader, if thread_rng().gen_ratio(1, 2) { Flush::Now } else { Flush::Later });
        reader.quiescent();
    }
}

#[test]
fn what_guests_access_after_pages_were_made_old_is_young() {
    explore(|| {
        with_updated_guest(Level::LEAF, ALL[thread_rng().gen_range(0..3)], |scene| {
            scene.beside_the_guest(4, || {
                let (_seat, mut reader) = scene.sit(3);
                for _ in 0..2 {
                    make_old(scene, &reader, Flush::Later);
                    make_old(scene, &reader, Flush::Now);
                    let before = scene.book.accessed();
                    thread::yield_now();
                    let after = scene.book.accessed();
                    let mut young = [0];
                    scene.guest.scan_accessed(&reader, pages(0, PAGES), &mut young).unwrap();
                    for (page, (before, after)) in before.into_iter().zip(after).enumerate() {
                        assert!(
                            before == after || young[0] >> page & 1 == 1,
                            "an access to {page} has passed unnoticed"
                        );
                    }
                    reader.quiescent();
                }
            });
            scene.assert_contents();
        });
    });
}

#[test]
fn a_replica_holds_while_pages_are_made_old() {
    explore(|| {
        let (updates, tracking) = match thread_rng().gen_range(0..4) {
            0 => (HardwareUpdate::None, Tracking::WriteProtect),
            1 => (HardwareUpdate::AccessFlag, Tracking::WriteProtect),
            2 => (HardwareUpdate::AccessFlagAndDirty, Tracking::Hardware),
            _ => (HardwareUpdate::AccessFlagAndDirty, Tracking::Adaptive),
        };
        harvested_with(Level::LEAF, updates, tracking, |scene, cpu| match cpu {
            1 | 2 => scene.run_guest(cpu, 3),
            _ => ages(scene, cpu),
        });
    });
}

#[test]
fn guests_see_their_memory_while_pages_are_made_old_and_moved() {
    explore(|| {
        with_updated_guest(Level::LEAF, ALL[thread_rng().gen_range(0..3)], |scene| {
            thread::scope(|threads| {
                threads.spawn(|| scene.run_guest(1, 4));
                threads.spawn(|| ages(scene, 2));
                threads.spawn(|| moves(scene, 3));
            });
            scene.assert_contents();
        });
    });
}

#[test]
fn guests_see_their_memory_while_blocks_are_made_old_split_and_joined() {
    explore(|| {
        with_updated_guest(Level::L2, ALL[thread_rng().gen_range(0..3)], |scene| {
            thread::scope(|threads| {
                threads.spawn(|| scene.run_guest(1, 4));
                threads.spawn(|| ages(scene, 2));
                threads.spawn(|| reshapes(scene, 3));
            });
            scene.assert_contents();
        });
    });
}
