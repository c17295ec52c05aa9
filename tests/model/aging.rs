//! Aging on MMUs that keep whatever they may: what was accessed since pages were made old is young, and nothing else.

use std::collections::BTreeSet;

use stage2::addr::{Ipa, Level, Pa};
use stage2::aging::{Flush, Unit};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, Initial, Tracking};
use stage2::geometry::{Features, IdRegisters};
use stage2::model::Access;

use crate::features::RICH;
use crate::support::*;

/// Pages that are mapped, in two tables.
const PAGES: [u64; 9] = [0, 1, 2, 63, 64, 511, 512, 513, 1000];

/// CPUs that set access flags, and nothing else.
fn with_hardware_access_flag() -> Features {
    Features::from_id_registers(&IdRegisters { id_aa64mmfr1_el1: RICH.id_aa64mmfr1_el1 | 1, ..RICH })
}

/// Software sets the flag; the hardware does; and dirty state, too.
fn machines() -> impl Iterator<Item = (Features, u64)> {
    let kinds = [rich(), plain(), with_hardware_access_flag(), with_hardware_updates()];
    (1..9).flat_map(move |seed| kinds.map(|features| (features, seed)))
}

/// The pages of the log's range that are young.
fn young(scene: &Scene, here: &Running<'_>) -> BTreeSet<u64> {
    let mut bitmap = [0; LOGGED as usize / 64];
    scene.guest.scan_accessed(&here.reader, range(0, LOGGED * PAGE), &mut bitmap).unwrap();
    (0..LOGGED).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
}

fn make_old(scene: &Scene, here: &Running<'_>, flush: Flush) -> u64 {
    let made_old = scene.guest.make_old(&here.reader, range(0, LOGGED * PAGE), u32::MAX, flush).unwrap();
    assert_eq!(made_old.next, None);
    made_old.young
}

/// The accesses of a round, each by the CPU it is numbered for.
const ROUND: [(u16, u64, Access); 5] = [
    (1, 1, Access::Load),
    (2, 64, Access::Store),
    (1, 511, Access::Fetch),
    (2, 512, Access::Stage1Walk),
    (1, 1000, Access::Store),
];

#[test]
fn what_was_accessed_on_any_cpu_since_pages_were_made_old_is_young_and_nothing_else() {
    for (features, seed) in machines() {
        let scene = Scene::new(features, seed);
        scene.on(1, |one| {
            scene.on(2, |two| {
                // Both CPUs have all of them, in whatever form.
                for there in [one, two] {
                    let _cpu = scene.model.cpu(there.reader.cpu().0);
                    PAGES.iter().for_each(|&page| there.stores(page, 1));
                }
                let mut expected = PAGES.len() as u64;
                for _ in 0..3 {
                    scene.on(0, |here| {
                        assert_eq!(make_old(&scene, here, Flush::Now), expected);
                        assert!(young(&scene, here).is_empty());
                    });
                    for (cpu, page, access) in ROUND {
                        let _cpu = scene.model.cpu(cpu);
                        if cpu == 1 { one } else { two }.accesses(page, access);
                    }
                    let accessed: BTreeSet<u64> = ROUND.iter().map(|&(_, page, _)| page).collect();
                    scene.on(0, |here| assert_eq!(young(&scene, here), accessed));
                    expected = accessed.len() as u64;
                }
            });
        });
    }
}

#[test]
fn what_is_left_in_tlbs_lets_accesses_pass_unnoticed_until_a_flush_is_asked_for() {
    let mut unnoticed = 0;
    for (features, seed) in machines() {
        let scene = Scene::new(features, seed);
        scene.on(1, |there| {
            PAGES.iter().for_each(|&page| there.stores(page, 1));
            scene.on(0, |here| make_old(&scene, here, Flush::Later));
            there.accesses(1, Access::Load);
            scene.on(0, |here| {
                unnoticed += u32::from(!young(&scene, here).contains(&1));
                make_old(&scene, here, Flush::Now);
            });
            there.accesses(2, Access::Load);
            scene.on(0, |here| assert_eq!(young(&scene, here), BTreeSet::from([2])));
        });
    }
    assert!(unnoticed > 0, "what the flush is for");
}

#[test]
fn a_pass_in_pieces_begins_an_interval_in_which_nothing_passes_unnoticed() {
    for (features, seed) in machines() {
        let scene = Scene::new(features, seed);
        let mut counters = [0; LOGGED as usize];
        scene.on(1, |there| {
            PAGES.iter().for_each(|&page| there.stores(page, 1));
            let mut set = scene.on(0, |here| {
                scene.guest.working_set(&here.reader, range(0, LOGGED * PAGE), Unit::Page, &mut counters).unwrap()
            });
            let mut pass = || {
                while scene.on(0, |here| scene.guest.age(&here.reader, &mut set, 1).unwrap().next.is_some()) {
                    // What is accessed meanwhile is of the interval that ends.
                    there.accesses(1000, Access::Load);
                }
                (set.histogram().pages[0], set.age(Ipa::new(63 * PAGE)))
            };
            assert_eq!(pass(), (PAGES.len() as u64, Some(0)));
            for round in 1..4 {
                there.accesses(2, Access::Load);
                there.accesses(513, Access::Store);
                let (young, idle) = pass();
                // And that of before, perhaps.
                assert!((2..=3).contains(&young), "{young}");
                assert_eq!(idle, Some(round));
            }
        });
    }
}

