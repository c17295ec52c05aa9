//! A trace by hand: a page is mapped, seen by a guest, unmapped and given back. Whole it shows nothing wrong; without any one of its
//! steps it does.

use stage2::descriptor::Descriptor;
use stage2_trace_events::instruction::StoreKind;
use stage2_trace_events::mark::{Lessened, Mark, Pool};
use stage2_trace_events::{Happening, Record};

use super::findings::{Findings, Watcher};
use super::{Expected, Traced};

/// 252 tables: so many fit behind their metadata.
const POOL: Pool = Pool { start: 0x4100_0000, bytes: 1 << 20, page_shift: 12, lessened: Lessened::No };
const ROOT: u64 = 0x4100_4000;
const LEAVES: u64 = 0x4100_5000;
const FRAME: u64 = 0x5000_0000;
/// Where in its metadata a table's lock is.
const LOCK: u64 = 16;

/// Start level 2, 30 bits of IPA, 16-bit VMIDs.
const VTCR: u64 = 1 << 31 | 1 << 19 | (64 - 30);
const VTTBR: u64 = 7 << 48 | ROOT;
const VM: u64 = 1;
/// Page 5: valid, read and write, accessed.
const LEAF: u64 = FRAME | 0b11 | 0b11 << 6 | 0b11 << 8 | 1 << 10 | 0b1111 << 2;

const DSB_ISHST: u32 = 0xd503_3a9f;
const DSB_ISH: u32 = 0xd503_3b9f;
const ISB: u32 = 0xd503_3fdf;
const IPAS2E1IS: u32 = 0xd50c_8020;
const VMALLE1IS: u32 = 0xd508_831f;
const MSR_VTCR: u32 = 0xd51c_2140;
const MSR_VTTBR: u32 = 0xd51c_2100;
const MSR_HCR: u32 = 0xd51c_1100;

const RELEASE: StoreKind = StoreKind { release: true, atomic: false };
const ATOMIC: StoreKind = StoreKind { release: false, atomic: true };

/// A step of the trace: what is missed if it is left out, and its records.
struct Step {
    missed_as: Option<&'static str>,
    records: Vec<Record>,
}

fn record(cpu: u8, what: Happening) -> Record {
    Record { cpu, pc: 0x4020_0000, what }
}

fn execute(cpu: u8, opcode: u32, operand: u64) -> Record {
    record(cpu, Happening::Executed { opcode, operand })
}

fn lock(table: u64) -> [Record; 2] {
    let pa = POOL.start + (table - ROOT) / 64 + LOCK;
    let store = Happening::Store { pa, value: 1, size: 0, kind: ATOMIC };
    [record(0, Happening::Found { pa, value: 0, size: 0 }), record(0, store)]
}

fn unlock(table: u64) -> Record {
    let pa = POOL.start + (table - ROOT) / 64 + LOCK;
    record(0, Happening::Store { pa, value: 0, size: 0, kind: RELEASE })
}

fn store(table: u64, index: u64, value: u64) -> Record {
    record(0, Happening::Store { pa: table + 8 * index, value, size: 3, kind: RELEASE })
}

fn locked_store(table: u64, index: u64, value: u64) -> Vec<Record> {
    let mut records = lock(table).to_vec();
    records.extend([store(table, index, value), unlock(table)]);
    records
}

