//! Blocks: mapped, split and cut, with another CPU's guest on them.

use std::cell::Cell;

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, Initial};
use stage2::error::{ChangeCause, RangeError};
use stage2::fault::{Backing, Page, Region, Unavailable};
use stage2::geometry::Features;
use stage2::memory::TableMemory;
use stage2::model::Access;

use crate::support::*;

/// Frames of blocks: aligned to 1 GiB, as their addresses are.
const BLOCKS: u64 = 0x40_0000_0000;
const GIB: u64 = 1 << 30;

/// A scene whose first GiB is mapped, with blocks of this level.
fn blocks(features: Features, seed: u64, level: Level) -> Scene {
    let scene = Scene::with_largest_leaf(features, seed, level);
    scene.on(0, |here| {
        let attributes = Attributes::normal(Permissions::RWX);
        scene.guest.map(&here.reader, range(0, GIB), Pa::new(BLOCKS), attributes, Content::Unchanged).unwrap();
    });
    scene
}

fn level_of(scene: &Scene, here: &Running<'_>, ipa: u64) -> Option<Level> {
    scene.guest.query(&here.reader, Ipa::new(ipa)).unwrap().map(|mapping| {
        assert_eq!(mapping.pa, Pa::new(BLOCKS + ipa));
        mapping.level
    })
}

fn machines() -> impl Iterator<Item = (Features, u64)> {
    [rich(), plain(), rich().without_range_tlbi(), with_hardware_updates()].into_iter().zip(1..)
}

#[test]
fn the_largest_leaf_is_chosen_that_both_addresses_and_the_rest_of_the_range_allow() {
    let scene = Scene::with_largest_leaf(rich(), 1, Level::L1);
    scene.on(0, |here| {
        let attributes = Attributes::normal(Permissions::RW);
        let map = |start: u64, bytes: u64, frame: u64| {
            scene.guest.map(&here.reader, range(start, bytes), Pa::new(frame), attributes, Content::New).unwrap();
        };
        let level = |ipa: u64| scene.guest.query(&here.reader, Ipa::new(ipa)).unwrap().map(|mapping| mapping.level);
        // A page, a block that the first table's end allows, a GiB, and what is left of it.
        map(GIB - TABLE - PAGE, PAGE + TABLE + GIB + TABLE + PAGE, BLOCKS + GIB - TABLE - PAGE);
        for (ipa, expected) in [
            (GIB - TABLE - PAGE, Level::L3),
            (GIB - TABLE, Level::L2),
            (GIB, Level::L1),
            (2 * GIB - 1, Level::L1),
            (2 * GIB, Level::L2),
            (2 * GIB + TABLE, Level::L3),
        ] {
            assert_eq!(level(ipa), Some(expected), "{ipa:#x}");
        }
        assert_eq!(level(2 * GIB + TABLE + PAGE), None);
        // Frames that are not aligned as their addresses are.
        map(8 * GIB, 2 * TABLE, BLOCKS + 8 * GIB + PAGE);
        assert_eq!(level(8 * GIB), Some(Level::L3));
        // Where there is a table already its entries are used.
        map(16 * GIB + PAGE, PAGE, BLOCKS + 16 * GIB + PAGE);
        scene.unmap(&here.reader, range(16 * GIB + PAGE, PAGE));
        map(16 * GIB, 2 * TABLE, BLOCKS + 16 * GIB);
        assert_eq!((level(16 * GIB), level(16 * GIB + TABLE)), (Some(Level::L3), Some(Level::L2)));
    });
}

#[test]
fn an_unmap_of_a_part_of_a_block_takes_just_that_part_from_every_tlb() {
    for (features, seed) in machines() {
        for level in [Level::L1, Level::L2] {
            let scene = blocks(features, seed, level);
            scene.on(1, |there| {
                for page in [0, 5, 511, 512, 1000] {
                    there.accesses(page, Access::Store);
                }
                scene.on(0, |here| {
                    assert_eq!(scene.unmap(&here.reader, range(5 * PAGE, 2 * PAGE)), 2);
                    assert_eq!(level_of(&scene, here, 0), Some(Level::L3));
                    assert_eq!(level_of(&scene, here, 5 * PAGE), None);
                    assert_eq!(level_of(&scene, here, 511 * PAGE), Some(Level::L3));
                    assert_eq!(level_of(&scene, here, TABLE), Some(Level::L2));
                    // Two blocks cut, and one between them taken whole.
                    scene.unmap(&here.reader, range(TABLE + 7 * PAGE, 2 * TABLE));
                    assert_eq!(level_of(&scene, here, TABLE + 6 * PAGE), Some(Level::L3));
                    assert_eq!(level_of(&scene, here, 3 * TABLE + 6 * PAGE), None);
                    assert_eq!(level_of(&scene, here, 3 * TABLE + 7 * PAGE), Some(Level::L3));
                });
                assert!(!there.may(5, Access::Load) && !there.may(1000, Access::Load));
                assert!(there.may(7, Access::Store) && there.may(512, Access::Store));
            });
        }
    }
}

