//! Blocks that come and go under guests that run.

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use stage2::addr::Level;

use crate::harvests::{harvested, moves};
use crate::scene::*;

/// Splits and joins, as CPU `cpu`.
pub(crate) fn reshapes(scene: &Scene<'_, '_>, cpu: u16) {
    let (_seat, mut reader) = scene.sit(cpu);
    for _ in 0..3 {
        // What is being changed by others is left to them.
        let _ = match thread_rng().gen_range(0..3) {
            0 => scene.guest.split(&reader, any_pages()).map(drop),
            _ => scene.guest.collapse(&reader, pages(0, PAGES)).map(drop),
        };
        reader.quiescent();
        scene.guest.reclaim(&reader, 4).unwrap();
    }
}

#[test]
fn guests_see_their_memory_while_blocks_are_split_and_joined() {
    explore(|| {
        with_guest_of(Level::L2, |scene| {
            scene.beside_the_guest(4, || reshapes(scene, 3));
            scene.assert_contents();
        });
    });
}

#[test]
fn two_who_split_and_join_at_once_agree() {
    explore(|| {
        with_guest_of(Level::L2, |scene| {
            thread::scope(|threads| {
                threads.spawn(|| scene.run_guest(1, 4));
                for cpu in 2..4 {
                    threads.spawn(move || reshapes(scene, cpu));
                }
            });
            scene.assert_contents();
        });
    });
}

#[test]
fn pages_are_moved_out_of_blocks_that_are_split_and_joined() {
    explore(|| {
        with_guest_of(Level::L2, |scene| {
            thread::scope(|threads| {
                threads.spawn(|| scene.run_guest(1, 4));
                threads.spawn(|| reshapes(scene, 2));
                threads.spawn(|| moves(scene, 3));
            });
            scene.assert_contents();
        });
    });
}

#[test]
fn a_replica_holds_over_blocks() {
    explore(|| {
        harvested(Level::L2, |scene, cpu| match cpu {
            1 => scene.run_guest(cpu, 4),
            2 => reshapes(scene, cpu),
            _ => moves(scene, cpu),
        });
    });
}

#[test]
fn a_guest_is_frozen_while_its_blocks_are_split_and_joined() {
    explore(|| {
        with_guest_of(Level::L2, |scene| {
            thread::scope(|threads| {
                threads.spawn(|| scene.run_guest(1, 4));
                threads.spawn(|| reshapes(scene, 2));
                threads.spawn(|| scene.freeze_and_thaw(3, 1));
            });
            scene.assert_contents();
        });
    });
}
