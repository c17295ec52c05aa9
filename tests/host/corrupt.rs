//! Descriptors that no code of ours writes, stored into table memory by the test: each kind of them, at each level, against
//! each operation.
//!
//! What has a way to say so names the address and the level of the table that holds it. Nothing is followed: no page of another
//! guest and no free page changes, no frame is handed out, and when the good descriptor is back everything is as it was
//! but for the prefix that the error reports. A teardown frees what is the tree's, once; what hung below the descriptor that was
//! overwritten is lost with it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::descriptor::Permissions;
use stage2::dirty::{Content, Initial, RearmError, ScanError, StartError};
use stage2::error::{ChangeCause, Corrupt, RangeError, Stopped};
use stage2::fault::{FaultError, Syndrome};
use stage2::geometry::{Granule, Granule4K, Granule16K, Granule64K};
use stage2::stage2::{MapCause, MapError, QueryError};

use crate::corrupt_scene::{PAGES, Scene};
use crate::support::*;
use crate::tables::*;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Operation {
    Map,
    Unmap,
    UnmapWith,
    Protect,
    WithdrawPermission,
    WriteProtect,
    Query,
    View,
    FlushMapped,
    Fault { write: bool },
    PermissionFault,
    Scan,
    Rearm,
    StartLogging,
    Reclaim,
    Freeze,
}

const OPERATIONS: [Operation; 17] = [
    Operation::Map,
    Operation::Unmap,
    Operation::UnmapWith,
    Operation::Protect,
    Operation::WithdrawPermission,
    Operation::WriteProtect,
    Operation::Query,
    Operation::View,
    Operation::FlushMapped,
    Operation::Fault { write: false },
    Operation::Fault { write: true },
    Operation::PermissionFault,
    Operation::Scan,
    Operation::Rearm,
    Operation::StartLogging,
    Operation::Reclaim,
    Operation::Freeze,
];

/// What an operation said: the corruption, and the prefix it had done where it says that.
type Said = Option<(Corrupt, Option<Option<IpaRange>>)>;

fn stopped<T: core::fmt::Debug>(result: Result<T, RangeError<ChangeCause>>) -> Said {
    match result {
        Err(RangeError::Stopped(Stopped { cause: ChangeCause::Corrupt(corrupt), done, at })) => {
            assert_eq!(Some(at.raw()), done.map_or(Some(at.raw()), |done| done.last().raw().checked_add(1)));
            Some((corrupt, Some(done)))
        }
        other => panic!("{other:?}"),
    }
}

fn queried<T>(result: Result<T, QueryError>) -> Said {
    match result {
        Err(QueryError::Corrupt(corrupt)) => Some((corrupt, None)),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("an answer"),
    }
}

impl Operation {
    /// Whether it can say so; reclaim and freeze cannot.
    fn reports(self) -> bool {
        !matches!(self, Self::Reclaim | Self::Freeze)
    }

    /// What it is for: of those for one page, that page.
    fn range<G: Granule>(self, scene: &Scene<G>, asked: IpaRange) -> IpaRange {
        match self {
            Self::Query | Self::View | Self::Fault { .. } | Self::PermissionFault => {
                range(scene.page.raw(), G::PAGE_SIZE)
            }
            Self::StartLogging => scene.logged(),
            _ => asked,
        }
    }

    /// Makes what it needs, before there is anything bad.
    fn prepare<G: Granule>(self, scene: &Scene<G>) {
        if self == Self::Map {
            let before = scene.surroundings();
            unmap(&scene.guest, &scene.reader, before.start().raw(), scene.page.raw() - before.start().raw());
        }
    }

