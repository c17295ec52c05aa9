//! Several guests on one machine: VMIDs that run out, teardown next to others' work, a guest that is frozen.

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use stage2::addr::Pa;
use stage2::cpu::CpuIndex;
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::Content;
use stage2::geometry::Geometry;
use stage2::model::Through;
use stage2::stage2::Stage2;

use crate::scene::*;

/// More than there are VMIDs.
const GUESTS: u64 = 5;

#[test]
fn with_fewer_vmids_than_guests_each_guest_sees_its_own_memory() {
    explore(|| {
        with_machine(true, 3 * GUESTS as usize, |model, mmu| {
            let guests: Vec<Guest<'_>> =
                (0..GUESTS).map(|_| Stage2::new(mmu, Geometry::tiny(2, 0).unwrap(), None).unwrap()).collect();
            let frame = |guest: u64, page: u64| Pa::new(0x10_0000 + (guest * PAGES + page) * PAGE);
            {
                let reader = mmu.reader(CpuIndex(0)).unwrap();
                for (guest, nth) in guests.iter().zip(0..) {
                    for page in 0..PAGES {
                        model.fill(frame(nth, page), nth * 100 + page);
                        let attributes = Attributes::normal(Permissions::R);
                        guest.map(&reader, pages(page, 1), frame(nth, page), attributes, Content::New).unwrap();
                    }
                }
            }
            thread::scope(|threads| {
                for cpu in 1..3 {
                    let guests = &guests;
                    threads.spawn(move || {
                        let _seat = model.cpu(cpu);
                        let mut reader = mmu.reader(CpuIndex(cpu)).unwrap();
                        for _ in 0..4 {
                            let nth = thread_rng().gen_range(0..GUESTS);
                            let mut loaded = guests[nth as usize].load(&reader).unwrap();
                            let page = thread_rng().gen_range(0..PAGES);
                            let load = || model.load(mmu.memory(), page * PAGE, Through::Caches);
                            if let Ok(value) = loaded.run(&mut reader, load).unwrap() {
                                assert_eq!(value, nth * 100 + page);
                            }
                        }
                    });
                }
                let guests = &guests;
                threads.spawn(move || {
                    let _seat = model.cpu(3);
                    let mut reader = mmu.reader(CpuIndex(3)).unwrap();
                    for _ in 0..3 {
                        let nth = thread_rng().gen_range(0..GUESTS);
                        let release = |removed: stage2::stage2::Removed<'_>| {
                            model.free_frame(*removed.frame.peek(), PAGE);
                        };
                        guests[nth as usize].unmap_with(&reader, any_pages(), release).unwrap();
                        reader.quiescent();
                    }
                });
            });
            let reader = mmu.reader(CpuIndex(0)).unwrap();
            for guest in guests {
                assert!(guest.teardown(&reader).is_ok());
            }
        });
    });
}

#[test]
fn a_guest_is_torn_down_next_to_one_that_runs() {
    explore(|| {
        with_guest(|scene| {
            thread::scope(|threads| {
                threads.spawn(|| scene.run_guest(1, 4));
                threads.spawn(|| {
                    let (_seat, mut reader) = scene.sit(2);
                    for _ in 0..2 {
                        let Ok(guest) = Stage2::new(scene.mmu, Geometry::tiny(2, 0).unwrap(), None) else { continue };
                        let attributes = Attributes::normal(Permissions::RW);
                        let frame = Pa::new(0x80_0000);
                        // Tables may be short: then there is less to tear down.
                        let _ = guest.map(&reader, pages(0, 1), frame, attributes, Content::New);
                        drop(guest.load(&reader).unwrap());
                        assert!(guest.teardown(&reader).is_ok());
                        reader.quiescent();
                    }
                });
            });
        });
    });
}

#[test]
fn a_frozen_guest_stores_nothing_until_the_thaw() {
    explore(|| {
        with_guest(|scene| {
            scene.beside_the_guest(3, || scene.freeze_and_thaw(3, 3));
            scene.assert_contents();
        });
    });
}