#[test]
fn permissions_of_a_part_of_a_block_are_changed_and_the_rest_stays_as_it_was() {
    for (features, seed) in machines() {
        let scene = blocks(features, seed, Level::L1);
        scene.on(1, |there| {
            there.accesses(3, Access::Store);
            scene.on(0, |here| {
                scene.guest.protect(&here.reader, range(3 * PAGE, PAGE), Permissions::R).unwrap();
                scene.guest.write_protect(&here.reader, range(TABLE + 3 * PAGE, PAGE)).unwrap();
            });
            assert!(!there.may(3, Access::Store) && there.may(3, Access::Load));
            assert!(there.may(2, Access::Store) && there.may(4, Access::Fetch) && there.may(513, Access::Store));
            there.accesses(515, Access::Store);
        });
    }
}

#[test]
fn a_split_of_a_range_leaves_nothing_but_pages_there_and_keeps_what_is_dirty() {
    for (features, seed) in machines() {
        let scene = blocks(features, seed, Level::L1);
        scene.on(1, |there| {
            there.accesses(3, Access::Store);
            scene.on(0, |here| {
                let tables = scene.guest.split(&here.reader, range(0, 3 * TABLE)).unwrap();
                assert_eq!(tables, 4, "one of level 2, three of level 3");
                assert_eq!(scene.guest.split(&here.reader, range(0, 3 * TABLE)).unwrap(), 0);
                assert_eq!(level_of(&scene, here, 3 * TABLE - PAGE), Some(Level::L3));
                assert_eq!(level_of(&scene, here, 3 * TABLE), Some(Level::L2));
                assert!(scene.guest.query(&here.reader, Ipa::new(3 * PAGE)).unwrap().unwrap().dirty);
                let mut log = scene.guest.start_logging(&here.reader, Initial::Dirty).unwrap();
                let mut bitmap = vec![0; LOGGED as usize / 64];
                let all = range(0, LOGGED * PAGE);
                log.scan(&here.reader, all, &mut bitmap).unwrap();
                assert_eq!(
                    log.rearm(&here.reader, all, &bitmap).unwrap().cleaned,
                    LOGGED,
                    "by the entries, not the log"
                );
            });
            there.accesses(3, Access::Store);
            there.accesses(600, Access::Fetch);
        });
    }
}

#[test]
fn an_unmap_splits_even_when_table_memory_has_nothing_left() {
    let scene = blocks(rich(), 1, Level::L1);
    scene.on(0, |here| {
        let _taken: Vec<_> = std::iter::from_fn(|| scene.mmu.memory().alloc().ok()).collect();
        let live = scene.mmu.memory().live();
        // A table of level 2, and one of level 3 at each end.
        assert!(scene.guest.unmap(&here.reader, range(PAGE, TABLE)).is_ok());
        assert_eq!(level_of(&scene, here, 0), Some(Level::L3));
        assert_eq!(level_of(&scene, here, TABLE + PAGE), Some(Level::L3));
        // The fourth of the reserve, and then there is none: that is said, and nothing is changed.
        assert!(scene.guest.unmap(&here.reader, range(2 * TABLE, PAGE)).is_ok());
        let refused = scene.guest.unmap(&here.reader, range(4 * TABLE, PAGE));
        assert!(
            matches!(&refused, Err(RangeError::Stopped(stopped))
                if stopped.cause == ChangeCause::OutOfTables && stopped.done.is_none()),
            "{refused:?}"
        );
        assert_eq!(level_of(&scene, here, 4 * TABLE), Some(Level::L2));
        assert_eq!(scene.mmu.memory().live(), live);
    });
}

/// A backing that has blocks.
struct Huge {
    given: Cell<u64>,
    returned: Cell<u64>,
}

impl Backing for Huge {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(Attributes::normal(Permissions::RWX))
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: Pa::new(BLOCKS + ipa.raw()), content: Content::Unchanged })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}

    fn block(&self, block: IpaRange, _write: bool) -> Option<Page> {
        self.given.set(self.given.get() + 1);
        Some(Page { frame: Pa::new(BLOCKS + block.start().raw()), content: Content::Unchanged })
    }

    fn unused_block(&self, _block: IpaRange, _page: Page) {
        self.returned.set(self.returned.get() + 1);
    }
}