    fn run<G: Granule>(self, scene: &mut Scene<G>, part: IpaRange) -> Said {
        let Scene { guest, reader, mmu, page, .. } = scene;
        let bits = vec![u64::MAX; 2 * G::ENTRIES / 64];
        match self {
            Self::Map => match guest.map(reader, part, Pa::new(0x100_0000), RW, Content::New) {
                Err(MapError::Stopped(Stopped { cause: MapCause::Corrupt(corrupt), done, .. })) => {
                    Some((corrupt, Some(done)))
                }
                other => panic!("{other:?}"),
            },
            Self::Unmap => stopped(guest.unmap(reader, part).map(|unmapped| *unmapped.peek())),
            Self::UnmapWith => {
                let mut frames = BTreeSet::new();
                let said = stopped(guest.unmap_with(reader, part, |leaf| {
                    assert!(frames.insert(*leaf.frame.peek()), "handed out twice");
                    assert_eq!(leaf.frame.peek().raw(), leaf.ipa.raw(), "not a frame of this guest");
                    assert!(leaf.ipa < *page);
                }));
                let done = said.and_then(|(_, done)| done.flatten()).map_or(0, |done| done.bytes() / G::PAGE_SIZE);
                assert_eq!(frames.len() as u64, done);
                said
            }
            // It looks at all of the frames before it changes the first.
            Self::Protect => {
                let said = stopped(guest.protect(reader, part, Permissions::RX));
                assert!(said.is_some_and(|(_, done)| done == Some(None)));
                said.map(|(corrupt, _)| (corrupt, None))
            }
            Self::WithdrawPermission => stopped(guest.protect(reader, part, Permissions::R)),
            Self::WriteProtect => stopped(guest.write_protect(reader, part)),
            Self::Query => queried(guest.query(reader, *page)),
            Self::View => queried(guest.view(reader, *page)),
            Self::FlushMapped => queried(guest.flush_mapped(reader, part)),
            Self::Fault { .. } | Self::PermissionFault => {
                let fault = match self {
                    Self::Fault { write: true } => write_fault(page.raw()),
                    Self::Fault { write: false } => read_fault(page.raw()),
                    _ => {
                        mmu.arch().map_stage1(page.raw(), *page);
                        Syndrome { hpfar: 0, ..data_abort(page.raw(), code::PERMISSION | WRITE) }
                    }
                };
                let memory = Memory::at(0x100_0000, RW);
                let loaded = guest.load(reader).unwrap();
                let result = loaded.resolve(reader, &memory, fault);
                assert_eq!(memory.asked.borrow().len(), memory.unused.borrow().len());
                match result {
                    Err(FaultError::Corrupt(corrupt)) => Some((corrupt, None)),
                    other => panic!("{other:?}"),
                }
            }
            Self::Scan => {
                let mut log = guest.start_logging(reader, Initial::Dirty).unwrap();
                let mut found = vec![0; bits.len()];
                match log.scan(reader, part, &mut found) {
                    Err(ScanError::Corrupt(corrupt)) => Some((corrupt, None)),
                    other => panic!("{other:?}"),
                }
            }
            Self::Rearm => {
                let mut log = guest.start_logging(reader, Initial::Dirty).unwrap();
                match log.rearm(reader, part, &bits) {
                    Err(RearmError::Corrupt(corrupt)) => Some((corrupt, None)),
                    other => panic!("{other:?}"),
                }
            }
            Self::StartLogging => match guest.start_logging(reader, Initial::Clean) {
                Err(StartError::Corrupt(corrupt)) => Some((corrupt, None)),
                Err(other) => panic!("{other:?}"),
                Ok(_) => panic!("started"),
            },
            Self::Reclaim => {
                for _ in 0..4 {
                    reader.quiescent();
                    guest.reclaim(reader, u32::MAX).unwrap();
                }
                None
            }
            Self::Freeze => {
                let frozen = guest.freeze(reader).unwrap();
                assert!(frozen.thaw(reader).is_ok());
                None
            }
        }
    }
}

/// Stores the `bad` descriptor, runs the operation and looks at all that it must not have touched. Then the good descriptor is
/// put back.
fn check<G: Granule>(scene: &mut Scene<G>, level: Level, name: &str, bad: u64, operation: Operation, asked: IpaRange) {
    let what = format!("{} bytes a page, {operation:?} of {asked:?}, {name} at {level:?}", G::PAGE_SIZE);
    let memory = scene.mmu.memory();
    operation.prepare(scene);
    let live = memory.live();
    let entry = scene.entry(level);
    let good = entry.swap(bad, Ordering::Relaxed);
    let part = operation.range(scene, asked);
    let said = operation.run(scene, part);
    if operation.reports() {
        let ipa = scene.met_at(level, part);
        let (corrupt, done) = said.expect("it says so");
        assert_eq!(corrupt, Corrupt { ipa, level }, "{what}");
        if let Some(done) = done {
            assert_eq!(
                done.map(|done| (done.start(), done.last().raw() + 1)),
                (ipa > part.start()).then_some((part.start(), ipa.raw())),
                "{what}"
            );
        }
        assert_eq!(entry.load(Ordering::Relaxed), bad, "{what}: stored to it");
    }
    assert!(scene.foreign.is_unchanged(memory), "{what}: stored to a page that is not the guest's");
    // Of a map the tables of the prefix are new.
    assert!(memory.live() == live || operation == Operation::Map, "{what}: {live} tables became {}", memory.live());
    assert_eq!(scene.mmu.statistics().coupled_walks, 0, "{what}");
    entry.store(good, Ordering::Relaxed);
    assert_eq!(target(&scene.guest, &scene.reader, scene.page.raw()), Some(scene.page.raw()), "{what}");
}

/// Nothing is missing and nothing is there twice.
fn end<G: Granule>(scene: Scene<G>) {
    let Scene { guest, other, mut reader, mmu, .. } = scene;
    let size = guest.geometry().ipa_size();
    for guest in [guest, other] {
        unmap(&guest, &reader, 0, size);
        reclaim_all(&guest, &mut reader);
        guest.teardown(&reader).map_err(|(_, why)| why).unwrap();
    }
    every_page_is_there_once(mmu, PAGES, 0);
}

