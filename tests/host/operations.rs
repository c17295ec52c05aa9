//! Map, unmap, protect, query, freeze, teardown: what they do, and what they have done when they stop half way.

use stage2::addr::{Ipa, Level, Pa};
use stage2::cpu::CpuIndex;
use stage2::descriptor::{Attributes, MemoryType, Permissions};
use stage2::dirty::Content;
use stage2::error::Stopped;
use stage2::geometry::{Granule4K, GranuleTiny};
use stage2::model::{Event, ModelArch};
use stage2::stage2::{FreezeError, InUse, MapCause, MapError, Removed, Unsettled};

use crate::support::*;

fn stopped_mapping(result: Result<(), MapError>) -> Stopped<MapCause> {
    match result {
        Err(MapError::Stopped(stopped)) => stopped,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mapping_is_what_was_asked_for_and_nothing_else_is_mapped() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let device = Attributes::device(true);
    guest.map(&reader, range(0x4000, 2 * PAGE), Pa::new(0x900_0000), device, Content::New).unwrap();
    let mapping = guest.query(&reader, Ipa::new(0x5123)).unwrap().unwrap();
    assert_eq!(mapping.pa, Pa::new(0x900_1123));
    assert_eq!(mapping.level, Level::L3);
    assert_eq!(mapping.permissions, Permissions::RW);
    assert_eq!(mapping.memory, Some(MemoryType::DeviceNGnRE));
    assert!(mapping.dirty && mapping.accessed);
    assert_eq!(target(&guest, &reader, 0x3fff), None);
    assert_eq!(target(&guest, &reader, 0x6000), None);
    tear_down(guest, &reader);
}

#[test]
fn a_map_onto_a_hole_and_then_a_page_stops_at_the_page_with_the_hole_filled() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    // The obstacle is in the second of two leaf tables.
    let obstacle = TABLE + 3 * PAGE;
    guest.map(&reader, range(obstacle, PAGE), Pa::new(0x7000_0000), RW, Content::New).unwrap();
    let whole = range(TABLE - 2 * PAGE, 8 * PAGE);
    let stopped = stopped_mapping(guest.map(&reader, whole, Pa::new(0x1_0000_0000), RW, Content::New));
    assert_eq!(stopped.cause, MapCause::Exists);
    assert_eq!(stopped.at, Ipa::new(obstacle));
    assert_eq!(stopped.done, Some(range(TABLE - 2 * PAGE, 5 * PAGE)));
    assert_eq!(target(&guest, &reader, obstacle - PAGE), Some(0x1_0000_0000 + 4 * PAGE));
    assert_eq!(target(&guest, &reader, obstacle), Some(0x7000_0000), "what was there stays");
    assert_eq!(target(&guest, &reader, obstacle + PAGE), None);
    let at_once = stopped_mapping(guest.map(&reader, range(obstacle, PAGE), Pa::new(0), RW, Content::New));
    assert_eq!(at_once.done, None);
    tear_down(guest, &reader);
}

#[test]
fn a_guest_without_room_for_its_root_is_not_made() {
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 1, 8, features());
    // 43 bits: 16 root tables.
    assert!(stage2::stage2::Stage2::new(mmu, geometry(43), None).is_err());
    assert_eq!(mmu.memory().live(), 0);
}

#[test]
fn while_tables_are_on_their_way_back_a_map_without_tables_is_told_to_try_again() {
    // The root, and one path.
    let mmu = machine(4);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    let elsewhere = || guest.map(&reader, range(8 * TABLE, PAGE), Pa::new(0), RW, Content::New);
    assert_eq!(stopped_mapping(elsewhere()).cause, MapCause::OutOfTables);
    unmap(&guest, &reader, 0, PAGE);
    assert_eq!(stopped_mapping(elsewhere()).cause, MapCause::Retry);
    let mut tries = 0;
    while guest.map(&reader, range(8 * TABLE, PAGE), Pa::new(0), RW, Content::New).is_err() {
        reader.quiescent();
        guest.reclaim(&reader, 8).unwrap();
        tries += 1;
        assert!(tries < 10);
    }
    tear_down(guest, &reader);
}

