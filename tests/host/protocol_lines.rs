//! Single lines of the protocol, each in the one interleaving that needs it: another CPU acts at an instruction (see
//! [`support`](crate::support)), at an allocation, or between a walk's look at an entry and its lock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use stage2::addr::{Ipa, Level, Pa};
use stage2::arch::{Dsb, Scope, Tlbi};
use stage2::cpu::CpuIndex;
use stage2::descriptor::Permissions;
use stage2::dirty::Content;
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::geometry::Granule4K;
use stage2::mmu::Mmu;
use stage2::model::{Event, ModelArch};
use stage2::quiescence::Reader;
use stage2::stage2::{MapCause, MapError, Stage2};

use crate::invalidation_lines::table;
use crate::staged_memory::{At, StagedMemory};
use crate::support::*;

const FIRST_BARRIER: fn(&Event) -> bool = |event| matches!(event, Event::Dsb(Dsb::Ishst));

/// Longer than any operation takes, and no longer than one wants to wait for a test that fails.
const SOON: Duration = Duration::from_secs(5);

type CuedMachine = Mmu<'static, Staged, StagedMemory>;
type CuedGuest = Stage2<'static, Staged, StagedMemory>;

fn cued() -> (&'static CuedMachine, &'static CuedGuest) {
    let arch = Staged(ModelArch::new());
    let mmu: &'static CuedMachine =
        Box::leak(Box::new(Mmu::new(arch, StagedMemory::new(16), features(), Box::leak(cpus(4)))));
    (mmu, Box::leak(Box::new(Stage2::new(mmu, geometry(40), None).unwrap())))
}

fn cpu(mmu: &'static CuedMachine, cpu: u16) -> Reader<'static> {
    mmu.reader(CpuIndex(cpu)).unwrap()
}

fn map_page(guest: &CuedGuest, reader: &Reader<'_>, ipa: u64) -> Result<(), MapError> {
    guest.map(reader, range(ipa, PAGE), Pa::new(ipa), RW, Content::New)
}

/// The table of `level` on the way to `ipa`.
fn table_of(mmu: &CuedMachine, guest: &CuedGuest, reader: &Reader<'_>, level: Level, ipa: u64) -> Pa {
    drop(guest.load(reader).unwrap());
    table(&mmu.memory().memory, &mmu.arch().0.take_events(), level, ipa)
}

/// `work` is done by another thread, and does not have to wait for this one.
fn does_not_wait(work: impl FnOnce() + Send + 'static) {
    let (done, heard) = channel();
    thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    heard.recv_timeout(SOON).expect("another CPU does not wait for this one");
}

fn is_retry(mapped: Result<(), MapError>) -> bool {
    matches!(mapped, Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry)
}

/// Everywhere the frame at 0x8000.
pub(crate) struct Same;

impl Backing for Same {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(RW)
    }

    fn page(&self, _ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: Pa::new(0x8000), content: Content::New })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

#[test]
fn a_permission_is_given_to_what_the_entry_is_under_the_lock() {
    let (mmu, guest) = cued();
    let reader = cpu(mmu, 0);
    map_page(guest, &reader, 0x4000).unwrap();
    guest.write_protect(&reader, range(0x4000, PAGE)).unwrap();
    mmu.arch().0.map_stage1(0x4000, Ipa::new(0x4000));
    let leaf_table = table_of(mmu, guest, &reader, Level::L3, 0x4000);
    let loaded = guest.load(&reader).unwrap();
    // The fault has looked and seen what it needs; the page goes before it has the lock.
    mmu.memory().cue(At::Look(leaf_table), || {});
    mmu.memory().cue(At::Look(leaf_table), move || {
        let _ = guest.unmap(&cpu(mmu, 1), range(0x4000, PAGE)).unwrap();
    });
    let denied = data_abort(0x4000, code::PERMISSION | WRITE);
    assert_eq!(loaded.resolve(&reader, &Same, denied), Ok(Outcome::Retry));
    assert_eq!(guest.query(&reader, Ipa::new(0x4000)), Ok(None));
}

