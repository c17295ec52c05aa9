//! Memory that comes and goes while guests run: KVM's memslot_modification_stress_test, as facts.

use std::cell::Cell;

use stage2::addr::{Ipa, IpaRange};
use stage2::dirty::Content;
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::geometry::Features;
use stage2::model::{Access, Through};

use crate::support::*;

fn machines() -> impl Iterator<Item = (Features, u64)> {
    [rich(), plain(), rich().without_range_tlbi(), with_hardware_updates()].into_iter().zip(1..)
}

/// All memory but a slot that may be there or not.
struct Slots<'f> {
    frames: &'f Frames,
    slot: IpaRange,
    is_there: Cell<bool>,
}

impl Backing for Slots<'_> {
    fn region(&self, ipa: Ipa) -> Region {
        if self.slot.contains(ipa) && !self.is_there.get() { Region::Nothing } else { Region::Memory(RWX) }
    }

    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
        self.frames.page(ipa, write)
    }

    fn unused(&self, ipa: Ipa, page: Page) {
        self.frames.unused(ipa, page);
    }
}

/// A load of the guest: what it reads, or that it may not.
fn loads(scene: &Scene, there: &Running<'_>, slots: &Slots<'_>, page: u64) -> Option<u64> {
    for _ in 0..8 {
        let fault = match scene.model.load(scene.mmu.memory(), page * PAGE, Through::Caches) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        match there.loaded.resolve(&there.reader, slots, fault).unwrap() {
            Outcome::Resumed => {}
            Outcome::Reflect(_) => return None,
            other => panic!("{other:?}"),
        }
    }
    panic!("the guest does not get on at page {page}");
}

#[test]
fn a_slot_that_comes_and_goes_shows_nothing_of_its_former_frames_and_disturbs_nobody_beside_it() {
    const SLOT: [u64; 5] = [515, 516, 700, 1023, 1024];
    /// In the tables at both ends of the slot, and far away.
    const BESIDE: [u64; 3] = [513, 1027, 5000];
    for (features, seed) in machines() {
        let scene = Scene::new(features, seed);
        let slot = range(514 * PAGE, 512 * PAGE);
        let slots = Slots { frames: &scene.frames, slot, is_there: Cell::new(true) };
        scene.on(1, |there| {
            BESIDE.iter().for_each(|&page| there.stores(page, page));
            let faults = |kind: &str| (kind.to_owned(), scene.mmu.statistics().faults_translation);
            for round in 1..12 {
                SLOT.iter().for_each(|&page| there.stores(page, round));
                slots.is_there.set(false);
                scene.on(0, |here| {
                    let release = |removed: stage2::stage2::Removed<'_>| {
                        scene.model.free_frame(*removed.frame.peek(), PAGE);
                        scene.frames.set(removed.ipa, scene.frames.fresh());
                        // The guest goes on beside it.
                        let _cpu = scene.model.cpu(1);
                        assert!(!there.may(removed.ipa.raw() / PAGE, Access::Load));
                        BESIDE.iter().for_each(|&page| assert_eq!(loads(&scene, there, &slots, page), Some(page)));
                    };
                    let removed = scene.guest.unmap_with(&here.reader, slot, release).unwrap().leaves;
                    // What was mapped at once is more than what the guest has touched.
                    assert!(removed == 512 || removed == SLOT.len() as u64, "{removed}");
                });
                SLOT.iter().for_each(|&page| assert_eq!(loads(&scene, there, &slots, page), None, "nothing is there"));
                let before = faults("beside");
                BESIDE.iter().for_each(|&page| assert_eq!(loads(&scene, there, &slots, page), Some(page)));
                assert_eq!(faults("beside"), before);
                slots.is_there.set(true);
                if round % 2 == 0 {
                    scene.on(0, |here| {
                        for page in 514..514 + 512u64 {
                            let frame = scene.frames.get(Ipa::new(page * PAGE));
                            scene.guest.map(&here.reader, range(page * PAGE, PAGE), frame, RWX, Content::New).unwrap();
                        }
                    });
                }
                SLOT.iter().for_each(|&page| assert_eq!(loads(&scene, there, &slots, page), Some(0), "frames are new"));
            }
        });
    }
}

#[test]
fn pages_a_table_apart_that_come_and_go_for_ever_take_no_more_than_a_handful_of_tables() {
    for (features, seed) in machines() {
        let scene = Scene::new(features, seed);
        let mut peak = 0;
        for nth in 0..600u64 {
            let page = nth * 512 + nth % 512;
            scene.on(1, |there| there.stores(page, nth));
            scene.on(0, |here| assert_eq!(scene.unmap(&here.reader, range(page * PAGE, PAGE)), 1));
            let _cpu = scene.model.cpu(0);
            let mut reader = reader(scene.mmu, 0);
            reader.quiescent();
            scene.guest.reclaim(&reader, 8).unwrap();
            peak = peak.max(scene.mmu.memory().live());
        }
        assert!(peak <= 12, "{peak} tables");
    }
}