#[test]
fn an_unmap_hands_back_each_frame_once_and_counts_what_it_removed() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    // More than a batch, over two tables, with a hole.
    map(&guest, &reader, TABLE - 100 * PAGE, 150 * PAGE);
    map(&guest, &reader, TABLE + 60 * PAGE, 10 * PAGE);
    guest.protect(&reader, range(TABLE, 10 * PAGE), Permissions::R).unwrap();
    let mut removed: Vec<Removed<'_>> = Vec::new();
    let unmapped = guest.unmap_with(&reader, range(0, 2 * TABLE), |leaf| removed.push(leaf)).unwrap();
    assert_eq!(unmapped.leaves, 160);
    assert_eq!(removed.len(), 160);
    let mut addresses: Vec<u64> = removed.iter().map(|leaf| leaf.ipa.raw()).collect();
    assert!(addresses.is_sorted());
    addresses.dedup();
    assert_eq!(addresses.len(), 160, "each once");
    assert!(removed.iter().all(|leaf| leaf.frame.peek().raw() == leaf.ipa.raw() && leaf.level == Level::L3));
    assert_eq!(unmapped.dirty, removed.iter().filter(|leaf| leaf.dirty).count() as u64);
    let one = removed.pop().unwrap();
    let Err((one, waiting)) = one.frame.poll() else { panic!("this CPU may still be reading the frame") };
    assert_eq!(waiting.0, CpuIndex(0));
    reader.quiescent();
    assert!(one.poll().is_ok());
    let again = guest.unmap_with(&reader, range(0, 2 * TABLE), |_| panic!("nothing is left")).unwrap();
    assert_eq!(again.leaves, 0);
    tear_down(guest, &reader);
}

#[test]
fn an_unmap_takes_exactly_its_range() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, TABLE - 4 * PAGE, 8 * PAGE);
    assert_eq!(unmap(&guest, &reader, TABLE - 2 * PAGE, 3 * PAGE).leaves, 3);
    for page in 0..8 {
        let ipa = TABLE - 4 * PAGE + page * PAGE;
        assert_eq!(target(&guest, &reader, ipa), (!(2..5).contains(&page)).then_some(ipa));
    }
    tear_down(guest, &reader);
}

#[test]
fn an_unmap_allocates_nothing() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, 4 * PAGE);
    mmu.memory().fail_after(0);
    unmap(&guest, &reader, 0, PAGE);
    guest.protect(&reader, range(0, TABLE), Permissions::R).unwrap();
    guest.unmap_with(&reader, range(0, 1 << 40), |_| {}).unwrap();
    mmu.memory().fail_after(u64::MAX);
    tear_down(guest, &reader);
}

#[test]
fn an_unmap_of_nothing_at_all_grows_with_the_tables_not_with_the_range() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let before = mmu.statistics();
    unmap(&guest, &reader, 0, 1 << 40);
    assert_eq!(mmu.statistics().walks_read_write - before.walks_read_write, 2, "one for each pass over the range");
    assert!(tlbis(mmu.arch()).is_empty(), "nothing was removed, nothing is invalidated");
    tear_down(guest, &reader);
}

#[test]
fn protect_changes_permissions_of_what_is_mapped_and_skips_holes() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, TABLE - PAGE, PAGE);
    map(&guest, &reader, TABLE + PAGE, PAGE);
    guest.protect(&reader, range(0, 4 * TABLE), Permissions::RX).unwrap();
    for ipa in [TABLE - PAGE, TABLE + PAGE] {
        assert_eq!(guest.query(&reader, Ipa::new(ipa)).unwrap().unwrap().permissions, Permissions::RX);
    }
    assert_eq!(target(&guest, &reader, TABLE), None);
    tear_down(guest, &reader);
}

#[test]
fn write_protected_pages_stay_writable_by_permission() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    guest.map(&reader, range(PAGE, PAGE), Pa::new(0), Attributes::normal(Permissions::R), Content::New).unwrap();
    guest.write_protect(&reader, range(0, 2 * PAGE)).unwrap();
    let permissions = |ipa| guest.query(&reader, Ipa::new(ipa)).unwrap().unwrap().permissions;
    assert_eq!((permissions(0), permissions(PAGE)), (Permissions::RW, Permissions::R));
    tear_down(guest, &reader);
}

#[test]
fn a_frozen_guest_can_be_looked_at_and_unmapped_and_is_as_it_was_after_the_thaw() {
    let mmu = machine(32);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, 4 * PAGE);
    map(&guest, &reader, (1 << 40) - PAGE, PAGE);
    let frozen = guest.freeze(&reader).unwrap();
    assert_eq!(guest.freeze(&reader).err(), Some(FreezeError::Frozen));
    assert_eq!(target(&guest, &reader, PAGE), Some(PAGE));
    // A hole of the root is closed, too.
    let hole = stopped_mapping(guest.map(&reader, range(1 << 38, PAGE), Pa::new(0), RW, Content::New));
    assert_eq!((hole.cause, hole.done), (MapCause::Retry, None));
    unmap(&guest, &reader, 0, 1 << 39);
    assert_eq!(target(&guest, &reader, PAGE), None);
    frozen.thaw(&reader).map_err(|(_, why)| why).unwrap();
    assert_eq!(target(&guest, &reader, (1 << 40) - PAGE), Some((1 << 40) - PAGE));
    map(&guest, &reader, 1 << 38, PAGE);
    tear_down(guest, &reader);
}

