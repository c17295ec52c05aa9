//! Permissions taken and given back.

use stage2::descriptor::Permissions;
use stage2::model::Access;

use crate::support::*;

#[test]
fn after_a_permission_is_taken_no_tlb_gives_it() {
    for (features, seed) in [(rich(), 1), (plain(), 2), (with_hardware_updates(), 3)] {
        let scene = Scene::new(features, seed);
        scene.on(1, |there| {
            (0..3).for_each(|page| there.stores(page, 1));
            there.accesses(1, Access::Fetch);
            scene.on(0, |here| scene.guest.protect(&here.reader, range(0, 2 * PAGE), Permissions::R).unwrap());
            assert!(!there.may(0, Access::Store) && !there.may(1, Access::Store) && !there.may(1, Access::Fetch));
            assert!(there.may(0, Access::Load) && there.may(2, Access::Store));
        });
    }
}

#[test]
fn after_a_write_protect_the_next_store_is_noticed() {
    for (features, seed) in [(rich(), 1), (plain(), 2)] {
        let scene = Scene::new(features, seed);
        scene.on(1, |there| {
            (0..3).for_each(|page| there.stores(page, 1));
            scene.on(0, |here| scene.guest.write_protect(&here.reader, range(0, 2 * PAGE)).unwrap());
            assert!(!there.may(0, Access::Store) && !there.may(1, Access::Store) && there.may(2, Access::Store));
            there.stores(0, 2);
        });
    }
}

/// The CPU that gives the permission invalidates for itself; the other finds out by a fault, and does so too. Neither faults
/// for ever, whichever entries its TLB chooses to use.
#[test]
fn a_permission_that_is_given_back_reaches_every_cpu() {
    for seed in 1..16 {
        for features in [rich(), plain()] {
            let scene = Scene::new(features, seed);
            scene.on(1, |there| {
                (0..4).for_each(|page| there.stores(page, 1));
                scene.on(0, |here| {
                    (0..4).for_each(|page| here.stores(page, 2));
                    scene.guest.write_protect(&here.reader, range(0, 2 * PAGE)).unwrap();
                    scene.guest.protect(&here.reader, range(2 * PAGE, 2 * PAGE), Permissions::R).unwrap();
                    assert!((0..4).all(|page| !here.may(page, Access::Store)));
                    scene.guest.protect(&here.reader, range(2 * PAGE, 2 * PAGE), Permissions::RWX).unwrap();
                    (0..4).for_each(|page| here.stores(page, 3));
                });
                (0..4).for_each(|page| there.stores(page, 4));
            });
        }
    }
}

#[test]
fn who_is_told_that_a_page_is_protected_may_rely_on_another_cpus_change() {
    // CPU 2 has changed the entry, and its flush is not over: CPU 0 finds nothing to do, and must flush all the same.
    let scene = Scene::new(rich(), 5);
    scene.on(1, |there| {
        there.stores(0, 1);
        scene.on(0, |here| {
            scene.guest.write_protect(&here.reader, range(0, PAGE)).unwrap();
            scene.guest.write_protect(&here.reader, range(0, PAGE)).unwrap();
        });
        assert!(!there.may(0, Access::Store));
    });
}
