//! A claim that KVM's page_fault_test makes, too: each kind of access to each kind of place takes exactly so many faults, passes or
//! is the guest's own fault, and leaves exactly so much dirty.
//!
//! Each is tried on a page of its own, in a table of its own. Stage 1 is on; the page of a walk is the last table of it.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{ID_AA64ISAR0_EL1, Readable};
use stage2::{
    Ipa,
    aging::Flush,
    descriptor::Permissions,
    dirty::{Initial, Tracking},
    geometry::{Features, Granule4K, HardwareUpdate},
};

use super::{
    blob::{self, Piece},
    guest::{Guest, Setup, pages},
    lab::Lab,
    lessened::Less,
    places::{RAM, ROM},
    rounds::{Log, updates, ways},
    seat::{End, Order, Story},
    stage1::{self, MIDDLE, WINDOW},
    verdict::{Claimed, OrSay, Verdict, expect},
};

/// What a leaf table covers.
const TABLE: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// What the tables of stage 1 lead to.
const DATA: u64 = RAM;
/// Pages of the log.
const LOGGED: u64 = 64 * 512;

/// What the guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Load,
    Store,
    Fetch,
    /// Its stage 1 is walked, for a load.
    Walk,
    /// The same, and an access flag is set there.
    Update,
    /// As the first, for AT S1E1R.
    Translate,
    /// DC CIVAC.
    Clean,
    /// DC IVAC.
    Invalidate,
    AtomicAdd,
    CompareAndSwap,
    /// LDXR and STXR.
    Exclusive,
}
use Act::*;

/// What is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum There {
    Hole,
    ReadOnly,
    /// Writable, and clean under a log.
    Logged,
    /// The same, its access flag clear.
    Old,
}
use There::*;

const PLACES: [There; 4] = [Hole, ReadOnly, Logged, Old];

/// What comes of it, after so many faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ends {
    /// It passes, and nothing is dirty.
    Passes(u32),
    /// It passes, and the page is dirty.
    Writes(u32),
    /// It is the guest's own fault, and nothing is dirty.
    Denied(u32),
}
use Ends::*;

