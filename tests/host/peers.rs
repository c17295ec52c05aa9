//! What other table code for stage 2 gets wrong, as claims about this one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use stage2::addr::{Ipa, Level, Pa};
use stage2::arch::{Dsb, Scope, Tlbi};
use stage2::descriptor::{Attributes, Format, Permissions};
use stage2::dirty::{Content, Initial};
use stage2::error::{ChangeCause, RangeError, Stopped};
use stage2::fault::Outcome;
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule4K};
use stage2::model::{Event, ModelArch};
use stage2::stage2::{CreateError, MapCause, MapError, Stage2};

use crate::support::*;
use crate::tables::path;

/// Something that flushes.
type Flushing = (&'static str, fn(&Guest, &mut stage2::quiescence::Reader<'static>));

const FLUSHING: [Flushing; 8] = [
    ("unmap", |guest, reader| _ = unmap(guest, reader, 3 * PAGE, 20 * PAGE)),
    ("unmap_with", |guest, reader| _ = guest.unmap_with(reader, range(3 * PAGE, PAGE), |_| {}).unwrap()),
    ("unmap of scattered pages", |guest, reader| {
        for page in [1, 5, 9] {
            unmap(guest, reader, page * PAGE, PAGE);
        }
    }),
    ("protect", |guest, reader| guest.protect(reader, range(0, 20 * PAGE), Permissions::R).unwrap()),
    ("write_protect", |guest, reader| guest.write_protect(reader, range(5 * PAGE, PAGE)).unwrap()),
    ("rearm", |guest, reader| {
        let mut log = guest.start_logging(reader, Initial::Dirty).unwrap();
        let _ = log.rearm(reader, range(0, 64 * PAGE), &[0xff]).unwrap();
    }),
    ("reclaim", |guest, reader| {
        unmap(guest, reader, 0, TABLE);
        guest.mmu().arch().take_events();
        reclaim_all(guest, reader);
    }),
    ("a flush of everything", |guest, reader| {
        let _ = guest.start_logging(reader, Initial::Clean).unwrap();
    }),
];

/// By address alone is for entries of stage 2 alone: what was combined from both stages stays. (One has no VMALLE1 after it; one
/// flushes nothing at all.) And it is for the VMID in VTTBR_EL2 (one leaves 0 there; one invalidates the VMIDs of all).
#[test]
fn whatever_flushes_by_address_takes_the_combined_entries_too_on_all_cpus_and_of_the_guests_own_vmid() {
    for features in [features(), plain_features()] {
        for (name, flush) in FLUSHING {
            let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 2, 32, features);
            let geometry = Geometry::new(40, &features, GeometryOptions::default()).unwrap();
            let words = Vec::leak((0..64).map(|_| stage2::dirty::Word::new(0)).collect());
            let log = stage2::dirty::DirtyBitmap { base: Ipa::new(0), words };
            let guest: Guest = Stage2::new(mmu, geometry, Some(log)).unwrap();
            // A guest before, so that this one's VMID is another.
            let mut reader = reader(mmu, 0);
            let first: Guest = Stage2::new(mmu, geometry, None).unwrap();
            give_vmid(&first, &reader);
            mmu.arch().take_events();
            give_vmid(&guest, &reader);
            let Some(&Event::Load(registers)) = mmu.arch().take_events().first() else { panic!("not loaded") };
            assert!(registers.vttbr >> 48 > 1, "neither nobody's nor the first guest's");
            map(&guest, &reader, 0, 32 * PAGE);
            mmu.arch().take_events();
            flush(&guest, &mut reader);
            let events = mmu.arch().take_events();
            let flushes: Vec<&[Event]> = events
                .split(|event| *event == Event::LeaveVmid)
                .filter_map(|events| {
                    let entered = events.iter().position(|event| matches!(event, Event::EnterVmid(_)))?;
                    assert_eq!(events[entered], Event::EnterVmid(registers), "{name}");
                    Some(&events[entered + 1..])
                })
                .collect();
            assert!(!flushes.is_empty(), "{name}");
            let inside: usize = flushes.iter().map(|flush| flush.iter().filter(|event| is_tlbi(event)).count()).sum();
            assert_eq!(inside, events.iter().filter(|event| is_tlbi(event)).count(), "{name}: of some other VMID");
            for flush in flushes {
                for event in flush {
                    let scope = match event {
                        Event::Tlbi(Tlbi::Ipa { scope, .. } | Tlbi::IpaRange { scope, .. }) => scope,
                        Event::Tlbi(Tlbi::Vmalle1 { scope } | Tlbi::Vmalls12e1 { scope }) => scope,
                        Event::Tlbi(Tlbi::Alle1 { .. }) => panic!("{name}: everybody's"),
                        _ => continue,
                    };
                    assert_eq!(*scope, Scope::InnerShareable, "{name}");
                }
                let Event::Tlbi(last) = flush.iter().rfind(|event| is_tlbi(event)).expect(name) else { unreachable!() };
                assert!(matches!(last, Tlbi::Vmalle1 { .. } | Tlbi::Vmalls12e1 { .. }), "{name}: {flush:?}");
                if let Tlbi::Vmalle1 { .. } = last {
                    let at = flush.iter().rposition(is_tlbi).unwrap();
                    assert_eq!(flush[at - 1], Event::Dsb(Dsb::Ish), "{name}: or they are combined anew");
                    assert!(at >= 2 && is_tlbi(&flush[at - 2]), "{name}");
                }
                assert!(flush.ends_with(&[Event::Dsb(Dsb::Ish), Event::Isb]), "{name}: {flush:?}");
            }
        }
    }
}