fn trace() -> Vec<Step> {
    let must = |missed_as, records: &[Record]| Step { missed_as: Some(missed_as), records: records.to_vec() };
    let given = |table| record(0, Happening::Mark(Mark::TableGiven { table, order: 0 }));
    let may = |records: &[Record]| Step { missed_as: None, records: records.to_vec() };
    let marker = Descriptor::from_raw(LEAF).into_removing(0).raw();
    vec![
        may(&[given(ROOT)]),
        must("FreedTableUsed", &[given(LEAVES)]),
        may(&locked_store(ROOT, 0, LEAVES | 0b11)),
        may(&locked_store(LEAVES, 5, LEAF)),
        may(&[execute(0, DSB_ISHST, 0)]),
        // A guest runs on CPU 1, and has the page in its TLB.
        may(&[execute(1, MSR_VTCR, VTCR), execute(1, MSR_VTTBR, VTTBR), execute(1, MSR_HCR, VM), execute(1, ISB, 0)]),
        must("StoredWithoutLock", &lock(LEAVES)),
        may(&[store(LEAVES, 5, marker), unlock(LEAVES)]),
        must("SettledWhileCached", &[execute(0, DSB_ISHST, 0)]),
        must("SettledWhileCached", &[execute(0, MSR_VTCR, VTCR), execute(0, MSR_VTTBR, VTTBR)]),
        must("ContextNotSynchronized", &[execute(0, ISB, 0)]),
        must("SettledWhileCached", &[execute(0, IPAS2E1IS, 5)]),
        must("SettledWhileCached", &[execute(0, DSB_ISH, 0)]),
        must("SettledWhileCached", &[execute(0, VMALLE1IS, 0)]),
        must("SettledWhileCached", &[execute(0, DSB_ISH, 0)]),
        may(&[execute(0, ISB, 0)]),
        may(&locked_store(LEAVES, 5, 0)),
        may(&[record(0, Happening::Mark(Mark::FrameFreed { frame: FRAME, bytes: 4096 }))]),
    ]
}

fn findings(pool: Pool, steps: impl IntoIterator<Item = Step>) -> Findings {
    let mut watcher = Watcher::new(2);
    watcher.look(&record(0, Happening::Mark(Mark::Pool(pool)))).unwrap();
    for record in steps.into_iter().flat_map(|step| step.records) {
        watcher.look(&record).unwrap();
    }
    watcher.into_findings()
}

#[test]
fn a_trace_that_keeps_the_rules_shows_nothing_wrong() {
    let found = findings(POOL, trace());
    assert_eq!(found.violations, [""; 0]);
    assert_eq!((found.pools, found.twins), (1, 0));
    assert!(found.events > 20, "{} events", found.events);
}

#[test]
fn a_trace_that_lacks_any_of_its_steps_shows_which_rule_was_broken() {
    let steps = trace();
    let load_bearing = steps.iter().enumerate().filter_map(|(left_out, step)| Some((left_out, step.missed_as?)));
    for (left_out, kind) in load_bearing {
        let rest = trace().into_iter().enumerate().filter(|&(number, _)| number != left_out);
        let found = findings(POOL, rest.map(|(_, step)| step));
        let first = found.violations.first().unwrap_or_else(|| panic!("nothing is wrong without step {left_out}"));
        assert!(first.starts_with(kind), "without step {left_out}: {first}");
    }
}

#[test]
fn the_frame_of_a_page_that_is_still_mapped_is_not_given_back() {
    let steps = trace().into_iter().enumerate().filter(|&(number, _)| !(6..=16).contains(&number));
    let found = findings(POOL, steps.map(|(_, step)| step));
    assert!(found.violations[0].starts_with("FrameFreedWhileCached"), "{:?}", found.violations);
}

#[test]
fn a_lessened_library_is_to_be_found_out_and_not_to_be_blamed() {
    let lessened = |lessened| Pool { lessened, ..POOL };
    let without_tlbi = || trace().into_iter().enumerate().filter(|&(number, _)| number != 11).map(|(_, step)| step);
    let found = findings(lessened(Lessened::Visibly), without_tlbi());
    assert_eq!((found.pools, found.twins, found.twins_caught, found.violations.len()), (0, 1, 1, 0));
    assert_eq!(found.caught_by["SettledWhileCached"], 1);
    let found = findings(lessened(Lessened::Visibly), trace());
    assert_eq!((found.twins, found.twins_caught), (1, 0));
    let found = findings(lessened(Lessened::Unjudged), without_tlbi());
    assert_eq!((found.pools, found.twins, found.violations.len()), (0, 0, 0));
}

