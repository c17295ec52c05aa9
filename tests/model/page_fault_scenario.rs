//! KVM's page_fault_test, as facts: each kind of access to each kind of place takes exactly so many faults, passes or is the
//! guest's own fault, and leaves exactly so much dirty.
//!
//! The modelled MMU has loads, stores, fetches and the walks of stage 1. What it has not is made of these: address translation (AT) is
//! a walk, cache maintenance needs what a load needs or, to invalidate, what a store does, and their syndromes say so.

use std::cell::{Cell, RefCell};

use stage2::addr::{Ipa, Level, Pa};
use stage2::aging::Flush;
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, Initial, Tracking};
use stage2::fault::{Backing, Outcome, Page, Region, Syndrome, Unavailable};
use stage2::geometry::{Features, HardwareUpdate};
use stage2::model::Access;

use crate::dirty_log_scenario::ways;
use crate::support::*;

/// The page that is accessed.
const AT: u64 = 5;
/// The frame of the first page, and of a block.
const FRAME: u64 = 0x40_0000_0000;

/// What the guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Load,
    Store,
    Fetch,
    /// Its stage 1 is walked.
    Walk,
    /// And updated: access flag or dirty state.
    Update,
    /// AT.
    Translate,
    /// DC CIVAC.
    Clean,
    /// DC IVAC.
    Invalidate,
}

/// What is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum There {
    Hole,
    ReadOnly,
    /// Writable, and clean under a log.
    Logged,
    /// The same, its access flag clear.
    Old,
    /// The same as a block.
    Block,
}
use There::*;

/// What comes of it, after so many faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It passes, and nothing is dirty.
    Passes(u32),
    /// It passes, and the page is dirty.
    Writes(u32),
    /// It passes, and all of the block is dirty.
    WritesBlock(u32),
    /// It is the guest's own fault, and nothing is dirty.
    Denied(u32),
}
use End::*;

impl Act {
    /// What it is to the modelled MMU.
    fn access(self) -> Access {
        match self {
            Self::Load | Self::Clean => Access::Load,
            Self::Store | Self::Invalidate => Access::Store,
            Self::Fetch => Access::Fetch,
            Self::Walk | Self::Translate => Access::Stage1Walk,
            Self::Update => Access::Stage1Update,
        }
    }

    /// What the CPU says of its fault.
    fn syndrome(self, fault: Syndrome) -> Syndrome {
        const CACHE_MAINTENANCE: u64 = 1 << 8;
        const WRITE: u64 = 1 << 6;
        match self {
            Self::Clean | Self::Invalidate | Self::Translate => {
                Syndrome { esr: fault.esr | CACHE_MAINTENANCE | WRITE, ..fault }
            }
            _ => fault,
        }
    }
}

/// Memory that is there or comes, with the content it had.
struct Place {
    permissions: Permissions,
    given: Cell<u32>,
}

impl Backing for Place {
    fn region(&self, _: Ipa) -> Region {
        Region::Memory(Attributes::normal(self.permissions))
    }

    fn page(&self, ipa: Ipa, _: bool) -> Result<Page, Unavailable> {
        self.given.set(self.given.get() + 1);
        Ok(Page { frame: Pa::new(FRAME + ipa.raw()), content: Content::Unchanged })
    }

    fn unused(&self, _: Ipa, _: Page) {}
}

/// What comes of `act` where `there` is.
fn end_of(act: Act, there: There, features: Features, tracking: Tracking) -> End {
    let largest = if there == Block { Level::L2 } else { Level::L3 };
    let scene = Scene::with_largest_leaf(features, 7, largest);
    let permissions = if there == ReadOnly { Permissions::RX } else { Permissions::RWX };
    let place = Place { permissions, given: Cell::new(0) };
    scene.on(0, |here| {
        let pages = range(0, if there == Block { TABLE } else { 8 * PAGE });
        if there != Hole {
            let attributes = Attributes::normal(permissions);
            scene.guest.map(&here.reader, pages, Pa::new(FRAME), attributes, Content::Unchanged).unwrap();
        }
        let mut log = scene.guest.start_logging_with(&here.reader, Initial::Clean, tracking).unwrap();
        if there == Old {
            let page = range(AT * PAGE, PAGE);
            assert_eq!(scene.guest.make_old(&here.reader, page, u32::MAX, Flush::Now).unwrap().young, 1);
        }
        let (faults, passes) = scene.on(1, |there| faults_of(&scene, there, &place, act));
        let mut bitmap = [0; LOGGED as usize / 64];
        let dirty = log.scan(&here.reader, range(0, LOGGED * PAGE), &mut bitmap).unwrap();
        assert_eq!(place.given.get(), u32::from(there == Hole), "pages that were asked for");
        match (passes, dirty) {
            (false, 0) => Denied(faults),
            (true, 0) => Passes(faults),
            (true, 1) if bitmap[0] == 1 << AT => Writes(faults),
            (true, 512) if bitmap[..8] == [u64::MAX; 8] => WritesBlock(faults),
            other => panic!("{act:?} on {there:?}: {other:?}"),
        }
    })
}

