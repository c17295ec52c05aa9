//! The tree against a flat map: random sequences of operations, on several geometries, at the places where tables and
//! root tables meet and the address space ends.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::cpu::CpuIndex;
use stage2::descriptor::{Attributes, MemoryType, Permissions};
use stage2::dirty::Content;
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::geometry::{Geometry, GeometryOptions, Granule, Granule4K, Granule16K, Granule64K};
use stage2::mmu::Mmu;
use stage2::model::{ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::{MapCause, MapError, Stage2};

use crate::support::{cpus, features, read_fault, write_fault};

/// Pages of each window of addresses that a sequence works on.
const WINDOW: u64 = 24;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Map {
        attributes: Attributes,
        frame: u64,
    },
    /// The same, and the allocation after so many fails.
    MapStarved {
        frame: u64,
        successes: u64,
    },
    Unmap,
    UnmapWith,
    Protect(Permissions),
    WriteProtect,
    /// Faults on the first page.
    Touch {
        write: bool,
    },
    /// Everything is looked at while the guest is frozen; then the range is unmapped there and then.
    UnmapFrozen,
    Reclaim {
        budget: u32,
    },
}

/// An operation, and the pages of one window that it is for.
#[derive(Clone, Copy, Debug)]
struct Step {
    window: usize,
    first: u64,
    count: u64,
    operation: Operation,
}

fn permissions() -> impl Strategy<Value = Permissions> {
    prop_oneof![Just(Permissions::R), Just(Permissions::RW), Just(Permissions::RX), Just(Permissions::RWX)]
}

fn operation() -> impl Strategy<Value = Operation> {
    let attributes = prop_oneof![permissions().prop_map(Attributes::normal), Just(Attributes::device(true))];
    prop_oneof![
        4 => (attributes, 0u64..1 << 20).prop_map(|(attributes, frame)| Operation::Map { attributes, frame }),
        2 => (0u64..1 << 20, 0u64..4).prop_map(|(frame, successes)| Operation::MapStarved { frame, successes }),
        2 => Just(Operation::Unmap),
        2 => Just(Operation::UnmapWith),
        1 => permissions().prop_map(Operation::Protect),
        1 => Just(Operation::WriteProtect),
        2 => any::<bool>().prop_map(|write| Operation::Touch { write }),
        1 => Just(Operation::UnmapFrozen),
        2 => (0u32..8).prop_map(|budget| Operation::Reclaim { budget }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    (0usize..5, 0..WINDOW, 1..=WINDOW, operation()).prop_map(|(window, first, count, operation)| Step {
        window,
        first,
        count: count.min(WINDOW - first),
        operation,
    })
}

/// What the tree should be, page by page.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Expected {
    pa: u64,
    permissions: Permissions,
    memory: MemoryType,
}

/// All memory may be read and written, a page at a frame that its address tells.
struct Everywhere;

fn frame_of(ipa: Ipa) -> Pa {
    Pa::new(ipa.raw() ^ 1 << 31)
}

impl Backing for Everywhere {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(Attributes::normal(Permissions::RW))
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: frame_of(ipa), content: Content::New })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {
        unreachable!("nobody else is here");
    }
}

struct Flat<'h, G: Granule> {
    guest: Stage2<'h, ModelArch, ModelMemory<G>>,
    windows: [u64; 5],
    pages: BTreeMap<u64, Expected>,
}