#[test]
fn a_fault_brings_in_a_block_where_the_backing_has_one_and_pages_where_a_table_is_in_its_place() {
    let scene = Scene::with_largest_leaf(rich(), 1, Level::L2);
    let huge = Huge { given: Cell::new(0), returned: Cell::new(0) };
    scene.on(1, |there| {
        let access = |page: u64| guest_accesses(&there.loaded, &there.reader, &huge, page * PAGE, Access::Store);
        access(3);
        assert_eq!(level_of(&scene, there, 500 * PAGE), Some(Level::L2));
        scene.on(0, |here| drop(scene.guest.unmap(&here.reader, range(3 * PAGE, PAGE)).unwrap()));
        access(3);
        assert_eq!(level_of(&scene, there, 3 * PAGE), Some(Level::L3));
        assert_eq!((huge.given.get(), huge.returned.get()), (2, 1));
    });
}

#[test]
fn while_a_log_is_on_a_store_to_a_block_makes_no_more_dirty_than_its_page() {
    for (features, seed) in [(rich(), 1), (plain(), 2)] {
        let scene = blocks(features, seed, Level::L2);
        let huge = Huge { given: Cell::new(0), returned: Cell::new(0) };
        scene.on(1, |there| {
            scene.on(0, |here| {
                let mut log = scene.guest.start_logging(&here.reader, Initial::Clean).unwrap();
                let _there = scene.model.cpu(1);
                guest_accesses(&there.loaded, &there.reader, &huge, 7 * PAGE, Access::Store);
                guest_accesses(&there.loaded, &there.reader, &huge, 9 * PAGE, Access::Load);
                drop(_there);
                let all = range(0, LOGGED * PAGE);
                let mut bitmap = vec![0; LOGGED as usize / 64];
                assert_eq!(log.scan(&here.reader, all, &mut bitmap).unwrap(), 1);
                assert_eq!(bitmap[0], 1 << 7);
                assert_eq!(log.rearm(&here.reader, all, &bitmap).unwrap().cleaned, 1);
                scene.model.copied(Ipa::new(7 * PAGE));
                scene.model.copied(Ipa::new(600 * PAGE));
                assert_eq!(level_of(&scene, here, 0), Some(Level::L3));
                assert_eq!(level_of(&scene, here, TABLE), Some(Level::L2));
            });
        });
    }
}

#[test]
fn a_block_in_a_frozen_root_is_split_without_letting_the_guest_run() {
    let scene = blocks(rich(), 1, Level::L1);
    scene.on(1, |there| {
        scene.on(0, |here| {
            let frozen = scene.guest.freeze(&here.reader).unwrap();
            let refused = scene.guest.unmap(&here.reader, range(PAGE, PAGE));
            assert!(
                matches!(&refused, Err(RangeError::Stopped(stopped)) if stopped.cause == ChangeCause::Retry),
                "{refused:?}"
            );
            let _there = scene.model.cpu(1);
            assert!(!there.may(0, Access::Load));
            drop(_there);
            assert!(frozen.thaw(&here.reader).is_ok());
            assert!(scene.guest.unmap(&here.reader, range(PAGE, PAGE)).is_ok());
        });
        assert!(there.may(0, Access::Load));
    });
}

#[test]
fn what_was_split_is_joined_again_and_its_tables_go_back() {
    for (features, seed) in machines() {
        for largest in [Level::L1, Level::L2] {
            let scene = blocks(features, seed, largest);
            let before = scene.mmu.memory().live();
            scene.on(1, |there| {
                scene.on(0, |here| {
                    scene.guest.split(&here.reader, range(0, 6 * TABLE)).unwrap();
                    let _there = scene.model.cpu(1);
                    for page in [3, 600, 5 * 512 + 511] {
                        there.accesses(page, Access::Store);
                        there.accesses(page + 1 - page % 2, Access::Fetch);
                    }
                    drop(_there);
                    let expected = if largest == Level::L1 { 7 } else { 6 };
                    assert_eq!(scene.guest.collapse(&here.reader, range(0, GIB)).unwrap(), expected);
                    assert_eq!(scene.guest.collapse(&here.reader, range(0, GIB)).unwrap(), 0);
                    assert_eq!(level_of(&scene, here, 5 * PAGE), Some(largest));
                    assert!(scene.guest.query(&here.reader, Ipa::new(0)).unwrap().unwrap().dirty);
                });
                for page in [3, 600, 5 * 512 + 511] {
                    there.accesses(page, Access::Store);
                }
            });
            let _cpu = scene.model.cpu(0);
            let mut reader = reader(scene.mmu, 0);
            reader.quiescent();
            scene.guest.reclaim(&reader, 64).unwrap();
            assert_eq!(scene.mmu.memory().live(), before);
        }
    }
}

