//! What nobody should ask for: a typed error, and nothing changes.

use std::sync::atomic::Ordering;

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::arch::{Scope, Tlbi};
use stage2::descriptor::Permissions;
use stage2::dirty::{Content, Initial, RearmError, ScanError, StartError};
use stage2::error::ArgumentError;
use stage2::geometry::{Features, Granule4K, IdRegisters};
use stage2::model::ModelArch;
use stage2::stage2::{FreezeError, InUse, MapError, ProtectError, QueryError, UnmapError};

use crate::support::*;
use crate::tables::path;

#[test]
fn a_range_that_does_not_fit_is_refused_by_every_operation() {
    let mmu = machine(16);
    let guest = logged_guest(mmu, 0, 64);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, 4 * PAGE);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    let live = mmu.memory().live();
    mmu.arch().take_events();
    let size = 1u64 << 40;
    let mut bitmap = vec![0; 1 << 12];
    for (bad, error) in [
        (range(1, PAGE), ArgumentError::Misaligned as fn(_) -> _),
        (range(0, PAGE - 1), ArgumentError::Misaligned),
        (range(0, 1), ArgumentError::Misaligned),
        (range(PAGE / 2, PAGE), ArgumentError::Misaligned),
        (range(u64::MAX, 1), ArgumentError::Misaligned),
        (range(size, PAGE), ArgumentError::BeyondIpaSize),
        (range(size - PAGE, 2 * PAGE), ArgumentError::BeyondIpaSize),
        (range(u64::MAX - PAGE + 1, PAGE), ArgumentError::BeyondIpaSize),
        (range(1 << 63, PAGE), ArgumentError::BeyondIpaSize),
    ] {
        let error = error(bad);
        assert_eq!(guest.map(&reader, bad, Pa::new(0), RW, Content::New), Err(MapError::Argument(error)));
        assert_eq!(guest.unmap(&reader, bad).err(), Some(UnmapError::Argument(error)));
        assert_eq!(guest.unmap_with(&reader, bad, |_| panic!()), Err(UnmapError::Argument(error)));
        assert_eq!(guest.protect(&reader, bad, Permissions::R), Err(ProtectError::Argument(error)));
        assert_eq!(guest.write_protect(&reader, bad), Err(ProtectError::Argument(error)));
        assert_eq!(log.scan(&reader, bad, &mut bitmap), Err(ScanError::Argument(error)));
        assert_eq!(log.rearm(&reader, bad, &bitmap).err(), Some(RearmError::Argument(error)));
    }
    let everything = IpaRange::inclusive(Ipa::new(0), Ipa::new(u64::MAX)).unwrap();
    assert_eq!(
        guest.unmap(&reader, everything).err(),
        Some(UnmapError::Argument(ArgumentError::BeyondIpaSize(everything)))
    );
    assert!(matches!(log.scan(&reader, everything, &mut bitmap), Err(ScanError::BitmapTooShort { .. })));
    for ipa in [size, u64::MAX, 1 << 63] {
        assert!(matches!(
            guest.query(&reader, Ipa::new(ipa)),
            Err(QueryError::Argument(ArgumentError::BeyondIpaSize(_)))
        ));
        assert!(guest.view(&reader, Ipa::new(ipa)).is_err());
    }
    assert_eq!(mmu.arch().take_events(), []);
    assert_eq!(mmu.memory().live(), live);
    assert!((0..4).all(|page| target(&guest, &reader, page * PAGE) == Some(page * PAGE)));
    log.stop();
    tear_down(guest, &reader);
}

#[test]
fn there_is_no_empty_range_and_none_that_wraps() {
    assert_eq!(IpaRange::new(Ipa::new(0x1000), 0), None);
    assert_eq!(IpaRange::new(Ipa::new(u64::MAX), 2), None);
    assert_eq!(IpaRange::new(Ipa::new(PAGE), u64::MAX), None);
    assert_eq!(IpaRange::inclusive(Ipa::new(1), Ipa::new(0)), None);
}

