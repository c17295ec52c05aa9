//! Tables and trees that come and go.

use stage2::model::Access;

use crate::support::*;

/// Lets the reclaimer work until it has nothing left to do, as CPU 0.
fn reclaim_all(scene: &Scene) -> u32 {
    let _cpu = scene.model.cpu(0);
    let mut reader = reader(scene.mmu, 0);
    let mut freed = 0;
    for _ in 0..16 {
        reader.quiescent();
        freed += scene.guest.reclaim(&reader, u32::MAX).unwrap().freed;
    }
    freed
}

#[test]
fn a_table_is_given_back_when_no_walk_of_the_hardware_leads_there() {
    for (features, seed) in [(rich(), 1), (plain(), 2), (rich().without_level_hint(), 3), (with_hardware_updates(), 4)]
    {
        let scene = Scene::new(features, seed);
        scene.on(1, |there| {
            for page in [0, 512, 1024, 512 * 512] {
                there.stores(page, 1);
            }
            scene.on(0, |here| scene.unmap(&here.reader, range(0, TABLE)));
        });
        assert_eq!(reclaim_all(&scene), 1);
        scene.on(1, |there| {
            assert!(!there.may(0, Access::Load));
            there.stores(1, 2);
            scene.on(0, |here| scene.unmap(&here.reader, range(0, 1 << 32)));
        });
        assert_eq!(reclaim_all(&scene), 6, "four leaf tables, and the two above that they emptied");
    }
}

#[test]
fn a_place_has_another_table_only_after_the_first_is_in_no_walk_cache() {
    // The guest comes back to the range at each step of the reclaimer.
    for steps in 0..5 {
        let scene = Scene::new(rich(), 9);
        scene.on(1, |there| {
            there.stores(0, 1);
            scene.on(0, |here| scene.unmap(&here.reader, range(0, TABLE)));
        });
        let _cpu = scene.model.cpu(0);
        let mut reader = reader(scene.mmu, 0);
        for _ in 0..steps {
            reader.quiescent();
            scene.guest.reclaim(&reader, 1).unwrap();
        }
        drop(reader);
        scene.on(1, |there| there.stores(1, 2));
    }
}

#[test]
fn a_tree_is_torn_down_with_nothing_of_it_in_any_tlb() {
    for (features, seed) in [(rich(), 1), (plain(), 2), (with_hardware_updates(), 3)] {
        let model = stage2::model::ModelMmu::new::<stage2::geometry::Granule4K>(4, seed);
        let mmu = machine(&model, 4, 32, features);
        let frames = Frames::default();
        for round in 0..4 {
            let _cpu = model.cpu(0);
            let reader = reader(mmu, 0);
            let tree = guest(mmu, features, LOGGED);
            {
                let _cpu = model.cpu(1);
                let reader = mmu.reader(stage2::cpu::CpuIndex(1)).unwrap();
                let loaded = tree.load(&reader).unwrap();
                for page in [0, 1, 512, 1 << 18] {
                    guest_stores(&loaded, &reader, &frames, page * PAGE, round);
                }
            }
            assert!(tree.teardown(&reader).is_ok());
            model.assert_nothing_leaked();
        }
    }
}
