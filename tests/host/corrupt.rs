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
use stage2::dirty::{Content, DirtyBitmap, Initial, RearmError, ScanError, StartError, Word};
use stage2::error::{ChangeCause, Corrupt, RangeError, Stopped};
use stage2::fault::{FaultError, Syndrome};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule, Granule4K, Granule16K, Granule64K, IdRegisters};
use stage2::model::ModelArch;
use stage2::quiescence::Reader;
use stage2::stage2::{MapCause, MapError, QueryError, Stage2};

use crate::support::*;
use crate::tables::*;

const PAGES: usize = 24;
const PA_BITS: u32 = 44;
/// S2AP\[1\], in leaves: a scan looks at what is dirty.
const DIRTY: u64 = 1 << 7;

/// CPUs with 44 bits of physical address and no cache that needs nothing: a `protect` looks at the frames, too.
fn narrow() -> Features {
    features().meet(Features::from_id_registers(&IdRegisters {
        id_aa64mmfr0_el1: 1 << 20 | 4,
        id_aa64mmfr1_el1: 1 << 28 | 2 << 4,
        id_aa64mmfr2_el1: 1 << 48 | 1 << 40,
        ctr_el0: 0x8444_c004,
        ..IdRegisters::default()
    }))
}

/// Two guests with the same pages, one of them with a log.
struct Scene<G: Granule> {
    mmu: &'static Machine<ModelArch, G>,
    reader: Reader<'static>,
    guest: Guest<ModelArch, G>,
    other: Guest<ModelArch, G>,
    /// The page whose way the bad descriptor is on; the fourth of its table.
    page: Ipa,
    /// The tables there, from the root on, and of a page for which no table but the root is the same.
    path: Vec<(Level, Pa)>,
    elsewhere: Vec<(Level, Pa)>,
    /// The other guest's on the way to the same page.
    others: Vec<Pa>,
    /// All that the other guest has there, and a page that nobody has.
    foreign: Contents,
}

impl<G: Granule> Scene<G> {
    fn new(ipa_bits: u8) -> Self {
        let mmu = machine_of(ModelArch::new(), 2, PAGES, narrow());
        let geometry = Geometry::<G>::new(ipa_bits, &narrow(), GeometryOptions::default()).unwrap();
        let reader = reader(mmu, 0);
        let ipa = |indices: [u64; 4]| {
            let levels = [Level::L0, Level::L1, Level::L2, Level::L3].into_iter().zip(indices);
            let used = levels.filter(|(level, _)| *level >= geometry.start_level());
            Ipa::new(used.map(|(level, index)| index << G::shift(level)).sum())
        };
        let (page, elsewhere) = (ipa([1, 5, 7, 3]), ipa([2, 9, 11, 4]));
        let table = G::table_base(page, Level::L3);
        let words: Box<[Word]> = (0..2 * G::ENTRIES / 64).map(|_| Word::new(0)).collect();
        let log = DirtyBitmap { base: Ipa::new(table.raw() - Self::table_bytes()), words: Box::leak(words) };
        let guest: Guest<_, G> = Stage2::new(mmu, geometry, Some(log)).unwrap();
        let other: Guest<_, G> = Stage2::new(mmu, geometry, None).unwrap();
        for guest in [&guest, &other] {
            map(guest, &reader, table.raw() - 2 * G::PAGE_SIZE, 10 * G::PAGE_SIZE);
            map(guest, &reader, elsewhere.raw(), 2 * G::PAGE_SIZE);
        }
        let path_of = |guest, ipa| path(guest, &reader, ipa);
        let (path, elsewhere) = (path_of(&guest, page), path_of(&guest, elsewhere));
        let tables_of = |guest, ipa| path_of(guest, ipa).into_iter().map(|(_, table)| table);
        let others: Vec<Pa> = tables_of(&other, page).collect();
        let before = tables_of(&other, Ipa::new(table.raw() - 1)).next_back();
        let foreign = others.iter().copied().chain(before).chain([page_at::<G>(PAGES - 1)]);
        let foreign = Contents::of(mmu.memory(), foreign);
        Self { mmu, guest, other, page, path, elsewhere, others, foreign, reader }
    }