/// By what is there; where there are several, it is the CPU's choice.
type Row = (Act, [&'static [Ends]; 4]);

const READS: [&[Ends]; 4] = [&[Passes(1)], &[Passes(0)], &[Passes(0)], &[Passes(1)]];
/// QEMU executes no cache maintenance: it does not fault.
const CLEANS: [&[Ends]; 4] = [&[Passes(0), Passes(1)], &[Passes(0)], &[Passes(0)], &[Passes(0), Passes(1)]];
const INVALIDATES: [&[Ends]; 4] =
    [&[Passes(0), Writes(2)], &[Passes(0), Denied(1)], &[Passes(0), Writes(1)], &[Passes(0), Writes(2)]];
/// Its load may fault first.
const ATOMIC: [&[Ends]; 4] = [&[Writes(1), Writes(2)], &[Denied(1)], &[Writes(1)], &[Writes(1), Writes(2)]];

/// With write protection, and the access flag set by software.
const BY_SOFTWARE: [Row; 11] = [
    (Load, READS),
    (Store, [&[Writes(1)], &[Denied(1)], &[Writes(1)], &[Writes(1)]]),
    (Fetch, READS),
    (Walk, READS),
    // What comes by a fault is no table whose entry could be updated.
    (Update, [&[Passes(1)], &[Denied(1)], &[Writes(1)], &[Writes(2)]]),
    (Translate, READS),
    (Clean, CLEANS),
    (Invalidate, INVALIDATES),
    (AtomicAdd, ATOMIC),
    (CompareAndSwap, ATOMIC),
    (Exclusive, [&[Writes(2)], &[Denied(1)], &[Writes(1)], &[Writes(2)]]),
];

/// Where the hardware notes the store to a clean page.
const NOTED: [&[Ends]; 4] = [&[Writes(1)], &[Denied(1)], &[Writes(0)], &[Writes(0)]];
const NOTED_OF_WALKS: [&[Ends]; 4] = [&[Passes(1)], &[Denied(1)], &[Writes(0)], &[Writes(0)]];

impl Act {
    fn writes(self) -> bool {
        matches!(self, Store | AtomicAdd | CompareAndSwap | Exclusive)
    }

    fn walks(self) -> bool {
        matches!(self, Walk | Update | Translate)
    }

    /// What is expected of it.
    fn expected(self, there: There, tracking: Tracking) -> &'static [Ends] {
        let column = |there: There| there as usize;
        let row = BY_SOFTWARE.iter().find(|(act, _)| *act == self).map_or(READS, |(_, row)| *row);
        match tracking {
            Tracking::WriteProtect => row[column(there)],
            Tracking::Hardware if self.writes() => NOTED[column(there)],
            Tracking::Hardware if self == Update => NOTED_OF_WALKS[column(there)],
            // The hardware sets the access flag, too.
            Tracking::Hardware | Tracking::Adaptive if there == Old => row[column(Logged)],
            Tracking::Hardware | Tracking::Adaptive => row[column(there)],
        }
    }

    /// The order to do it: at `page`, or through `window`.
    fn order(self, page: u64, window: u64) -> Order {
        match self {
            Load => Order::load(page),
            Store => Order::store(page, 1),
            Fetch => Order::new(Piece::Call, page, 0),
            Walk | Update => Order::load(window),
            Translate => Order::new(Piece::Translate, window, 0),
            Clean => Order::new(Piece::CleanLine, page, 0),
            Invalidate => Order::new(Piece::InvalidateLine, page, 0),
            AtomicAdd => Order::new(Piece::AtomicAdd, page, 0).with_x2(1),
            CompareAndSwap => Order::new(Piece::CompareAndSwap, page, 0).with_x2(1),
            Exclusive => Order::new(Piece::ExclusiveAdd, page, 0),
        }
    }

    /// Whether the guest got past it. Where a page has only just come there is neither code nor a table of stage 1 in it.
    fn passed(self, story: &Story, there: There) -> Result<bool, String> {
        const UNDEFINED: u64 = 0;
        const DATA_ABORT: u64 = 0x25;
        const NOT_MAPPED: u64 = 0x07;
        const EXTERNAL_ABORT: u64 = 0x10;
        let exception = match &story.end {
            End::Done(_) => return Ok(true),
            _ => story.exception()?,
        };
        let (class, code) = (exception.esr >> 26 & 0x3f, exception.esr & 0x3f);
        match (class, code) {
            (DATA_ABORT, EXTERNAL_ABORT) => Ok(false),
            (DATA_ABORT, NOT_MAPPED) if there == Hole && self.walks() => Ok(true),
            (UNDEFINED, _) if there == Hole && self == Fetch => Ok(true),
            _ => Err(format!("the guest takes {exception:x?}")),
        }
    }
}

/// What these CPUs can do.
fn acts(features: &Features) -> impl Iterator<Item = Act> {
    let has_atomics = ID_AA64ISAR0_EL1.get() >> 20 & 0xf >= 2;
    let updates = features.hardware_update() != HardwareUpdate::None;
    BY_SOFTWARE.into_iter().map(|(act, _)| act).filter(move |act| match act {
        AtomicAdd | CompareAndSwap => has_atomics,
        Update => updates,
        _ => true,
    })
}

pub(crate) fn each_access_takes_exactly_the_faults_it_must(lab: &Lab) -> Claimed {
    let mut tried = 0;
    let with_stage1 = match lab.features.hardware_update() {
        HardwareUpdate::None => Setup::vcpus(1).with_stage1(),
        _ => Setup::vcpus(1).with_stage1().with_hardware_access_flag(),
    };
    for tracking in ways(&lab.features) {
        let setup = with_stage1.updating(updates(tracking));
        tried += lab
            .bench(Less::NOTHING, lab.features, |bench| bench.guest(setup, |guest| all_of(guest, tracking)))
            .map_err(|reason| format!("{tracking}: {reason}"))?;
    }
    Ok(Verdict::Holds(format!("{tried} accesses")))
}

/// A page to try something on.
struct Try {
    act: Act,
    there: There,
    page: u64,
    window: u64,
}

fn all_of(guest: &Guest<'_, '_>, tracking: Tracking) -> Result<usize, String> {
    let pairs = acts(&guest.bench.features).flat_map(|act| PLACES.map(|there| (act, there)));
    let tries: Vec<Try> = pairs
        .enumerate()
        .map(|(nth, (act, there))| {
            let at = TABLE * (1 + nth as u64);
            let page = if there == ReadOnly { ROM } else { RAM } + at + TABLE / 2;
            Try { act, there, page, window: WINDOW + at }
        })
        .collect();
    guest.map(DATA, 0)?;
    tries.iter().try_for_each(|tried| prepare(guest, tried))?;
    let mut log = guest.stage2.start_logging_with(&guest.reader, Initial::Clean, tracking).or_say("start")?;
    for tried in &tries {
        let Try { act, there, page, .. } = *tried;
        if there == Old {
            let one = pages::<Granule4K>(page, 1);
            let made_old = guest.stage2.make_old(&guest.reader, one, u32::MAX, Flush::Now).or_say("make old")?;
            expect("pages made old", made_old.young, 1)?;
        }
        let ends = end_of(guest, &mut log, tried).map_err(|reason| format!("{act:?} on {there:?}: {reason}"))?;
        let expected = act.expected(there, tracking);
        if !expected.contains(&ends) {
            return Err(format!("{act:?} on {there:?}: {ends:?}, not {expected:?}"));
        }
    }
    log.stop();
    Ok(tries.len())
}

/// Puts there what is to be there, and what a walk needs on its way.
fn prepare(guest: &Guest<'_, '_>, tried: &Try) -> Result<(), String> {
    let &Try { act, there, page, window } = tried;
    if act.walks() {
        let middle = guest.stage2.view(&guest.reader, Ipa::new(MIDDLE)).or_say("view")?.or_say("no table")?;
        guest.words(middle.pa())[((window - WINDOW) / TABLE) as usize].store(stage1::table(page), Ordering::Relaxed);
    }
    if there == Hole {
        return Ok(());
    }
    let permissions = if there == ReadOnly { Permissions::RX } else { Permissions::RWX };
    let content = match act {
        Update => stage1::page_not_accessed(DATA),
        _ if act.walks() => stage1::page(DATA),
        _ => blob::code_returning(7),
    };
    guest.map_with(page, content, permissions).map(drop)
}

/// What comes of it, and that nothing else became dirty.
fn end_of(guest: &Guest<'_, '_>, log: &mut Log<'_, '_>, tried: &Try) -> Result<Ends, String> {
    let &Try { act, there, page, window } = tried;
    let given = guest.places.given();
    let story = guest.vcpus[0].execute(act.order(page, window).resolving());
    let passed = act.passed(&story, there)?;
    let is_mapped = guest.stage2.query(&guest.reader, Ipa::new(page)).or_say("query")?.is_some();
    expect("a page has come", guest.places.given() - given, u64::from(there == Hole && is_mapped))?;
    let mut bitmap = [0; (LOGGED / 64) as usize];
    let all = pages::<Granule4K>(RAM, LOGGED);
    let found = log.scan(&guest.reader, all, &mut bitmap).or_say("scan")?;
    let nth = (page - RAM) / PAGE;
    let is_dirty = bitmap.get((nth / 64) as usize).is_some_and(|word| word >> (nth % 64) & 1 == 1);
    expect("pages that are dirty", found, u64::from(is_dirty))?;
    let _rearmed = log.rearm(&guest.reader, all, &bitmap).or_say("rearm")?;
    match (passed, is_dirty) {
        (true, false) => Ok(Passes(story.faults)),
        (true, true) => Ok(Writes(story.faults)),
        (false, false) => Ok(Denied(story.faults)),
        (false, true) => Err("it was denied, and the page is dirty".into()),
    }
}