#[test]
fn blocks_age_as_a_whole_and_what_becomes_of_them_is_as_young_as_they_were() {
    let attributes = Attributes::normal(Permissions::RWX);
    for (features, seed) in machines() {
        let scene = Scene::with_largest_leaf(features, seed, Level::L2);
        let pages = |blocks: std::ops::Range<u64>| (512 * blocks.start..512 * blocks.end).collect::<BTreeSet<u64>>();
        scene.on(1, |there| {
            scene.on(0, |here| {
                let frames = Pa::new(0x40_0000_0000);
                scene.guest.map(&here.reader, range(0, 4 * TABLE), frames, attributes, Content::Unchanged).unwrap();
            });
            (0..4).for_each(|block| _ = there.accesses(512 * block + 7, Access::Store));
            scene.on(0, |here| assert_eq!(make_old(&scene, here, Flush::Now), 4 * 512));
            there.accesses(512 + 9, Access::Load);
            scene.on(0, |here| {
                assert_eq!(young(&scene, here), pages(1..2));
                assert_eq!(scene.guest.split(&here.reader, range(0, 2 * TABLE)), Ok(2));
                assert_eq!(young(&scene, here), pages(1..2));
            });
            there.accesses(3, Access::Load);
            scene.on(0, |here| {
                assert_eq!(young(&scene, here), pages(1..2).into_iter().chain([3]).collect());
                make_old(&scene, here, Flush::Now);
            });
            there.accesses(5, Access::Store);
            scene.on(0, |here| {
                assert_eq!(scene.guest.collapse(&here.reader, range(0, 2 * TABLE)), Ok(2));
                assert_eq!(young(&scene, here), pages(0..1));
            });
            there.accesses(2 * 512, Access::Load);
            scene.on(0, |here| assert_eq!(young(&scene, here), pages(0..1).union(&pages(2..3)).copied().collect()));
        });
    }
}

#[test]
fn no_dirty_page_is_lost_by_pages_being_made_old_whatever_tracks_them() {
    use Tracking::*;
    for (features, tracking, seed) in [
        (rich(), WriteProtect, 1),
        (plain(), WriteProtect, 2),
        (with_hardware_access_flag(), WriteProtect, 3),
        (with_hardware_updates(), WriteProtect, 4),
        (with_hardware_updates(), Hardware, 5),
        (with_hardware_updates(), Hardware, 6),
        (with_hardware_updates(), Adaptive, 7),
        (with_hardware_updates(), Adaptive, 8),
    ] {
        let scene = Scene::new(features, seed);
        scene.on(1, |there| {
            PAGES.iter().for_each(|&page| there.stores(page, 1));
            let mut log =
                scene.on(0, |here| scene.guest.start_logging_with(&here.reader, Initial::Clean, tracking).unwrap());
            for round in 2..8 {
                let flush = if round % 2 == 0 { Flush::Now } else { Flush::Later };
                there.stores(1, round);
                scene.on(0, |here| make_old(&scene, here, flush));
                there.stores(512 + round % 2, round);
                there.accesses(63, Access::Load);
                scene.on(0, |here| {
                    make_old(&scene, here, flush);
                    let all = range(0, LOGGED * PAGE);
                    let mut bitmap = [0; LOGGED as usize / 64];
                    log.scan(&here.reader, all, &mut bitmap).unwrap();
                    let dirty: Vec<u64> =
                        (0..LOGGED).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect();
                    assert_eq!(dirty, [1, 512 + round % 2], "{tracking}, round {round}");
                    let _rearmed = log.rearm(&here.reader, all, &bitmap).unwrap();
                    dirty.iter().for_each(|&page| scene.model.copied(Ipa::new(page * PAGE)));
                    make_old(&scene, here, flush);
                });
            }
        });
    }
}

#[test]
fn pages_that_are_made_old_are_moved_and_protected_as_any_others() {
    for (features, seed) in machines() {
        let scene = Scene::new(features, seed);
        scene.on(1, |there| {
            PAGES.iter().for_each(|&page| there.stores(page, 1));
            scene.on(0, |here| {
                make_old(&scene, here, Flush::Later);
                assert_eq!(scene.unmap(&here.reader, range(0, 2 * PAGE)), 2);
                make_old(&scene, here, Flush::Later);
                scene.guest.protect(&here.reader, range(2 * PAGE, PAGE), Permissions::R).unwrap();
            });
            assert!(!there.may(0, Access::Load) && !there.may(2, Access::Store));
            there.stores(0, 2);
            there.accesses(2, Access::Load);
            scene.on(0, |here| assert!(young(&scene, here).contains(&0), "it is mapped anew"));
        });
    }
}