#[test]
fn when_a_log_has_ended_the_reclaimer_joins_what_the_log_has_split_a_bounded_piece_with_each_call() {
    for (features, seed) in machines() {
        for largest in [Level::L1, Level::L2] {
            let scene = blocks(features, seed, largest);
            let before = scene.mmu.memory().live();
            scene.on(0, |here| {
                let log = scene.guest.start_logging(&here.reader, Initial::Clean).unwrap();
                scene.guest.split(&here.reader, range(0, 4 * TABLE)).unwrap();
                let whole = scene.guest.reclaim(&here.reader, 64).unwrap();
                assert_eq!(whole.collapsed, 0, "the log is on");
                log.stop();
                let pieces: Vec<u32> =
                    (0..4).map(|_| scene.guest.reclaim(&here.reader, 3).unwrap().collapsed).collect();
                assert_eq!(pieces[..2], [3, 1], "{pieces:?}");
                let rest = (0..512 / 64).map(|_| scene.guest.reclaim(&here.reader, 64).unwrap().collapsed);
                assert_eq!(rest.sum::<u32>(), u32::from(largest == Level::L1), "and the table above");
                assert_eq!(level_of(&scene, here, 5 * PAGE), Some(largest));
            });
            let _cpu = scene.model.cpu(0);
            let mut reader = reader(scene.mmu, 0);
            reader.quiescent();
            scene.guest.reclaim(&reader, 64).unwrap();
            assert_eq!(scene.mmu.memory().live(), before);
        }
    }
}

#[test]
fn a_table_is_not_joined_over_a_hole_another_frame_another_permission_or_a_taken_one() {
    type Spoil = fn(&Scene, &Running<'_>);
    let spoils: [Spoil; 4] = [
        |scene, here| drop(scene.guest.unmap(&here.reader, range(9 * PAGE, PAGE)).unwrap()),
        |scene, here| {
            drop(scene.guest.unmap(&here.reader, range(9 * PAGE, PAGE)).unwrap());
            let elsewhere = Pa::new(BLOCKS + 2 * GIB);
            let attributes = Attributes::normal(Permissions::RWX);
            scene.guest.map(&here.reader, range(9 * PAGE, PAGE), elsewhere, attributes, Content::New).unwrap();
        },
        |scene, here| scene.guest.protect(&here.reader, range(9 * PAGE, PAGE), Permissions::R).unwrap(),
        |scene, here| scene.guest.write_protect(&here.reader, range(9 * PAGE, PAGE)).unwrap(),
    ];
    for spoil in spoils {
        let scene = blocks(rich(), 1, Level::L2);
        scene.on(1, |there| {
            scene.on(0, |here| {
                scene.guest.split(&here.reader, range(0, 2 * TABLE)).unwrap();
                spoil(&scene, here);
                assert_eq!(scene.guest.collapse(&here.reader, range(0, GIB)).unwrap(), 1, "the other table alone");
            });
            there.accesses(4, Access::Store);
            there.accesses(512 + 9, Access::Store);
        });
    }
}

#[test]
fn what_is_logged_is_joined_only_when_the_log_is_off() {
    let scene = blocks(rich(), 1, Level::L2);
    scene.on(0, |here| {
        let log = scene.guest.start_logging(&here.reader, Initial::Clean).unwrap();
        scene.guest.split(&here.reader, range(0, LOGGED * PAGE + 2 * TABLE)).unwrap();
        assert_eq!(scene.guest.collapse(&here.reader, range(0, GIB)).unwrap(), 2, "what no log covers");
        log.stop();
        assert_eq!(scene.guest.collapse(&here.reader, range(0, GIB)).unwrap(), LOGGED / 512);
    });
}

#[test]
fn a_block_is_dirty_if_any_of_the_pages_was_that_made_it() {
    let scene = blocks(rich(), 1, Level::L2);
    let huge = Huge { given: Cell::new(0), returned: Cell::new(0) };
    scene.on(1, |there| {
        scene.on(0, |here| {
            let log = scene.guest.start_logging(&here.reader, Initial::Clean).unwrap();
            let _there = scene.model.cpu(1);
            guest_accesses(&there.loaded, &there.reader, &huge, 7 * PAGE, Access::Store);
            drop(_there);
            scene.guest.split(&here.reader, range(0, 2 * TABLE)).unwrap();
            log.stop();
            assert_eq!(scene.guest.collapse(&here.reader, range(0, 2 * TABLE)).unwrap(), 2);
            let dirty = |ipa: u64| scene.guest.query(&here.reader, Ipa::new(ipa)).unwrap().unwrap().dirty;
            assert!(dirty(0) && !dirty(TABLE));
        });
    });
}
