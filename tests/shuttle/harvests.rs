//! Guests that store while their pages are harvested and moved and their tables freed.

use std::cell::RefCell;

use shuttle::thread;
use stage2::addr::Level;
use stage2::dirty::{Initial, Tracking};
use stage2::geometry::HardwareUpdate;

use crate::scene::*;

/// A harvester, on CPU 0, next to what the others do; at the end the replica is what the guest has.
pub(crate) fn harvested(largest: Level, others: impl Fn(&Scene<'_, '_>, u16) + Send + Sync) {
    harvested_with(largest, HardwareUpdate::None, Tracking::WriteProtect, others);
}

/// The same, where the hardware updates leaves, and stores are tracked like this.
pub(crate) fn harvested_with(
    largest: Level,
    updates: HardwareUpdate,
    tracking: Tracking,
    others: impl Fn(&Scene<'_, '_>, u16) + Send + Sync,
) {
    with_updated_guest(largest, updates, |scene| {
        let mut replica = [0; PAGES as usize];
        let (_seat, mut reader) = scene.sit(0);
        let mut log = scene.guest.start_logging_with(&reader, Initial::Clean, tracking).unwrap();
        thread::scope(|threads| {
            let others = &others;
            for cpu in 1..CPUS as u16 {
                threads.spawn(move || others(scene, cpu));
            }
            for _ in 0..2 {
                scene.harvest(&mut log, &reader, &mut replica);
                reader.quiescent();
            }
        });
        scene.last_harvest(&mut log, &mut reader, &mut replica);
        scene.assert_contents();
        for page in 0..PAGES {
            assert_eq!(replica[page as usize], scene.book.last(page), "page {page} of the replica");
        }
    });
}

pub(crate) fn moves(scene: &Scene<'_, '_>, cpu: u16) {
    let (_seat, mut reader) = scene.sit(cpu);
    let moved = RefCell::default();
    for _ in 0..2 {
        scene.move_pages(&reader, &moved);
        reader.quiescent();
        scene.guest.reclaim(&reader, 4).unwrap();
    }
}

#[test]
fn a_replica_kept_from_the_log_is_what_two_guests_have_stored() {
    explore(|| {
        harvested(Level::LEAF, |scene, cpu| match cpu {
            1 | 2 => scene.run_guest(cpu, 3),
            _ => {}
        });
    });
}

#[test]
fn a_replica_holds_while_pages_are_moved_and_tables_freed() {
    explore(|| {
        harvested(Level::LEAF, |scene, cpu| match cpu {
            1 | 2 => scene.run_guest(cpu, 3),
            _ => moves(scene, cpu),
        });
    });
}

#[test]
fn two_movers_of_the_same_pages_move_each_once() {
    explore(|| {
        harvested(Level::LEAF, |scene, cpu| match cpu {
            1 => scene.run_guest(cpu, 4),
            _ => moves(scene, cpu),
        });
    });
}
