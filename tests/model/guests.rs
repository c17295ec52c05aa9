//! Guests that run, fault and lose their pages.

use stage2::model::Access;

use crate::support::*;

/// Machines of every kind, with different luck.
fn scenes() -> impl Iterator<Item = Scene> {
    let kinds = [rich(), plain(), rich().without_range_tlbi(), rich().without_level_hint(), with_hardware_updates()];
    kinds.into_iter().zip(1..).map(|(features, seed)| Scene::new(features, seed))
}

#[test]
fn a_frame_that_is_handed_back_is_in_no_tlb_of_any_cpu() {
    for scene in scenes() {
        scene.on(1, |there| {
            for page in [0, 1, 2, 511, 512, 1024] {
                there.stores(page, page);
            }
            scene.on(0, |here| {
                here.stores(1, 7);
                assert_eq!(scene.unmap(&here.reader, range(0, PAGE)), 1);
                assert_eq!(scene.unmap(&here.reader, range(PAGE, 2 * PAGE)), 2);
                assert_eq!(scene.unmap(&here.reader, range(511 * PAGE, 2 * PAGE)), 2);
                assert_eq!(scene.unmap(&here.reader, range(0, 4 * TABLE)), 1);
            });
            assert!(!there.may(1, Access::Load));
            there.stores(1, 8);
        });
    }
}

#[test]
fn a_page_with_more_neighbours_than_a_handful_of_invalidations_goes_with_all_of_the_vmid() {
    for features in [plain(), rich()] {
        let scene = Scene::new(features, 3);
        scene.on(1, |there| {
            for page in 0..40 {
                there.stores(page, page);
            }
            scene.on(0, |here| assert_eq!(scene.unmap(&here.reader, range(0, 39 * PAGE)), 39));
            assert!(!there.may(38, Access::Load) && there.may(39, Access::Load));
        });
    }
}

#[test]
fn frames_owned_by_region_are_in_no_tlb_when_the_unmap_is_over() {
    for scene in scenes() {
        scene.on(1, |there| {
            let frames: Vec<_> = (0..3).map(|page| there.accesses(page, Access::Store)).collect();
            scene.on(0, |here| {
                let unmapped = scene.guest.unmap(&here.reader, range(0, TABLE)).unwrap();
                assert_eq!(unmapped.peek().leaves, 3);
                frames.iter().for_each(|frame| scene.model.free_frame(*frame, PAGE));
            });
        });
    }
}

#[test]
fn every_kind_of_access_gets_on() {
    for scene in scenes() {
        scene.on(1, |there| {
            scene.model.map_stage1(77 * PAGE, stage2::Ipa::new(3 * PAGE));
            for access in [Access::Load, Access::Stage1Walk, Access::Stage1Update, Access::Fetch, Access::Store] {
                there.accesses(access as u64, access);
                there.accesses(3, access);
            }
            let frame = there.accesses(77, Access::Store);
            assert_eq!(frame, there.accesses(3, Access::Load), "the same page by two addresses");
        });
    }
}

#[test]
fn nothing_passes_while_the_guest_is_frozen_and_everything_after() {
    for scene in scenes() {
        scene.on(1, |there| {
            (0..4).for_each(|page| there.stores(page, 1));
            scene.on(0, |here| {
                let frozen = scene.guest.freeze(&here.reader).unwrap();
                let _there = scene.model.cpu(1);
                assert!((0..4).all(|page| !there.may(page, Access::Load)));
                drop(_there);
                assert!(frozen.thaw(&here.reader).is_ok());
            });
            (0..4).for_each(|page| there.stores(page, 2));
        });
    }
}