impl<G: Granule> Flat<'_, G> {
    fn check(&self, reader: &Reader<'_>) {
        for base in self.windows {
            for page in 0..WINDOW {
                let ipa = base + page * G::PAGE_SIZE;
                let found = self.guest.query(reader, Ipa::new(ipa + 8)).unwrap().map(|mapping| {
                    assert_eq!(mapping.level, Level::L3);
                    Expected {
                        pa: mapping.pa.raw() - 8,
                        permissions: mapping.permissions,
                        memory: mapping.memory.unwrap(),
                    }
                });
                assert_eq!(found, self.pages.get(&ipa).copied(), "{ipa:#x}");
            }
        }
    }

    fn of(&mut self, range: IpaRange) -> impl Iterator<Item = (&u64, &mut Expected)> {
        self.pages.range_mut(range.start().raw()..=range.last().raw())
    }

    fn remove(&mut self, range: IpaRange) -> Vec<(u64, Expected)> {
        let removed: Vec<_> = self.of(range).map(|(ipa, page)| (*ipa, *page)).collect();
        self.pages.retain(|ipa, _| !range.contains(Ipa::new(*ipa)));
        removed
    }

    fn apply(&mut self, reader: &mut Reader<'_>, step: Step) {
        let start = self.windows[step.window] + step.first * G::PAGE_SIZE;
        let range = IpaRange::new(Ipa::new(start), step.count * G::PAGE_SIZE).unwrap();
        match step.operation {
            Operation::Map { attributes, frame } => self.map(reader, range, attributes, frame * G::PAGE_SIZE, false),
            Operation::MapStarved { frame, successes } => {
                let memory = self.guest.mmu().memory();
                memory.fail_after(successes);
                self.map(reader, range, Attributes::normal(Permissions::RW), frame * G::PAGE_SIZE, true);
                memory.fail_after(u64::MAX);
            }
            Operation::Unmap => {
                let unmapped = *self.guest.unmap(reader, range).unwrap().peek();
                assert_eq!(unmapped.leaves as usize, self.remove(range).len());
            }
            Operation::UnmapWith => {
                let mut frames = Vec::new();
                let unmapped = self
                    .guest
                    .unmap_with(reader, range, |leaf| frames.push((leaf.ipa.raw(), leaf.frame.peek().raw())))
                    .unwrap();
                let expected: Vec<_> = self.remove(range).iter().map(|(ipa, page)| (*ipa, page.pa)).collect();
                assert_eq!(frames, expected);
                assert_eq!(unmapped.leaves as usize, frames.len());
            }
            Operation::Protect(permissions) => {
                self.guest.protect(reader, range, permissions).unwrap();
                self.of(range).for_each(|(_, page)| page.permissions = permissions);
            }
            Operation::WriteProtect => self.guest.write_protect(reader, range).unwrap(),
            Operation::Touch { write } => {
                let fault = if write { write_fault(start) } else { read_fault(start) };
                let outcome = self.guest.load(reader).unwrap().resolve(reader, &Everywhere, fault).unwrap();
                let page = *self.pages.entry(start).or_insert(Expected {
                    pa: frame_of(Ipa::new(start)).raw(),
                    permissions: Permissions::RW,
                    memory: MemoryType::Normal,
                });
                let passes = !write || page.permissions.write;
                assert!(if passes { outcome == Outcome::Resumed } else { matches!(outcome, Outcome::Reflect(_)) });
                if write && passes {
                    assert!(self.guest.query(reader, Ipa::new(start)).unwrap().unwrap().dirty);
                }
            }
            Operation::UnmapFrozen => {
                let frozen = self.guest.freeze(reader).unwrap();
                self.check(reader);
                let unmapped = *self.guest.unmap(reader, range).unwrap().peek();
                assert!(frozen.thaw(reader).is_ok());
                assert_eq!(unmapped.leaves as usize, self.remove(range).len());
            }
            Operation::Reclaim { budget } => {
                reader.quiescent();
                self.guest.reclaim(reader, budget).unwrap();
            }
        }
    }

    /// Maps up to the first page that is in the way, or the first table that is not to be had.
    fn map(&mut self, reader: &Reader<'_>, range: IpaRange, attributes: Attributes, frame: u64, starved: bool) {
        let start = range.start().raw();
        let obstacle = self.of(range).map(|(ipa, _)| *ipa).next();
        let result = self.guest.map(reader, range, Pa::new(frame), attributes, Content::New);
        let end = match result {
            Ok(()) => {
                assert_eq!(obstacle, None);
                start + range.bytes()
            }
            Err(MapError::Stopped(stopped)) => {
                let at = stopped.at.raw();
                assert_eq!(stopped.done, IpaRange::new(Ipa::new(start), at - start));
                match stopped.cause {
                    MapCause::Exists => assert_eq!(obstacle, Some(at)),
                    MapCause::OutOfTables | MapCause::Retry => {
                        assert!(starved && obstacle.is_none_or(|obstacle| at <= obstacle), "{stopped:?}");
                        assert!(at == start || G::index(stopped.at, Level::L3) == 0, "a table or none of it");
                    }
                    MapCause::Corrupt(_) => panic!("{stopped:?}"),
                }
                at
            }
            Err(other) => panic!("{other:?}"),
        };
        for ipa in (start..end).step_by(G::PAGE_SIZE as usize) {
            let pa = frame + (ipa - start);
            let page = Expected { pa, permissions: attributes.permissions, memory: attributes.memory };
            assert_eq!(self.pages.insert(ipa, page), None);
        }
    }
}