/// The access, until it passes or is denied: how many faults it took, and whether it passed.
fn faults_of(scene: &Scene, there: &Running<'_>, place: &Place, act: Act) -> (u32, bool) {
    let before = scene.mmu.statistics();
    let outcomes = RefCell::new(Vec::new());
    let passes = loop {
        let Err(fault) = scene.model.access(scene.mmu.memory(), AT * PAGE, act.access()) else { break true };
        assert!(outcomes.borrow().len() < 4, "{act:?}: {outcomes:?}");
        let outcome = there.loaded.resolve(&there.reader, place, act.syndrome(fault)).unwrap();
        outcomes.borrow_mut().push(outcome);
        match outcome {
            Outcome::Resumed => {}
            Outcome::Reflect(_) => break false,
            other => panic!("{act:?}: {other:?}"),
        }
    };
    let (faults, after) = (outcomes.borrow().len() as u64, scene.mmu.statistics());
    let classes = |of: stage2::cpu::Statistics| of.faults_translation + of.faults_permission + of.faults_access_flag;
    assert_eq!(classes(after) - classes(before), faults);
    assert_eq!(after.faults_spurious, before.faults_spurious, "each fault was needed");
    assert_eq!(after.faults_reflected - before.faults_reflected, u64::from(!passes));
    (faults as u32, passes)
}

/// The ends of an access, by what is there.
type Row = (Act, [End; 5]);

const PLACES: [There; 5] = [Hole, ReadOnly, Logged, Old, Block];

/// With write protection, and the access flag set by software.
const BY_SOFTWARE: [Row; 8] = [
    (Act::Load, [Passes(1), Passes(0), Passes(0), Passes(1), Passes(0)]),
    // The fault of a block splits it, that of the page then makes that dirty.
    (Act::Store, [Writes(1), Denied(1), Writes(1), Writes(1), Writes(2)]),
    (Act::Fetch, [Passes(1), Passes(0), Passes(0), Passes(1), Passes(0)]),
    (Act::Walk, [Passes(1), Passes(0), Passes(0), Passes(1), Passes(0)]),
    // A walk that finds no page, or an old one, is taken for a read until it lacks the permission.
    (Act::Update, [Writes(2), Denied(1), Writes(1), Writes(2), Writes(2)]),
    (Act::Translate, [Passes(1), Passes(0), Passes(0), Passes(1), Passes(0)]),
    (Act::Clean, [Passes(1), Passes(0), Passes(0), Passes(1), Passes(0)]),
    (Act::Invalidate, [Writes(2), Denied(1), Writes(1), Writes(2), Writes(2)]),
];

/// Where the hardware notes stores. (Whether to invalidate a line is one is left to the CPU.)
const BY_HARDWARE: [Row; 2] = [
    (Act::Store, [Writes(1), Denied(1), Writes(0), Writes(0), WritesBlock(0)]),
    (Act::Update, [Writes(1), Denied(1), Writes(0), Writes(0), WritesBlock(0)]),
];

/// What is expected of an access there.
fn expected(act: Act, column: usize, features: Features, tracking: Tracking) -> Option<End> {
    let row = |rows: &[Row], column: usize| rows.iter().find(|(other, _)| *other == act).map(|(_, ends)| ends[column]);
    if tracking == Tracking::Hardware {
        if act == Act::Invalidate {
            return None;
        }
        if let Some(end) = row(&BY_HARDWARE, column) {
            return Some(end);
        }
    }
    // An old page that the hardware makes young is as good as another.
    let is_made_young = PLACES[column] == Old && features.hardware_update() != HardwareUpdate::None;
    row(&BY_SOFTWARE, if is_made_young { PLACES.iter().position(|place| *place == Logged)? } else { column })
}

#[test]
fn each_access_to_each_place_takes_exactly_the_faults_it_must_and_leaves_dirty_what_it_wrote() {
    use Act::*;
    for (features, tracking) in ways() {
        for act in [Load, Store, Fetch, Walk, Update, Translate, Clean, Invalidate] {
            for (column, there) in PLACES.into_iter().enumerate() {
                let Some(expected) = expected(act, column, features, tracking) else { continue };
                assert_eq!(end_of(act, there, features, tracking), expected, "{tracking}: {act:?} on {there:?}");
            }
        }
    }
}
