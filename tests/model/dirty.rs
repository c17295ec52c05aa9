//! Dirty logging: what is copied can no longer be stored to unseen.

use std::collections::BTreeMap;

use stage2::addr::Ipa;
use stage2::dirty::{Initial, Tracking};
use stage2::model::Access;

use crate::support::*;

/// Scans, rearms and copies, as CPU 0; the pages that were dirty.
fn harvest(scene: &Scene, here: &Running<'_>, log: &mut Log, replica: &mut BTreeMap<u64, u64>) -> Vec<u64> {
    let all = range(0, LOGGED * PAGE);
    let mut bitmap = vec![0; LOGGED as usize / 64];
    log.scan(&here.reader, all, &mut bitmap).unwrap();
    let _rearmed = log.rearm(&here.reader, all, &bitmap).unwrap();
    let dirty: Vec<u64> = (0..LOGGED).filter(|page| bitmap[*page as usize / 64] & 1 << (page % 64) != 0).collect();
    for &page in &dirty {
        let ipa = Ipa::new(page * PAGE);
        scene.model.copied(ipa);
        let frame = scene.guest.view(&here.reader, ipa).unwrap().map_or(scene.frames.get(ipa), |view| view.pa());
        replica.insert(page, scene.model.content(frame));
    }
    dirty
}

#[test]
fn a_replica_kept_from_the_log_alone_is_what_the_guest_has() {
    use Tracking::*;
    for (features, tracking, seed) in [
        (rich(), WriteProtect, 1),
        (plain(), WriteProtect, 2),
        (with_hardware_updates(), WriteProtect, 3),
        (with_hardware_updates(), Hardware, 4),
        (with_hardware_updates(), Hardware, 5),
        (with_hardware_updates(), Adaptive, 6),
        (with_hardware_updates(), Adaptive, 7),
    ] {
        let scene = Scene::new(features, seed);
        let mut replica = BTreeMap::new();
        let mut stored = BTreeMap::new();
        scene.on(1, |there| {
            scene.on(0, |here| {
                let mut log = scene.guest.start_logging_with(&here.reader, Initial::Clean, tracking).unwrap();
                for round in 1..6u64 {
                    let _there = scene.model.cpu(1);
                    let pages = [round, 100, 511 + round % 3, 1024 + 7 * round];
                    for page in pages {
                        there.stores(page, round);
                        stored.insert(page, round);
                    }
                    there.accesses(1500, Access::Load);
                    drop(_there);
                    let dirty = harvest(&scene, here, &mut log, &mut replica);
                    assert!(pages.iter().all(|page| dirty.contains(page)), "round {round}: {dirty:?}");
                    assert!(harvest(&scene, here, &mut log, &mut replica).is_empty(), "nothing was stored since");
                }
            });
        });
        for (page, value) in stored {
            assert_eq!(replica.get(&page), Some(&value), "page {page}");
        }
    }
}

#[test]
fn a_dirty_page_that_is_unmapped_is_in_the_next_harvest() {
    for (features, seed) in [(rich(), 1), (plain(), 2), (with_hardware_updates(), 3)] {
        let scene = Scene::new(features, seed);
        let mut replica = BTreeMap::new();
        scene.on(1, |there| {
            scene.on(0, |here| {
                let mut log = scene.guest.start_logging(&here.reader, Initial::Clean).unwrap();
                let _there = scene.model.cpu(1);
                there.stores(3, 5);
                drop(_there);
                scene.unmap(&here.reader, range(0, TABLE));
                assert_eq!(harvest(&scene, here, &mut log, &mut replica), [3]);
            });
        });
    }
}

#[test]
fn logging_that_starts_clean_lets_no_store_pass_unseen() {
    for (features, seed) in [(rich(), 1), (plain(), 2), (with_hardware_updates(), 3)] {
        let scene = Scene::new(features, seed);
        let mut replica = BTreeMap::new();
        scene.on(1, |there| {
            (0..3).for_each(|page| there.stores(page, 1));
            scene.on(0, |here| {
                let mut log = scene.guest.start_logging(&here.reader, Initial::Clean).unwrap();
                (0..3).for_each(|page| scene.model.copied(Ipa::new(page * PAGE)));
                let _there = scene.model.cpu(1);
                there.stores(1, 2);
                drop(_there);
                assert_eq!(harvest(&scene, here, &mut log, &mut replica), [1]);
            });
        });
    }
}