/// Does all `steps` on a new guest with `ipa_bits`, and checks it after each few.
fn run<G: Granule>(ipa_bits: u8, steps: &[Step]) {
    let slots = cpus(1);
    let mmu = Mmu::new(ModelArch::new(), ModelMemory::<G>::new(16 + 32), features(), &slots);
    let geometry = Geometry::<G>::new(ipa_bits, &features(), GeometryOptions::default()).unwrap();
    let half = WINDOW / 2 * G::PAGE_SIZE;
    let table = G::entry_size(Level::L2);
    let root_table = G::entry_size(geometry.start_level()) * G::ENTRIES as u64;
    let size = geometry.ipa_size();
    let mut windows = [0, 3 * table - half, root_table.min(size / 2) - half, size / 2 + 2 * table - half, 0];
    windows[4] = size - 2 * half;
    let mut flat = Flat { guest: Stage2::new(&mmu, geometry, None).unwrap(), windows, pages: BTreeMap::new() };
    let mut reader = mmu.reader(CpuIndex(0)).unwrap();
    for (n, step) in steps.iter().enumerate() {
        flat.apply(&mut reader, *step);
        if n % 4 == 0 {
            flat.check(&reader);
        }
        // Nobody looks at what is recorded.
        mmu.arch().take_events();
    }
    flat.check(&reader);
    // Everything that was emptied comes back by itself, and the rest with the guest.
    let tables = |guest: &Stage2<'_, _, ModelMemory<G>>, reader: &mut Reader<'_>| {
        for _ in 0..20 {
            reader.quiescent();
            guest.reclaim(reader, 100).unwrap();
        }
        mmu.memory().live()
    };
    let everything = IpaRange::new(Ipa::new(0), size).unwrap();
    let live = tables(&flat.guest, &mut reader);
    assert_eq!(live, expected_tables(&flat));
    assert_eq!(flat.guest.unmap(&reader, everything).unwrap().peek().leaves as usize, flat.pages.len());
    assert_eq!(tables(&flat.guest, &mut reader), geometry.root_tables());
    assert!(flat.guest.teardown(&reader).is_ok());
    assert_eq!(mmu.memory().live(), 0);
}

/// The root, and a table of each level below it wherever there is a page.
fn expected_tables<G: Granule>(flat: &Flat<'_, G>) -> usize {
    let geometry = flat.guest.geometry();
    let below = |level: Level| {
        let mut bases: Vec<u64> = flat.pages.keys().map(|ipa| G::table_base(Ipa::new(*ipa), level).raw()).collect();
        bases.dedup();
        bases.len()
    };
    let levels = [Level::L1, Level::L2, Level::L3].into_iter().filter(|level| *level > geometry.start_level());
    geometry.root_tables() + levels.map(below).sum::<usize>()
}

fn sequences(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(sequences(256))]

    /// 40, 42 and 43 bits have 2, 8 and 16 root tables, 48 bits four levels.
    #[test]
    fn a_tree_of_4k_tables_is_a_flat_map(
        ipa_bits in prop_oneof![Just(32), Just(36), Just(40), Just(42), Just(43), Just(44), Just(48)],
        steps in vec(step(), 1..40),
    ) {
        run::<Granule4K>(ipa_bits, &steps);
    }
}

proptest! {
    #![proptest_config(sequences(24))]

    #[test]
    fn a_tree_of_16k_tables_is_a_flat_map(
        ipa_bits in prop_oneof![Just(32), Just(40), Just(47), Just(48)],
        steps in vec(step(), 1..40),
    ) {
        run::<Granule16K>(ipa_bits, &steps);
    }

    #[test]
    fn a_tree_of_64k_tables_is_a_flat_map(
        ipa_bits in prop_oneof![Just(32), Just(42), Just(44), Just(48)],
        steps in vec(step(), 1..40),
    ) {
        run::<Granule64K>(ipa_bits, &steps);
    }
}