#[test]
fn a_walk_that_is_disturbed_again_and_again_couples_locks() {
    let (mmu, guest) = cued();
    let reader = cpu(mmu, 0);
    map_page(guest, &reader, 0).unwrap();
    // What leads to the leaf table has another value each time: in a bit that nobody heeds.
    let leaf_table = table_of(mmu, guest, &reader, Level::L3, 0);
    let parent = word(&mmu.memory().memory, table_of(mmu, guest, &reader, Level::L2, 0), 0);
    let before = mmu.statistics();
    for _ in 0..20 {
        // At the look the entry above was read.
        mmu.memory().cue(At::Look(leaf_table), move || {
            parent.store(parent.load(Ordering::Relaxed) ^ 1 << 59, Ordering::Relaxed);
        });
    }
    map_page(guest, &reader, PAGE).unwrap();
    let now = mmu.statistics();
    assert_eq!(now.coupled_walks - before.coupled_walks, 1);
    assert!(now.revalidation_retries - before.revalidation_retries < 10, "bounded");
    assert!(guest.query(&reader, Ipa::new(PAGE)).unwrap().is_some());
}

#[test]
fn nothing_is_allocated_while_a_table_is_locked() {
    let (mmu, guest) = cued();
    let reader = cpu(mmu, 0);
    map_page(guest, &reader, 0).unwrap();
    // The table of level 2 is what a leaf table is linked into, for either CPU.
    mmu.memory().cue(At::Allocation, move || {
        does_not_wait(move || map_page(guest, &cpu(mmu, 1), 2 * TABLE).unwrap());
    });
    map_page(guest, &reader, TABLE).unwrap();
    assert!(mmu.memory().is_over());
}

#[test]
fn no_cpu_waits_for_a_tlbi_with_a_table_locked() {
    let (mmu, guest) = cued();
    let reader = cpu(mmu, 0);
    map_page(guest, &reader, 0x4000).unwrap();
    guest.write_protect(&reader, range(0x4000, PAGE)).unwrap();
    mmu.arch().0.map_stage1(0x4000, Ipa::new(0x4000));
    let loaded = guest.load(&reader).unwrap();
    let same_table = move |ipa: u64| move || does_not_wait(move || map_page(guest, &cpu(mmu, 1), ipa).unwrap());
    cue(|event| matches!(event, Event::Tlbi(Tlbi::Vmalle1 { scope: Scope::Local })), same_table(0x5000));
    let denied = data_abort(0x4000, code::PERMISSION | WRITE);
    assert_eq!(loaded.resolve(&reader, &Same, denied), Ok(Outcome::Resumed));
    cue(|event| matches!(event, Event::Tlbi(Tlbi::Vmalle1 { scope: Scope::InnerShareable })), same_table(0x6000));
    let _ = guest.unmap(&reader, range(0x4000, PAGE)).unwrap();
    assert!(guest.query(&reader, Ipa::new(0x5000)).unwrap().is_some());
    assert!(guest.query(&reader, Ipa::new(0x6000)).unwrap().is_some());
}

/// Empties the table over address 0 of a guest that has no other, up to where the next reclaim takes out the table of level 2.
fn level_2_about_to_go(mmu: &CuedMachine, guest: &CuedGuest, reader: &mut Reader<'_>) {
    map_page(guest, reader, 0).unwrap();
    let _ = guest.unmap(reader, range(0, PAGE)).unwrap();
    while mmu.memory().memory.live() > 3 {
        reader.quiescent();
        guest.reclaim(reader, 8).unwrap();
    }
    reader.quiescent();
}

#[test]
fn a_second_reclaimer_does_not_wait_for_the_first() {
    let (mmu, guest) = cued();
    let mut reader = cpu(mmu, 0);
    level_2_about_to_go(mmu, guest, &mut reader);
    cue(FIRST_BARRIER, move || {
        does_not_wait(move || assert!(guest.reclaim(&cpu(mmu, 1), 8).unwrap().busy));
    });
    assert_eq!(guest.reclaim(&reader, 8).unwrap().unlinked, 1);
}

#[test]
fn a_freeze_leaves_the_place_of_a_table_on_its_way_out_to_the_reclaimer_and_a_frozen_root_has_no_holes() {
    let (mmu, guest) = cued();
    let mut reader = cpu(mmu, 0);
    level_2_about_to_go(mmu, guest, &mut reader);
    let frozen = Rc::new(Cell::new(None));
    let at_cue = frozen.clone();
    let other = Rc::new(cpu(mmu, 1));
    let freezer = other.clone();
    cue(FIRST_BARRIER, move || at_cue.set(Some(guest.freeze(&freezer).unwrap())));
    assert_eq!(guest.reclaim(&reader, 8).unwrap().unlinked, 1);
    assert!(is_retry(map_page(guest, &reader, 0)), "whatever could be mapped there would run");
    assert!(frozen.take().unwrap().thaw(&other).is_ok());
    map_page(guest, &reader, 0).unwrap();
    assert!(guest.query(&reader, Ipa::new(0)).unwrap().is_some());
}

