//! Words of any kind, stored at any place of table memory by somebody who should not, between operations of two guests: no
//! operation panics, starts over or loses its way, each answers or says that the tree is corrupt; and when both guests are torn
//! down each table page went back at most once.

use std::sync::atomic::Ordering;

use proptest::collection::vec;
use proptest::prelude::*;
use stage2::addr::{Ipa, IpaRange, Pa};
use stage2::descriptor::Permissions;
use stage2::dirty::{Content, DirtyBitmap, DirtyLog, Initial, Word};
use stage2::geometry::{Geometry, Granule, Granule4K, Granule16K, Granule64K};
use stage2::memory::TableMemory;
use stage2::mmu::Mmu;
use stage2::model::{ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::Stage2;

use crate::support::*;
use crate::tables::page_at;

const PAGES: usize = 40;
/// Pages of each window of addresses that is worked on.
const WINDOW: u64 = 10;
const LOGGED: u64 = 512;

/// A word for an entry.
#[derive(Clone, Copy, Debug)]
enum Bad {
    Any(u64),
    /// To a page of table memory, with these bits beside.
    Table(usize, u64),
    /// What another place holds.
    Copy(usize, usize),
    /// The same with these bits turned.
    Turned(u64),
    /// Nothing.
    Empty,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Store { page: usize, index: usize, bad: Bad },
    Map { frame: u64 },
    Unmap,
    UnmapWith,
    Protect(Permissions),
    WriteProtect,
    Look,
    Fault { iss: u64, execute: bool },
    Harvest,
    StartClean,
    Freeze,
    Reclaim,
}

/// Which guest, which window, and which of its pages.
type At = (usize, usize, u64, u64);

/// Bits of a few words: of an address, of a marker, of permissions, of nothing in particular.
fn bits() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u64..8).prop_map(|marker| marker << 56),
        (0u64..4096).prop_map(|low| low & !1),
        Just(0),
    ]
}

/// Where entries are used, mostly.
fn index() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..6, 2 => Just(usize::MAX), 1 => any::<usize>()]
}

fn step() -> impl Strategy<Value = Step> {
    let bad = prop_oneof![
        2 => any::<u64>().prop_map(Bad::Any),
        4 => (0..PAGES, bits()).prop_map(|(page, bits)| Bad::Table(page, bits)),
        2 => (0..PAGES, 0usize..6).prop_map(|(page, index)| Bad::Copy(page, index)),
        4 => bits().prop_map(Bad::Turned),
        1 => Just(Bad::Empty),
    ];
    let permissions = prop_oneof![Just(Permissions::R), Just(Permissions::RW), Just(Permissions::RX)];
    prop_oneof![
        6 => (0..PAGES, index(), bad).prop_map(|(page, index, bad)| Step::Store { page, index, bad }),
        5 => (0u64..1 << 20).prop_map(|frame| Step::Map { frame }),
        2 => Just(Step::Unmap),
        2 => Just(Step::UnmapWith),
        1 => permissions.prop_map(Step::Protect),
        1 => Just(Step::WriteProtect),
        1 => Just(Step::Look),
        3 => (prop_oneof![Just(7u64), Just(11), Just(15)], any::<bool>(), any::<bool>())
            .prop_map(|(code, write, execute)| Step::Fault { iss: code | u64::from(write) << 6, execute }),
        2 => Just(Step::Harvest),
        1 => Just(Step::StartClean),
        1 => Just(Step::Freeze),
        3 => Just(Step::Reclaim),
    ]
}

fn at() -> impl Strategy<Value = At> {
    (0usize..2, 0usize..4, 0..WINDOW, 1..=WINDOW)
}

type Tree<'h, G> = Stage2<'h, ModelArch, ModelMemory<G>>;

fn store<G: Granule>(memory: &ModelMemory<G>, page: usize, index: usize, bad: Bad) {
    // SAFETY: modelled guests have no memory to lose.
    let entries = |page| unsafe { memory.table(page_at::<G>(page)) }.unwrap().entries;
    let word = &entries(page)[if index == usize::MAX { G::ENTRIES - 1 } else { index % G::ENTRIES }];
    let old = word.load(Ordering::Relaxed);
    let new = match bad {
        Bad::Any(raw) => raw,
        Bad::Table(to, bits) => page_at::<G>(to).raw() | 0b11 | bits,
        Bad::Copy(from, index) => entries(from)[index].load(Ordering::Relaxed),
        Bad::Turned(bits) => old ^ bits,
        Bad::Empty => 0,
    };
    word.store(new, Ordering::Relaxed);
}