fn is_tlbi(event: &Event) -> bool {
    matches!(event, Event::Tlbi(_))
}

/// One gives out 16 bits and leaves VTCR_EL2.VS clear: the VMIDs of two guests are the same to the hardware.
#[test]
fn vmids_of_16_bits_are_given_out_where_vtcr_says_so_and_nowhere_else() {
    const VS: u64 = 1 << 19;
    let mmu = machine(1300);
    let reader = reader(mmu, 0);
    let guests: Vec<Guest> = (0..600).map(|_| guest(mmu)).collect();
    let mut vmids = BTreeSet::new();
    for guest in &guests {
        give_vmid(guest, &reader);
        for event in mmu.arch().take_events() {
            if let Event::Load(registers) = event {
                assert!(vmids.insert(registers.vttbr >> 48));
                assert_ne!(registers.vtcr & VS, 0);
            }
        }
    }
    assert!(vmids.last() > Some(&256) && !vmids.contains(&0));
    let eight_bits = features().without_vmid16();
    let geometry = Geometry::<Granule4K>::new(40, &eight_bits, GeometryOptions::default()).unwrap();
    assert_eq!(geometry.vtcr().raw() & VS, 0);
    assert_eq!(
        Stage2::new(mmu, geometry, None).err(),
        Some(CreateError::Geometry),
        "of narrower VMIDs than are given out"
    );
    // And of wider ones there is no harm: the upper half is 0.
    let narrow = machine_of::<_, Granule4K>(ModelArch::new(), 1, 8, eight_bits);
    assert!(Stage2::new(narrow, geometry, None).is_ok());
}

/// A tree with a block of 2 MiB, which nothing here makes: stored by the test, clean, and the guest may write.
fn guest_with_a_block(features: Features) -> (Guest, stage2::quiescence::Reader<'static>) {
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 1, 16, features);
    let guest = logged_guest(mmu, 0, 2048);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    let table = path(&guest, &reader, Ipa::new(0))[1].1;
    let format = Format { fwb: features.force_write_back(), xnx: features.execute_never_by_el(), dbm: false };
    let block = format.leaf(Level::L2, Pa::new(FRAME), Attributes::normal(Permissions::RW), false);
    word(mmu.memory(), table, 1).store(block.raw(), Ordering::Relaxed);
    (guest, reader)
}

const FRAME: u64 = 0x4000_0000;

/// One panics where a part of a live block is to be changed, and one splits it without a break. Until blocks are split here, it is
/// refused, with the place.
#[test]
fn a_change_of_a_part_of_a_block_is_refused_and_of_all_of_it_done() {
    let (guest, reader) = guest_with_a_block(features());
    let refused = |result: Result<(), RangeError<ChangeCause>>, at: u64, done: u64| {
        let Err(RangeError::Stopped(Stopped { cause, at: stopped, done: prefix })) = result else {
            panic!("{result:?}")
        };
        assert_eq!((cause, stopped), (ChangeCause::PartOfBlock, Ipa::new(at)));
        assert_eq!(prefix.map_or(0, |prefix| prefix.bytes()), done);
        let mapping = guest.query(&reader, Ipa::new(TABLE + 5 * PAGE)).unwrap().unwrap();
        assert_eq!((mapping.pa, mapping.level), (Pa::new(FRAME + 5 * PAGE), Level::L2));
        assert_eq!((mapping.permissions, mapping.dirty), (Permissions::RW, false));
    };
    for (start, bytes, done) in [
        (TABLE, PAGE, 0),
        (TABLE + PAGE, TABLE - PAGE, 0),
        (TABLE + 7 * PAGE, 3 * PAGE, 0),
        (TABLE - PAGE, 2 * PAGE, PAGE),
    ] {
        let part = range(start, bytes);
        let at = start.max(TABLE);
        refused(guest.unmap(&reader, part).map(|_| ()), at, done);
        refused(guest.unmap_with(&reader, part, |_| panic!("handed out")).map(|_| ()), at, done);
        refused(guest.protect(&reader, part, Permissions::R), at, done);
        refused(guest.write_protect(&reader, part), at, done);
    }
    let mapped = guest.map(&reader, range(TABLE + PAGE, PAGE), Pa::new(0), RW, Content::New);
    assert!(
        matches!(mapped, Err(MapError::Stopped(Stopped { cause: MapCause::Exists, done: None, .. }))),
        "{mapped:?}"
    );
    let view = guest.view(&reader, Ipa::new(TABLE + 5 * PAGE)).unwrap().unwrap();
    assert_eq!((view.pa(), view.bytes()), (Pa::new(FRAME + 5 * PAGE), PAGE));
    // All of it, and more.
    guest.protect(&reader, range(0, 2 * TABLE), Permissions::R).unwrap();
    assert_eq!(guest.query(&reader, Ipa::new(TABLE)).unwrap().unwrap().permissions, Permissions::R);
    let mut removed = Vec::new();
    guest
        .unmap_with(&reader, range(0, 4 * TABLE), |leaf| removed.push((leaf.ipa, leaf.level, *leaf.frame.peek())))
        .unwrap();
    assert_eq!(removed[1..], [(Ipa::new(TABLE), Level::L2, Pa::new(FRAME))]);
    tear_down(guest, &reader);
}