#[test]
fn a_block_whose_unmap_ends_within_a_freeze_leaves_no_hole_in_the_frozen_root() {
    const GIB: u64 = 1 << 30;
    for one_by_one in [false, true] {
        let (mmu, _) = cued();
        let guest = Stage2::new(mmu, geometry(40), None).unwrap().with_largest_leaf(Level::L1);
        let guest: &'static CuedGuest = Box::leak(Box::new(guest));
        let reader = cpu(mmu, 0);
        guest.map(&reader, range(0, 512 * GIB), Pa::new(0), RW, Content::New).unwrap();
        let frozen = Rc::new(Cell::new(None));
        let at_cue = frozen.clone();
        let other = Rc::new(cpu(mmu, 1));
        let freezer = other.clone();
        cue(FIRST_BARRIER, move || at_cue.set(Some(guest.freeze(&freezer).unwrap())));
        // One block, and all of a root table.
        let bytes = if one_by_one { GIB } else { 512 * GIB };
        if one_by_one {
            guest.unmap_with(&reader, range(0, bytes), drop).unwrap();
        } else {
            let _ = guest.unmap(&reader, range(0, bytes)).unwrap();
        }
        assert!(is_retry(map_page(guest, &reader, 0)), "whatever could be mapped there would run");
        assert!(frozen.take().unwrap().thaw(&other).is_ok());
        map_page(guest, &reader, 0).unwrap();
    }
}

#[test]
fn a_run_of_blocks_whose_unmap_ends_within_a_freeze_leaves_no_hole_in_the_frozen_root() {
    let (mmu, _) = cued();
    // So small that the root is of level 2.
    let guest = Stage2::new(mmu, geometry(32), None).unwrap().with_largest_leaf(Level::L2);
    let guest: &'static CuedGuest = Box::leak(Box::new(guest));
    let reader = cpu(mmu, 0);
    guest.map(&reader, range(0, 64 * TABLE), Pa::new(0), RW, Content::New).unwrap();
    let frozen = Rc::new(Cell::new(None));
    let at_cue = frozen.clone();
    let other = Rc::new(cpu(mmu, 1));
    let freezer = other.clone();
    cue(FIRST_BARRIER, move || at_cue.set(Some(guest.freeze(&freezer).unwrap())));
    let _ = guest.unmap(&reader, range(0, 64 * TABLE)).unwrap();
    assert!(is_retry(map_page(guest, &reader, 0)), "whatever could be mapped there would run");
    assert!(frozen.take().unwrap().thaw(&other).is_ok());
    map_page(guest, &reader, 0).unwrap();
}

#[test]
fn the_end_of_a_detach_within_a_freeze_leaves_no_hole_in_the_frozen_root() {
    let (mmu, guest) = cued();
    let mut reader = cpu(mmu, 0);
    let second_root = table_of(mmu, guest, &reader, Level::L1, 0).offset(PAGE);
    level_2_about_to_go(mmu, guest, &mut reader);
    let (here, there) = line();
    let reclaimer = thread::spawn(move || {
        cue(
            |event| matches!(event, Event::LeaveVmid),
            move || {
                there.say();
                there.wait();
            },
        );
        assert_eq!(guest.reclaim(&cpu(mmu, 1), 8).unwrap().unlinked, 1);
    });
    here.wait();
    // The first root's entries are frozen, but for the table's place; before the second root's the detach comes to its end.
    mmu.memory().cue(At::Look(second_root), move || {
        here.say();
        reclaimer.join().unwrap();
    });
    let frozen = guest.freeze(&reader).unwrap();
    assert!(is_retry(map_page(guest, &reader, 0)));
    assert!(frozen.thaw(&reader).is_ok());
    map_page(guest, &reader, 0).unwrap();
}

/// A backing during whose answer something else happens.
struct Meanwhile<F: Fn()>(F);