#[test]
fn frames_that_do_not_fit_are_refused() {
    // 40 bits of physical address.
    let narrow =
        features().meet(Features::from_id_registers(&IdRegisters { id_aa64mmfr0_el1: 2, ..IdRegisters::default() }));
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 1, 16, narrow);
    let geometry = stage2::geometry::Geometry::new(36, &narrow, Default::default()).unwrap();
    let guest: Guest = stage2::stage2::Stage2::new(mmu, geometry, None).unwrap();
    let reader = reader(mmu, 0);
    let two = range(0, 2 * PAGE);
    let map = |pa| guest.map(&reader, two, Pa::new(pa), RW, Content::New);
    for pa in [(1 << 40) - PAGE, 1 << 40, u64::MAX - PAGE + 1, (u64::MAX - 2 * PAGE) + 1, 1 << 63] {
        assert_eq!(map(pa), Err(MapError::Argument(ArgumentError::BeyondPaSize(two))), "{pa:#x}");
    }
    assert_eq!(map(0x800), Err(MapError::Argument(ArgumentError::MisalignedFrame(Pa::new(0x800)))));
    assert_eq!(mmu.memory().live(), 1);
    assert_eq!(map((1 << 40) - 2 * PAGE), Ok(()));
    tear_down(guest, &reader);
}

#[test]
fn the_reader_of_another_machine_is_refused_by_every_operation() {
    let mmu = machine(16);
    let guest = logged_guest(mmu, 0, 64);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    let elsewhere = crate::support::reader(machine(4), 0);
    let foreign = ArgumentError::ForeignReader;
    let page = range(0, PAGE);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    assert_eq!(guest.map(&elsewhere, page, Pa::new(0), RW, Content::New), Err(MapError::Argument(foreign)));
    assert_eq!(guest.unmap(&elsewhere, page).err(), Some(UnmapError::Argument(foreign)));
    assert_eq!(guest.protect(&elsewhere, page, Permissions::R), Err(ProtectError::Argument(foreign)));
    assert_eq!(guest.query(&elsewhere, Ipa::new(0)), Err(QueryError::Argument(foreign)));
    assert_eq!(guest.freeze(&elsewhere).err(), Some(FreezeError::Argument(foreign)));
    assert_eq!(log.scan(&elsewhere, page, &mut [0]), Err(ScanError::Argument(foreign)));
    assert_eq!(log.rearm(&elsewhere, page, &[1]).err(), Some(RearmError::Argument(foreign)));
    log.stop();
    assert_eq!(guest.start_logging(&elsewhere, Initial::Dirty).err(), Some(StartError::Argument(foreign)));
    let frozen = guest.freeze(&reader).unwrap();
    let Err((frozen, error)) = frozen.thaw(&elsewhere) else { panic!("thawed") };
    assert_eq!(error, foreign);
    assert_eq!(guest.freeze(&reader).err(), Some(FreezeError::Frozen), "still");
    assert!(frozen.thaw(&reader).is_ok());
    let (guest, error) = guest.teardown(&elsewhere).err().unwrap();
    assert_eq!(error, InUse::ForeignReader);
    assert_eq!(target(&guest, &reader, 0), Some(0));
    tear_down(guest, &reader);
}

#[test]
fn a_log_that_cannot_start_clean_has_invalidated_what_it_cleaned_and_is_off() {
    let mmu = machine(16);
    let guest = logged_guest(mmu, 0, 1024);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, TABLE + PAGE);
    // The second table's: what is before it is cleaned.
    const OUTSIDE: u64 = 0x7fff_f003;
    let (_, table) = path(&guest, &reader, Ipa::new(TABLE))[1];
    let entry = word(mmu.memory(), table, 1);
    let good = entry.swap(OUTSIDE, Ordering::Relaxed);
    let started = guest.start_logging(&reader, Initial::Clean).err();
    let corrupt = stage2::error::Corrupt { ipa: Ipa::new(TABLE), level: Level::L2 };
    assert_eq!(started, Some(StartError::Corrupt(corrupt)));
    assert!(!guest.query(&reader, Ipa::new(0)).unwrap().unwrap().dirty);
    assert_eq!(tlbis(mmu.arch()), [Tlbi::Vmalls12e1 { scope: Scope::InnerShareable }], "so no store passes unseen");
    entry.store(good, Ordering::Relaxed);
    guest.start_logging(&reader, Initial::Clean).expect("nobody is the harvester").stop();
    tear_down(guest, &reader);
}