#[test]
fn a_block_is_dirty_in_all_of_its_pages_and_clean_only_if_all_of_them_are_harvested() {
    let (guest, reader) = guest_with_a_block(features());
    let (block, mmu) = (range(TABLE, TABLE), guest.mmu());
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    let count = |log: &mut stage2::dirty::DirtyLog<'_, 'static, ModelArch, _>, part| {
        let mut bitmap = vec![0; 32];
        (log.scan(&reader, part, &mut bitmap).unwrap(), bitmap)
    };
    assert_eq!(count(&mut log, block).0, 0);
    let loaded = guest.load(&reader).unwrap();
    let store = store_denied(mmu, TABLE + 9 * PAGE);
    assert_eq!(resolve(&loaded, &reader, &Memory::at(0, RW), store), Outcome::Resumed);
    drop(loaded);
    assert_eq!(count(&mut log, range(TABLE + 100 * PAGE, 70 * PAGE)).0, 70, "and of a part those of the part");
    let (pages, mut bitmap) = count(&mut log, block);
    assert_eq!(pages, 512);
    for missing in [0, 63, 64, 300, 511] {
        bitmap[missing / 64] &= !(1 << (missing % 64));
        assert_eq!(log.rearm(&reader, block, &bitmap).unwrap().cleaned, 0);
        assert_eq!(
            log.rearm(&reader, range(TABLE, 300 * PAGE), &[u64::MAX; 8]).unwrap().cleaned,
            0,
            "not all is asked"
        );
        assert_eq!(count(&mut log, block).0, 512, "without page {missing} it stays dirty");
        bitmap[missing / 64] |= 1 << (missing % 64);
    }
    assert_eq!(log.rearm(&reader, block, &bitmap).unwrap().cleaned, 512);
    assert_eq!(count(&mut log, block).0, 0);
    log.stop();
    tear_down(guest, &reader);
}

/// One resets its bitmap by storing 0: what was marked since it was read is lost.
#[test]
fn a_mark_that_is_set_while_others_of_its_word_are_taken_out_is_in_some_harvest() {
    const WORDS: u64 = 3_000;
    let mmu = machine(8);
    let guest = logged_guest(mmu, 0, 64 * WORDS);
    let reader = reader(mmu, 0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    let mut harvested = vec![0; WORDS as usize];
    let mut harvest = |index: u64| {
        let word = range(index * 64 * PAGE, 64 * PAGE);
        let mut bitmap = [0];
        log.scan(&reader, word, &mut bitmap).unwrap();
        let _ = log.rearm(&reader, word, &bitmap).unwrap();
        harvested[index as usize] |= bitmap[0];
    };
    // The word in which another CPU marks one page after the other, each once.
    let at = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for page in 0..64 * WORDS {
                at.store(page / 64, Ordering::Relaxed);
                guest.mark_dirty(range(page * PAGE, PAGE)).unwrap();
            }
            at.store(WORDS, Ordering::Relaxed);
        });
        loop {
            let index = at.load(Ordering::Relaxed);
            if index == WORDS {
                break;
            }
            harvest(index);
        }
    });
    (0..WORDS).for_each(harvest);
    let lost: u32 = harvested.iter().map(|word: &u64| word.count_zeros()).sum();
    assert_eq!(lost, 0, "of {} pages", 64 * WORDS);
}