impl<F: Fn()> Backing for Meanwhile<F> {
    fn region(&self, ipa: Ipa) -> Region {
        Same.region(ipa)
    }

    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
        (self.0)();
        Same.page(ipa, write)
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

#[test]
fn a_fault_that_is_sent_back_leaves_no_empty_table_behind() {
    let (mmu, guest) = cued();
    let (mut reader, other) = (cpu(mmu, 0), cpu(mmu, 1));
    let loaded = guest.load(&reader).unwrap();
    let unmapping = Meanwhile(|| {
        let _ = guest.unmap(&other, range(0, PAGE)).unwrap();
    });
    assert_eq!(loaded.resolve(&reader, &unmapping, write_fault(0)), Ok(Outcome::Retry));
    drop(other);
    for _ in 0..6 {
        reader.quiescent();
        guest.reclaim(&reader, 8).unwrap();
    }
    assert_eq!(mmu.memory().memory.live(), 2, "the root alone");
}

/// The fault has asked before the page was mapped; it is answered after the page was moved.
#[test]
fn a_page_that_the_callback_moves_is_not_mapped_where_it_was_by_a_fault_that_began_after_the_unmap() {
    let (mmu, guest) = cued();
    let reader = cpu(mmu, 0);
    map_page(guest, &reader, PAGE).unwrap();
    let (begin, begun) = line();
    let (here, there) = line();
    let fault = thread::spawn(move || {
        let reader = cpu(mmu, 1);
        begun.wait();
        let loaded = guest.load(&reader).unwrap();
        let moved = Meanwhile(|| {
            guest.map(&cpu(mmu, 2), range(0, PAGE), Pa::new(0x8000), RW, Content::New).unwrap();
            begun.say();
            there.wait();
        });
        loaded.resolve(&reader, &moved, write_fault(0)).unwrap()
    });
    // At its first look the unmap has counted.
    let root = table_of(mmu, guest, &reader, Level::L1, 0);
    mmu.memory().cue(At::Look(root), move || {
        begin.say();
        begin.wait();
    });
    let mut moved = Vec::new();
    guest.unmap_with(&reader, range(0, PAGE), |removed| moved.push(removed.frame.peek().raw())).unwrap();
    assert_eq!(moved, [0x8000], "its content is elsewhere now");
    here.say();
    assert_eq!(fault.join().unwrap(), Outcome::Retry);
    assert_eq!(guest.query(&reader, Ipa::new(0)), Ok(None));
}

#[test]
fn a_page_that_comes_in_while_pages_are_synchronized_is_not_made_executable_with_them() {
    let mmu = machine_of::<_, Granule4K>(Staged(ModelArch::new()), 3, 16, plain_features());
    let guest: &'static Guest<Staged> = Box::leak(Box::new(guest(mmu)));
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    let (here, there) = line();
    let fault = thread::spawn(move || {
        let reader = crate::support::reader(mmu, 1);
        let loaded = guest.load(&reader).unwrap();
        let waiting = Meanwhile(|| {
            there.say();
            there.wait();
        });
        resolve(&loaded, &reader, &waiting, write_fault(PAGE))
    });
    here.wait();
    cue(
        |event| matches!(event, Event::Instructions(..)),
        move || {
            here.say();
            assert_eq!(fault.join().unwrap(), Outcome::Retry, "it would be executable as it is");
        },
    );
    guest.protect(&reader, range(0, 2 * PAGE), Permissions::RX).unwrap();
    assert_eq!(target(guest, &reader, PAGE), None);
}

#[test]
fn where_a_frozen_root_had_nothing_a_fault_under_way_maps_nothing() {
    const FAR: u64 = 5 << 30;
    let (mmu, guest) = cued();
    let (reader, other) = (cpu(mmu, 0), cpu(mmu, 1));
    map_page(guest, &reader, 0).unwrap();
    let loaded = guest.load(&reader).unwrap();
    let frozen = RefCell::new(None);
    let freezing = Meanwhile(|| *frozen.borrow_mut() = Some(guest.freeze(&other).unwrap()));
    assert_eq!(loaded.resolve(&reader, &freezing, write_fault(FAR)), Ok(Outcome::Retry));
    assert_eq!(guest.query(&reader, Ipa::new(FAR)), Ok(None), "the guest would run there");
    assert!(frozen.take().unwrap().thaw(&other).is_ok());
    assert_eq!(loaded.resolve(&reader, &Same, write_fault(FAR)), Ok(Outcome::Resumed));
}