#[test]
fn a_frozen_guest_is_settled_once_every_cpu_has_quiesced() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let mut faulting = crate::support::reader(mmu, 1);
    let frozen = reader_offline(reader, |reader| guest.freeze(reader).unwrap());
    assert_eq!(frozen.is_settled(), Err(Unsettled::Fault(CpuIndex(1))));
    faulting.quiescent();
    assert!(frozen.is_settled().is_ok());
    assert!(frozen.thaw(&faulting).is_ok());
    tear_down(guest, &faulting);
}

/// Does `f` and gives the reader up.
fn reader_offline<T>(
    reader: stage2::quiescence::Reader<'static>,
    f: impl FnOnce(&stage2::quiescence::Reader<'static>) -> T,
) -> T {
    f(&reader)
}

#[test]
fn a_guest_that_is_left_frozen_can_be_torn_down() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, TABLE + PAGE);
    let _ = guest.freeze(&reader).unwrap();
    tear_down(guest, &reader);
}

#[test]
fn a_teardown_takes_everything_whatever_is_still_mapped() {
    let mmu = machine(64);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    for at in [0, 1 << 30, 1 << 39, (1 << 40) - TABLE] {
        map(&guest, &reader, at, TABLE);
    }
    unmap(&guest, &reader, 0, TABLE);
    // One table is hinted, one is unlinked and waits for this very CPU.
    reader.quiescent();
    guest.reclaim(&reader, 8).unwrap();
    reader.quiescent();
    assert_eq!(guest.reclaim(&reader, 8).unwrap().waiting, 1);
    unmap(&guest, &reader, 1 << 30, TABLE);
    tear_down(guest, &reader);
}

#[test]
fn a_guest_that_is_loaded_is_not_torn_down_even_if_that_was_forgotten() {
    let mmu = machine(8);
    let (here, there) = (reader(mmu, 0), reader(mmu, 3));
    let guest = guest(mmu);
    core::mem::forget(guest.load(&there).unwrap());
    let (guest, why) = guest.teardown(&here).err().unwrap();
    assert_eq!(why, InUse::Loaded(CpuIndex(3)));
    assert!(mmu.memory().live() > 0, "nothing was freed");
    assert!(guest.query(&here, Ipa::new(0)).unwrap().is_none(), "and it can be used");
}

#[test]
fn a_load_refused_because_of_another_tree_changes_nothing() {
    let mmu = machine(8);
    let reader = reader(mmu, 0);
    let (first, second) = (guest(mmu), guest(mmu));
    core::mem::forget(first.load(&reader).unwrap());
    assert!(second.load(&reader).is_err());
    assert!(second.teardown(&reader).is_ok(), "it is not loaded");
    assert!(first.teardown(&reader).is_err(), "it is");
}

#[test]
fn a_tree_can_be_loaded_again_after_it_was_unloaded_and_torn_down_after_that() {
    let mmu = machine(8);
    let reader = reader(mmu, 0);
    let guest = guest(mmu);
    drop(guest.load(&reader).unwrap());
    drop(guest.load(&reader).unwrap());
    let events = mmu.arch().take_events();
    let loads = events.iter().filter(|event| matches!(event, Event::Load(_))).count();
    let unloads = events.iter().filter(|event| matches!(event, Event::Unload)).count();
    assert_eq!((loads, unloads), (2, 2));
    tear_down(guest, &reader);
}

#[test]
fn the_tree_of_a_model_checker_is_a_tree() {
    let mmu = machine_of::<_, GranuleTiny>(ModelArch::new(), 1, 16, features());
    let geometry = stage2::geometry::Geometry::tiny(3, 1).unwrap();
    let guest = Guest::<ModelArch, GranuleTiny>::new(mmu, geometry, None).unwrap();
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, 16 * PAGE);
    unmap(&guest, &reader, 0, 16 * PAGE);
    assert_eq!(reclaim_all(&guest, &mut reader), 4 + 8);
    tear_down(guest, &reader);
}