/// What an operation says is its own business; that it comes back is this test's.
fn operate<G: Granule>(guest: &Tree<'_, G>, reader: &mut Reader<'_>, part: IpaRange, step: Step) {
    let mmu = guest.mmu();
    let logged = range(0, LOGGED.min(part.bytes() / G::PAGE_SIZE) * G::PAGE_SIZE);
    let harvest = |log: &mut DirtyLog<'_, '_, ModelArch, ModelMemory<G>>, reader: &Reader<'_>| {
        let mut bitmap = [0; LOGGED as usize / 64];
        let _ = log.scan(reader, logged, &mut bitmap);
        let _ = log.rearm(reader, logged, &bitmap);
    };
    match step {
        Step::Store { page, index, bad } => store(mmu.memory(), page, index, bad),
        Step::Map { frame } => _ = guest.map(reader, part, Pa::new(frame * G::PAGE_SIZE), RW, Content::New),
        Step::Unmap => _ = guest.unmap(reader, part),
        Step::UnmapWith => {
            let _ = guest.unmap_with(reader, part, |leaf| {
                assert!(part.contains(leaf.ipa), "{} is not in {part:?}", leaf.ipa);
            });
        }
        Step::Protect(permissions) => _ = guest.protect(reader, part, permissions),
        Step::WriteProtect => _ = guest.write_protect(reader, part),
        Step::Look => {
            for ipa in [part.start(), part.last()] {
                if let Ok(Some(mapping)) = guest.query(reader, ipa) {
                    assert!(mapping.pa.raw() < guest.geometry().pa_size(), "{mapping:?}");
                }
                let _ = guest.view(reader, ipa);
            }
            let _ = guest.flush_mapped(reader, part);
        }
        Step::Fault { iss, execute } => {
            let ipa = part.start().raw();
            mmu.arch().map_stage1(ipa, part.start());
            let fault = if execute { instruction_abort(ipa, iss) } else { data_abort(ipa, iss) };
            let loaded = guest.load(reader).unwrap();
            let _ = loaded.resolve(reader, &Memory::at(0x10_0000, RW), fault);
        }
        Step::Harvest => {
            if let Ok(mut log) = guest.start_logging(reader, Initial::Dirty) {
                harvest(&mut log, reader);
            }
        }
        Step::StartClean => {
            if let Ok(mut log) = guest.start_logging(reader, Initial::Clean) {
                harvest(&mut log, reader);
            }
        }
        Step::Freeze => {
            let frozen = guest.freeze(reader).unwrap();
            let _ = guest.query(reader, part.start());
            assert!(frozen.thaw(reader).is_ok());
        }
        Step::Reclaim => {
            reader.quiescent();
            guest.reclaim(reader, 8).unwrap();
        }
    }
}

fn run<G: Granule>(ipa_bits: u8, steps: &[(At, Step)]) {
    let slots = cpus(1);
    let mmu = Mmu::new(ModelArch::new(), ModelMemory::<G>::new(PAGES), features(), &slots);
    let geometry: Geometry<G> = geometry(ipa_bits);
    let words: [Vec<Word>; 2] = [0, 1].map(|_| (0..LOGGED / 64).map(|_| Word::new(0)).collect());
    let [one, other] = words.each_ref().map(|words| {
        let log = DirtyBitmap { base: Ipa::new(0), words };
        Stage2::new(&mmu, geometry, Some(log)).unwrap()
    });
    let guests = [one, other];
    let mut reader = mmu.reader(stage2::cpu::CpuIndex(0)).unwrap();
    let table = G::PAGE_SIZE * G::ENTRIES as u64;
    let half = WINDOW / 2 * G::PAGE_SIZE;
    let windows = [0, table - half, G::entry_size(geometry.start_level()) - half, geometry.ipa_size() - 2 * half];
    for guest in &guests {
        for window in windows {
            let _ = guest.map(&reader, range(window, half), Pa::new(window), RW, Content::New);
        }
    }
    for ((guest, window, first, count), step) in steps {
        let part = range(windows[*window] + first * G::PAGE_SIZE, (*count).min(WINDOW - first) * G::PAGE_SIZE);
        operate(&guests[*guest], &mut reader, part, *step);
        mmu.arch().take_events();
    }
    // Nobody else is here: what a walk finds wrong once is wrong, and it does not look again.
    let statistics = mmu.statistics();
    assert_eq!((statistics.revalidation_retries, statistics.coupled_walks), (0, 0));
    for guest in guests {
        assert!(guest.teardown(&reader).is_ok());
    }
    let lost = mmu.memory().live();
    let mut back: Vec<Pa> = std::iter::from_fn(|| mmu.memory().alloc().ok()).collect();
    assert_eq!(back.len(), PAGES - lost);
    back.sort_unstable();
    back.dedup();
    assert_eq!(back.len(), PAGES - lost, "a page went back twice");
}

fn sequences(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(sequences(1500))]

    #[test]
    fn whatever_is_stored_into_4k_tables_no_operation_loses_its_way(
        ipa_bits in prop_oneof![Just(32), Just(40), Just(48)],
        steps in vec((at(), step()), 1..60),
    ) {
        run::<Granule4K>(ipa_bits, &steps);
    }
}

proptest! {
    #![proptest_config(sequences(60))]

    #[test]
    fn whatever_is_stored_into_16k_tables_no_operation_loses_its_way(
        ipa_bits in prop_oneof![Just(36), Just(48)],
        steps in vec((at(), step()), 1..60),
    ) {
        run::<Granule16K>(ipa_bits, &steps);
    }

    #[test]
    fn whatever_is_stored_into_64k_tables_no_operation_loses_its_way(
        ipa_bits in prop_oneof![Just(32), Just(44), Just(48)],
        steps in vec((at(), step()), 1..60),
    ) {
        run::<Granule64K>(ipa_bits, &steps);
    }
}