fn every_operation_at_every_level<G: Granule>(ipa_bits: u8) {
    for level in Scene::<G>::levels(ipa_bits) {
        let mut scene = Scene::<G>::new(ipa_bits);
        let parts = [range(scene.page.raw(), G::PAGE_SIZE), scene.surroundings()];
        for (name, bad) in scene.corruptions(level) {
            for operation in OPERATIONS {
                for part in parts {
                    check(&mut scene, level, name, bad, operation, part);
                    scene.restore();
                }
            }
        }
        end(scene);
    }
}

#[test]
fn every_operation_reports_a_bad_descriptor_and_follows_none() {
    every_operation_at_every_level::<Granule4K>(44);
}

#[test]
fn every_operation_reports_a_bad_descriptor_of_a_16k_tree_and_follows_none() {
    every_operation_at_every_level::<Granule16K>(44);
}

#[test]
fn every_operation_reports_a_bad_descriptor_of_a_64k_tree_and_follows_none() {
    every_operation_at_every_level::<Granule64K>(40);
}

fn a_teardown_with_every_bad_descriptor<G: Granule>(ipa_bits: u8) {
    for level in Scene::<G>::levels(ipa_bits) {
        for n in 0.. {
            let scene = Scene::<G>::new(ipa_bits);
            let Some((name, bad)) = scene.corruptions(level).get(n).copied() else { break };
            let what = format!("{} bytes a page, {name} at {level:?}", G::PAGE_SIZE);
            let lost = scene.below(level);
            scene.entry(level).store(bad, Ordering::Relaxed);
            let Scene { guest, other, reader, mmu, foreign, page, .. } = scene;
            let memory = mmu.memory();
            let live = memory.live();
            guest.teardown(&reader).map_err(|(_, why)| why).unwrap();
            assert_eq!(memory.live(), live / 2 + lost, "{what}");
            assert!(foreign.is_unchanged(memory), "{what}: stored to a page that is not the guest's");
            assert_eq!(target(&other, &reader, page.raw()), Some(page.raw()), "{what}");
            other.teardown(&reader).map_err(|(_, why)| why).unwrap();
            every_page_is_there_once(mmu, PAGES, lost);
        }
    }
}

#[test]
fn a_teardown_frees_what_is_the_trees_once_and_loses_what_hung_below_a_bad_descriptor() {
    a_teardown_with_every_bad_descriptor::<Granule4K>(44);
    a_teardown_with_every_bad_descriptor::<Granule16K>(44);
    a_teardown_with_every_bad_descriptor::<Granule64K>(40);
}

#[test]
fn an_entry_that_nobody_counted_goes_like_any_other_and_so_does_its_table() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, 2 * PAGE);
    let (_, table) = path(&guest, &reader, Ipa::new(0))[2];
    let leaf = read(mmu.memory(), table, 0);
    for index in [7, 8, 9] {
        word(mmu.memory(), table, index).store(leaf | (index as u64) << 12, Ordering::Relaxed);
    }
    // One that was counted is gone.
    word(mmu.memory(), table, 1).store(0, Ordering::Relaxed);
    assert_eq!(unmap(&guest, &reader, 0, TABLE).leaves, 4);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    reclaim_all(&guest, &mut reader);
    tear_down(guest, &reader);
}

/// An emptied table is known to the reclaimer; then the way to it is overwritten, at each level.
#[test]
fn the_reclaimer_takes_nothing_out_where_the_tree_does_not_lead_to_what_it_was_told_of() {
    for level in Scene::<Granule4K>::levels(44) {
        for n in 0.. {
            let mut scene = Scene::<Granule4K>::new(44);
            let Some((name, bad)) = scene.corruptions(level).get(n).copied() else { break };
            let what = format!("{name} at {level:?}");
            unmap(&scene.guest, &scene.reader, scene.table().raw(), 8 * PAGE);
            let entry = scene.entry(level);
            let good = entry.swap(bad, Ordering::Relaxed);
            let live = scene.mmu.memory().live();
            let mut unlinked = 0;
            for _ in 0..6 {
                scene.reader.quiescent();
                unlinked += scene.guest.reclaim(&scene.reader, u32::MAX).unwrap().unlinked;
            }
            // A leaf table is known to be empty by its count: whatever somebody wrote into it goes with it.
            let leaf = level == Level::L3;
            assert_eq!(unlinked, u32::from(leaf), "{what}");
            assert_eq!(live - scene.mmu.memory().live(), usize::from(leaf), "{what}");
            assert!(scene.foreign.is_unchanged(scene.mmu.memory()), "{what}");
            assert_eq!(scene.guest.reclaim(&scene.reader, 0).unwrap().hinted, 0, "{what}: and it does not wait for it");
            if !leaf {
                entry.store(good, Ordering::Relaxed);
            }
            scene.restore();
            assert_eq!(target(&scene.guest, &scene.reader, scene.page.raw()), Some(scene.page.raw()), "{what}");
            // What it was told of once is not told of again, and goes with the guest.
            let Scene { guest, other, reader, mmu, .. } = scene;
            for guest in [guest, other] {
                guest.teardown(&reader).map_err(|(_, why)| why).unwrap();
            }
            every_page_is_there_once(mmu, PAGES, 0);
        }
    }
}