    fn levels(ipa_bits: u8) -> Vec<Level> {
        Self::new(ipa_bits).path.iter().map(|(level, _)| *level).collect()
    }

    /// As it was in the beginning.
    fn restore(&self) {
        let part = self.surroundings();
        unmap(&self.guest, &self.reader, part.start().raw(), part.bytes());
        map(&self.guest, &self.reader, part.start().raw(), part.bytes());
        self.mmu.arch().take_events();
    }

    fn table_bytes() -> u64 {
        G::entry_size(Level::L3) * G::ENTRIES as u64
    }

    fn table(&self) -> Ipa {
        G::table_base(self.page, Level::L3)
    }

    /// Two pages of the table before, and the eight that are mapped in this one.
    fn surroundings(&self) -> IpaRange {
        range(self.table().raw() - 2 * G::PAGE_SIZE, 10 * G::PAGE_SIZE)
    }

    fn logged(&self) -> IpaRange {
        range(self.table().raw() - Self::table_bytes(), 2 * Self::table_bytes())
    }

    fn table_at(path: &[(Level, Pa)], level: Level) -> Pa {
        path.iter().find(|(at, _)| *at == level).expect("a level of the tree").1
    }

    fn entry(&self, level: Level) -> &'static std::sync::atomic::AtomicU64 {
        word(self.mmu.memory(), Self::table_at(&self.path, level), G::index(self.page, level))
    }

    /// How many tables hang below the entry of `level`.
    fn below(&self, level: Level) -> usize {
        match level {
            Level::L3 => 0,
            Level::L2 => 1,
            // The leaf table before is below it, too.
            Level::L1 => 3,
            Level::L0 => 4,
        }
    }

    /// Every bad descriptor there is for the entry of `level`, by name.
    fn corruptions(&self, level: Level) -> Vec<(&'static str, u64)> {
        let table = |pa: Pa| pa.raw() | 0b11;
        let mut bad = vec![
            ("a marker nobody makes", 7 << 56 | DIRTY),
            ("another marker nobody makes", 6 << 56 | DIRTY),
            ("content without validity or marker", self.page.raw() | 0b10 | DIRTY),
            ("a bit alone", 1 << 62 | DIRTY),
        ];
        let Some(child) = level.child() else {
            bad.extend([
                ("the encoding that level 3 reserves", 0x8000_0001 | DIRTY),
                ("a page beyond the physical addresses", 1 << PA_BITS | 0b11 | DIRTY | 1 << 10),
            ]);
            if G::PAGE_SHIFT > 12 {
                bad.push(("a page that is not aligned", 0x8000_1003 | DIRTY | 1 << 10));
            }
            return bad;
        };
        let root = self.path[0].1;
        bad.extend([
            ("a table outside table memory", 0x7fff_0000_0003),
            ("a table before table memory", 0b11),
            ("a table page that is free", table(page_at::<G>(PAGES - 1))),
            ("itself", table(Self::table_at(&self.path, level))),
            ("the root", table(root)),
            ("a subtree that hangs elsewhere, too", table(Self::table_at(&self.elsewhere, child))),
            ("a table of another guest", table(self.others[child as usize - self.path[0].0 as usize])),
            ("a block beyond the physical addresses", 1 << PA_BITS | 0b01 | DIRTY | 1 << 10),
            ("a block that is not aligned to its size", (G::entry_size(level) / 2) | 0b01 | DIRTY | 1 << 10),
        ]);
        if child != Level::L3 {
            bad.push(("a table of a lower level", table(Self::table_at(&self.elsewhere, Level::L3))));
        }
        if level < G::FIRST_BLOCK_LEVEL {
            bad.push(("a block where there is none", 0b01 | DIRTY | 1 << 10));
        }
        if G::PAGE_SHIFT > 12 {
            bad.push(("a table that is not aligned", table(Self::table_at(&self.elsewhere, child).offset(0x1000))));
        }
        bad
    }

    /// Where a walk along `range` meets the entry of `level`.
    fn met_at(&self, level: Level, range: IpaRange) -> Ipa {
        self.page.align_down(G::shift(level)).max(range.start())
    }
}

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
    every_operation_at_every_level::<Granule16K>(36);
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
    a_teardown_with_every_bad_descriptor::<Granule16K>(36);
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