#[test]
fn what_the_hardware_wrote_is_found_and_what_nobody_wrote_is_blamed() {
    let mapped = || trace().into_iter().take(6);
    let found = |value| {
        let records = vec![record(0, Happening::Found { pa: LEAVES + 40, value, size: 3 })];
        findings(POOL, mapped().chain([Step { missed_as: None, records }])).violations
    };
    assert_eq!(found(LEAF), [""; 0]);
    assert!(found(LEAF & !(1 << 7))[0].contains("by itself"), "the hardware takes no permission");
    assert!(found(LEAF | 1 << 12)[0].contains("by itself"), "and moves no frame");
}

#[test]
fn a_table_is_filled_without_its_lock_until_an_entry_leads_to_it() {
    let link = || Step { missed_as: None, records: locked_store(ROOT, 0, LEAVES | 0b11) };
    let fill = || Step { missed_as: None, records: vec![store(LEAVES, 5, LEAF)] };
    let given = || trace().into_iter().take(2);
    assert_eq!(findings(POOL, given().chain([fill(), link()])).violations, [""; 0]);
    let found = findings(POOL, given().chain([link(), fill()]));
    assert!(found.violations[0].starts_with("StoredWithoutLock"), "{:?}", found.violations);
}

#[test]
fn half_a_descriptor_is_not_stored() {
    let half = Happening::Store { pa: LEAVES + 40, value: 0, size: 2, kind: RELEASE };
    let step = Step { missed_as: None, records: vec![record(0, half)] };
    let found = findings(POOL, trace().into_iter().take(6).chain([step]));
    assert!(found.violations[0].contains("in parts"), "{:?}", found.violations);
}

#[test]
fn a_trace_of_another_machine_or_another_layout_is_an_error() {
    let mut watcher = Watcher::new(1);
    assert!(watcher.look(&execute(1, ISB, 0)).is_err(), "a CPU there is not");
    let tiny = Pool { bytes: 4096, ..POOL };
    assert!(watcher.look(&record(0, Happening::Mark(Mark::Pool(tiny)))).is_err(), "no table fits");
    let mut watcher = Watcher::new(1);
    watcher.look(&record(0, Happening::Mark(Mark::Pool(POOL)))).unwrap();
    lock(ROOT).iter().for_each(|record| watcher.look(record).unwrap());
    let elsewhere = lock(LEAVES).map(|Record { cpu, pc, what }| {
        let what = match what {
            Happening::Found { pa, value, size } => Happening::Found { pa: pa + 8, value, size },
            Happening::Store { pa, value, size, kind } => Happening::Store { pa: pa + 8, value, size, kind },
            other => other,
        };
        Record { cpu, pc, what }
    });
    assert!(elsewhere.iter().try_for_each(|record| watcher.look(record)).is_err(), "a lock elsewhere");
}

#[test]
fn a_trace_in_which_nothing_was_checked_proves_nothing() {
    let traced = |findings, failures| Traced { findings, failures, seconds: 1.0 };
    let whole = findings(POOL, trace());
    assert_eq!(traced(whole.clone(), Vec::new()).wrong(Expected::Whole), [""; 0]);
    assert_eq!(traced(whole.clone(), Vec::new()).wrong(Expected::FoundOut), ["nothing was checked"]);
    assert_eq!(traced(whole, vec!["a hang".into()]).wrong(Expected::Whole), ["a hang"]);
    assert_eq!(traced(Findings::default(), Vec::new()).wrong(Expected::Whole), ["nothing was checked"]);
    let missed = findings(Pool { lessened: Lessened::Visibly, ..POOL }, trace());
    assert_eq!(traced(missed, Vec::new()).wrong(Expected::FoundOut), ["1 of 1 twins are not found out"]);
}
