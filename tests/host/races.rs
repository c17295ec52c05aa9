//! Interleavings, staged: one CPU is stopped at an instruction, and others do their worst before it goes on.

use stage2::addr::{Ipa, Pa};
use stage2::arch::{Dsb, Scope, Tlbi};
use stage2::cpu::CpuIndex;
use stage2::descriptor::Permissions;
use stage2::dirty::{Content, Initial};
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::model::Event;
use stage2::reclaim::Progress;
use stage2::stage2::{MapCause, MapError, Unsettled};

use crate::staged_memory::{At, staged_guest};
use crate::support::*;

const FIRST_BARRIER: fn(&Event) -> bool = |event| matches!(event, Event::Dsb(Dsb::Ishst));
const FLUSH_IS_OVER: fn(&Event) -> bool = |event| matches!(event, Event::LeaveVmid);

fn on_stage(mmu: &'static Machine<Staged>, pages: u64) -> &'static Guest<Staged> {
    let guest = logged_guest(mmu, 0, pages);
    give_vmid(&guest, &reader(mmu, 3));
    Box::leak(Box::new(guest))
}

/// Everywhere the same frame.
struct Same;

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
fn between_mark_and_flush_a_fault_waits_a_map_waits_and_a_scan_sees_the_page_dirty() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, 2 * PAGE);
    let harvester = crate::support::reader(mmu, 2);
    let mut log = guest.start_logging(&harvester, Initial::Clean).unwrap();
    map(guest, &reader, 2 * PAGE, PAGE);
    cue(FIRST_BARRIER, move || {
        let other = crate::support::reader(mmu, 1);
        let loaded = guest.load(&other).unwrap();
        for page in 0..3 {
            assert_eq!(resolve(&loaded, &other, &Same, write_fault(page * PAGE)), Outcome::Retry);
            let mapped = guest.map(&other, range(page * PAGE, PAGE), Pa::new(0), RW, Content::New);
            assert!(matches!(mapped, Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry));
        }
        let mut bitmap = [0];
        log.scan(&harvester, range(0, 64 * PAGE), &mut bitmap).unwrap();
        assert_eq!(bitmap, [0b100]);
        // It is on its way out: a rearm leaves it to its remover.
        assert_eq!(log.rearm(&harvester, range(0, 64 * PAGE), &bitmap).unwrap().cleaned, 0);
    });
    assert_eq!(unmap(guest, &reader, 0, 3 * PAGE).leaves, 3);
}

#[test]
fn a_page_that_another_cpu_removes_is_handed_back_after_that_cpus_flush() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    let (here, there) = line();
    let other = std::thread::spawn(move || {
        let reader = crate::support::reader(mmu, 1);
        there.wait();
        // The first CPU has flushed; this page comes and goes behind its back, and may be in a TLB.
        map(guest, &reader, PAGE, PAGE);
        let mut handed_back = Vec::new();
        cue(FIRST_BARRIER, move || {
            there.say();
            there.wait();
        });
        guest.unmap_with(&reader, range(PAGE, PAGE), |leaf| handed_back.push(leaf.ipa.raw())).unwrap();
        handed_back
    });
    let mut handed_back = Vec::new();
    let stage = std::rc::Rc::new(here);
    let at_cue = stage.clone();
    cue(FLUSH_IS_OVER, move || {
        at_cue.say();
        at_cue.wait();
    });
    let unmapped = guest.unmap_with(&reader, range(0, 2 * PAGE), |leaf| handed_back.push(leaf.ipa.raw())).unwrap();
    assert_eq!(handed_back, [0], "the other page is still in TLBs");
    assert_eq!(unmapped.leaves, 1);
    let mapped = guest.map(&reader, range(PAGE, PAGE), Pa::new(0), RW, Content::New);
    assert!(matches!(mapped, Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry), "{mapped:?}");
    stage.say();
    assert_eq!(other.join().unwrap(), [PAGE]);
    map(guest, &reader, PAGE, PAGE);
}

#[test]
fn an_entry_that_another_cpu_removes_is_free_after_that_cpus_flush() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    let (here, there) = line();
    let other = std::thread::spawn(move || {
        let reader = crate::support::reader(mmu, 1);
        there.wait();
        map(guest, &reader, PAGE, PAGE);
        cue(FIRST_BARRIER, move || {
            there.say();
            there.wait();
        });
        unmap(guest, &reader, PAGE, PAGE).leaves
    });
    let stage = std::rc::Rc::new(here);
    let at_cue = stage.clone();
    cue(FLUSH_IS_OVER, move || {
        at_cue.say();
        at_cue.wait();
    });
    assert_eq!(unmap(guest, &reader, 0, 2 * PAGE).leaves, 1);
    let mapped = guest.map(&reader, range(PAGE, PAGE), Pa::new(0), RW, Content::New);
    assert!(matches!(mapped, Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry), "{mapped:?}");
    stage.say();
    assert_eq!(other.join().unwrap(), 1);
    map(guest, &reader, PAGE, PAGE);
}

#[test]
fn a_page_whose_write_permission_another_cpu_takes_is_not_copied_before_it_is_flushed() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, 2 * PAGE);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    let store = move |reader: &stage2::quiescence::Reader<'_>, ipa: u64| {
        mmu.arch().0.map_stage1(ipa, Ipa::new(ipa));
        let loaded = guest.load(reader).unwrap();
        assert_eq!(resolve(&loaded, reader, &Same, data_abort(ipa, code::PERMISSION | WRITE)), Outcome::Resumed);
    };
    store(&reader, PAGE);
    let (here, there) = line();
    let other = std::thread::spawn(move || {
        let reader = crate::support::reader(mmu, 1);
        there.wait();
        store(&reader, 0);
        cue(FIRST_BARRIER, move || {
            there.say();
            there.wait();
        });
        guest.write_protect(&reader, range(0, PAGE)).unwrap();
    });
    let stage = std::rc::Rc::new(here);
    let at_cue = stage.clone();
    cue(FLUSH_IS_OVER, move || {
        at_cue.say();
        at_cue.wait();
    });
    guest.write_protect(&reader, range(0, 2 * PAGE)).unwrap();
    // The other CPU has taken the permission and told no TLB yet: a store may still pass.
    let mut bitmap = [0];
    log.scan(&reader, range(0, PAGE), &mut bitmap).unwrap();
    assert_eq!(bitmap, [1], "it is dirty");
    mmu.arch().0.take_events();
    let _ = log.rearm(&reader, range(0, PAGE), &bitmap).unwrap();
    assert!(!tlbis(&mmu.arch().0).is_empty(), "the copy that follows would miss such a store");
    stage.say();
    other.join().unwrap();
    log.stop();
}

#[test]
fn a_table_that_is_being_taken_out_leaves_no_room_for_another_before_the_flush() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let mut reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    // The table above stays.
    map(guest, &reader, TABLE, PAGE);
    unmap(guest, &reader, 0, PAGE);
    reader.quiescent();
    guest.reclaim(&reader, 8).unwrap();
    reader.quiescent();
    let live = mmu.memory().live();
    cue(FIRST_BARRIER, move || {
        // Out of the tree, and in walk caches still.
        let other = crate::support::reader(mmu, 1);
        let loaded = guest.load(&other).unwrap();
        assert_eq!(resolve(&loaded, &other, &Same, write_fault(0)), Outcome::Retry);
        let mapped = guest.map(&other, range(0, PAGE), Pa::new(0), RW, Content::New);
        assert!(matches!(mapped, Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry), "{mapped:?}");
        assert_eq!(mmu.memory().live(), live);
        // To all others it is a hole.
        assert_eq!(target(guest, &other, 0), None);
        assert!(guest.view(&other, Ipa::new(0)).unwrap().is_none());
        assert_eq!(unmap(guest, &other, 0, PAGE).leaves, 0);
        guest.protect(&other, range(0, TABLE), Permissions::R).unwrap();
        let mut log = guest.start_logging(&other, Initial::Clean).unwrap();
        let mut bitmap = [0];
        assert_eq!(log.scan(&other, range(0, 64 * PAGE), &mut bitmap), Ok(0));
        assert_eq!(log.rearm(&other, range(0, 64 * PAGE), &[u64::MAX]).unwrap().cleaned, 0);
    });
    assert_eq!(guest.reclaim(&reader, 8).unwrap().unlinked, 1);
    let loaded = guest.load(&reader).unwrap();
    assert_eq!(resolve(&loaded, &reader, &Same, write_fault(0)), Outcome::Resumed, "another follows after the flush");
    assert_eq!(target(guest, &reader, 0), Some(0x8000));
    assert_eq!(mmu.memory().live(), live + 1);
    reader.quiescent();
    assert_eq!(guest.reclaim(&reader, 8).unwrap().freed, 1, "the one that was taken out");
    assert_eq!(target(guest, &reader, 0), Some(0x8000));
}

#[test]
fn a_fault_that_was_under_way_when_the_guest_was_frozen_is_waited_for() {
    /// Freezes the guest while the page is looked for.
    struct Freezing(&'static Guest<Staged>, stage2::quiescence::Reader<'static>);
    impl Backing for Freezing {
        fn region(&self, ipa: Ipa) -> Region {
            Same.region(ipa)
        }
        fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
            let frozen = self.0.freeze(&self.1).unwrap();
            assert_eq!(frozen.is_settled(), Err(Unsettled::Fault(CpuIndex(0))), "this very fault");
            Same.page(ipa, write)
        }
        fn unused(&self, _ipa: Ipa, _page: Page) {}
    }
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    let other = crate::support::reader(mmu, 1);
    let loaded = guest.load(&reader).unwrap();
    let freezing = Freezing(guest, other);
    // Its page is there, for a last harvest to see; the next fault waits.
    assert_eq!(resolve(&loaded, &reader, &freezing, write_fault(PAGE)), Outcome::Resumed);
    assert_eq!(target(guest, &reader, PAGE), Some(0x8000));
    assert_eq!(resolve(&loaded, &reader, &freezing, write_fault(2 * PAGE)), Outcome::Retry);
    assert_eq!(target(guest, &reader, 2 * PAGE), None);
}

#[test]
fn a_page_that_was_moved_while_its_fault_was_under_way_is_not_mapped_where_it_was() {
    const OLD: u64 = 0x8000;
    /// Gives the old frame; before the answer arrives, another CPU maps it, too, and moves the page away from it.
    struct Moving(&'static Guest<Staged>, stage2::quiescence::Reader<'static>);
    impl Backing for Moving {
        fn region(&self, ipa: Ipa) -> Region {
            Same.region(ipa)
        }
        fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
            let Self(guest, other) = self;
            let page = range(ipa.raw(), PAGE);
            guest.map(other, page, Pa::new(OLD), RW, Content::New).unwrap();
            guest.unmap_with(other, page, |leaf| assert_eq!(leaf.frame.peek().raw(), OLD)).unwrap();
            Ok(Page { frame: Pa::new(OLD), content: Content::Unchanged })
        }
        fn unused(&self, _ipa: Ipa, _page: Page) {}
    }
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    let moving = Moving(guest, crate::support::reader(mmu, 1));
    let loaded = guest.load(&reader).unwrap();
    assert_eq!(resolve(&loaded, &reader, &moving, write_fault(PAGE)), Outcome::Retry);
    assert_eq!(target(guest, &reader, PAGE), None, "the old frame is about to be reused");
}

#[test]
fn a_permission_that_was_taken_while_a_fault_was_under_way_is_not_granted_by_it() {
    /// Grants writing; before the page arrives, another CPU makes everything read-only.
    struct Protecting(&'static Guest<Staged>, stage2::quiescence::Reader<'static>);
    impl Backing for Protecting {
        fn region(&self, ipa: Ipa) -> Region {
            Same.region(ipa)
        }
        fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
            let Self(guest, other) = self;
            guest.protect(other, range(0, TABLE), stage2::descriptor::Permissions::R).unwrap();
            Same.page(ipa, write)
        }
        fn unused(&self, _ipa: Ipa, _page: Page) {}
    }
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    let protecting = Protecting(guest, crate::support::reader(mmu, 1));
    let loaded = guest.load(&reader).unwrap();
    assert_eq!(resolve(&loaded, &reader, &protecting, write_fault(PAGE)), Outcome::Retry);
    assert_eq!(target(guest, &reader, PAGE), None);
}

#[test]
fn to_restrict_what_another_cpu_has_restricted_and_not_flushed_is_to_flush_too() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    cue(FIRST_BARRIER, move || {
        let other = crate::support::reader(mmu, 1);
        mmu.arch().0.take_events();
        guest.protect(&other, range(0, PAGE), Permissions::R).unwrap();
        assert!(!tlbis(&mmu.arch().0).is_empty(), "its caller relies on it from now on");
    });
    guest.protect(&reader, range(0, PAGE), Permissions::R).unwrap();
    mmu.arch().0.take_events();
    guest.protect(&reader, range(0, PAGE), Permissions::R).unwrap();
    assert!(tlbis(&mmu.arch().0).is_empty(), "nobody else is at it now");
}

#[test]
fn an_unmap_that_meets_the_page_of_another_returns_when_no_tlb_has_it_and_leaves_the_frame_to_the_other() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    cue(FIRST_BARRIER, move || {
        let other = crate::support::reader(mmu, 1);
        mmu.arch().0.take_events();
        let unmapped = guest.unmap_with(&other, range(0, PAGE), |_| panic!("the first one's")).unwrap();
        assert_eq!(unmapped.leaves, 0);
        assert!(!tlbis(&mmu.arch().0).is_empty());
    });
    let mut frames = 0;
    guest.unmap_with(&reader, range(0, PAGE), |_| frames += 1).unwrap();
    assert_eq!(frames, 1);
}

#[test]
fn an_unmap_from_within_the_callback_of_another_hands_back_what_is_left_and_nothing_twice() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, 100 * PAGE);
    let (mut outer, mut inner) = (Vec::new(), Vec::new());
    let whole = range(0, 100 * PAGE);
    guest
        .unmap_with(&reader, whole, |leaf| {
            outer.push(leaf.ipa.raw() / PAGE);
            guest.unmap_with(&reader, whole, |leaf| inner.push(leaf.ipa.raw() / PAGE)).unwrap();
        })
        .unwrap();
    assert!(!outer.is_empty() && !inner.is_empty());
    outer.append(&mut inner);
    outer.sort_unstable();
    assert!(outer.into_iter().eq(0..100));
}

#[test]
fn what_is_being_handed_back_of_a_table_that_is_unmapped_whole_is_not_cleared_with_the_rest() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, TABLE);
    let (mut handed_back, mut by_region) = (0, 0);
    guest
        .unmap_with(&reader, range(0, TABLE), |_| {
            handed_back += 1;
            let rest = guest.unmap(&reader, range(0, TABLE)).unwrap();
            by_region += rest.peek().leaves;
        })
        .unwrap();
    assert!(handed_back > 1 && by_region > 0);
    assert_eq!(handed_back + by_region, 512, "each leaf once");
}

#[test]
fn to_protect_more_than_another_cpu_has_protected_and_not_flushed_takes_all_of_the_vmid() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, 2 * PAGE);
    cue(FIRST_BARRIER, move || {
        let other = crate::support::reader(mmu, 1);
        mmu.arch().0.take_events();
        // Of the first page nothing is left to restrict, and yet its caller relies on it.
        guest.protect(&other, range(0, 2 * PAGE), Permissions::R).unwrap();
        assert_eq!(tlbis(&mmu.arch().0), [Tlbi::Vmalls12e1 { scope: Scope::InnerShareable }]);
    });
    guest.protect(&reader, range(0, PAGE), Permissions::R).unwrap();
}

#[test]
fn a_reclaim_and_a_rearm_of_nothing_invalidate_nothing_while_another_cpu_unmaps() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let reader = reader(mmu, 0);
    map(guest, &reader, 0, 2 * PAGE);
    let harvester = crate::support::reader(mmu, 2);
    let mut log = guest.start_logging(&harvester, Initial::Clean).unwrap();
    cue(FIRST_BARRIER, move || {
        let mut other = crate::support::reader(mmu, 1);
        mmu.arch().0.take_events();
        for _ in 0..4 {
            other.quiescent();
            assert_eq!(guest.reclaim(&other, 8).unwrap(), Progress::default());
        }
        assert_eq!(log.rearm(&harvester, range(0, 64 * PAGE), &[u64::MAX]).unwrap().cleaned, 0);
        assert_eq!(tlbis(&mmu.arch().0), []);
    });
    unmap(guest, &reader, 0, PAGE);
}

#[test]
fn a_frozen_guest_is_not_settled_while_something_is_not_invalidated() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let mut reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    let frozen = guest.freeze(&reader).unwrap();
    let (here, there) = line();
    let other = std::thread::spawn(move || {
        let mut reader = crate::support::reader(mmu, 1);
        cue(FIRST_BARRIER, move || {
            there.say();
            there.wait();
        });
        unmap(guest, &reader, 0, PAGE);
        reader.quiescent();
    });
    here.wait();
    reader.quiescent();
    assert!(frozen.is_settled().is_err());
    here.say();
    other.join().unwrap();
    assert_eq!(frozen.is_settled(), Ok(()));
    frozen.thaw(&reader).map_err(|(_, why)| why).unwrap();
}

#[test]
fn the_place_of_a_table_that_was_taken_out_during_a_freeze_can_be_used_after_the_thaw() {
    let mmu = staged_machine(16);
    let guest = on_stage(mmu, 64);
    let mut reader = reader(mmu, 0);
    map(guest, &reader, 0, PAGE);
    unmap(guest, &reader, 0, PAGE);
    // Up to the point that only the table in the root is left, and its idle period is over.
    while mmu.memory().live() > 3 {
        reader.quiescent();
        guest.reclaim(&reader, 8).unwrap();
    }
    let (here, there) = line();
    let stage = std::rc::Rc::new(here);
    let other = std::thread::spawn(move || {
        let mut reader = crate::support::reader(mmu, 1);
        cue(FLUSH_IS_OVER, move || {
            there.say();
            there.wait();
        });
        while guest.reclaim(&reader, 8).unwrap().unlinked == 0 {
            reader.quiescent();
        }
    });
    // The reclaimer waits for this CPU, too.
    reader.offline(|| stage.wait());
    let frozen = guest.freeze(&reader).unwrap();
    let other = std::cell::Cell::new(Some(other));
    let at_cue = stage.clone();
    // The entries are thawed, the guest not quite.
    cue(FIRST_BARRIER, move || {
        at_cue.say();
        other.take().unwrap().join().unwrap();
    });
    frozen.thaw(&reader).map_err(|(_, why)| why).unwrap();
    map(guest, &reader, 0, PAGE);
}

#[test]
fn a_map_that_finds_its_path_taken_out_and_no_tables_left_leaves_no_empty_table_behind() {
    let (mmu, guest) = staged_guest(16);
    let mut reader = mmu.reader(CpuIndex(0)).unwrap();
    let tables = || mmu.memory().memory.live();
    // Until the table of level 2 is empty, and its idle period over.
    guest.map(&reader, range(0, PAGE), Pa::new(0), RW, Content::New).unwrap();
    let _ = guest.unmap(&reader, range(0, PAGE)).unwrap();
    while tables() > 3 {
        reader.quiescent();
        guest.reclaim(&reader, 8).unwrap();
    }
    reader.quiescent();
    // A leaf table is all that is missing; when there is one, so is the table above, and it is the last.
    mmu.memory().cue(At::Allocation, move || {
        let other = mmu.reader(CpuIndex(1)).unwrap();
        assert_eq!(guest.reclaim(&other, 8).unwrap().unlinked, 1);
        mmu.memory().memory.fail_after(1);
    });
    let mapped = guest.map(&reader, range(0, PAGE), Pa::new(0), RW, Content::New);
    assert!(matches!(mapped, Err(MapError::Stopped(stopped)) if stopped.cause == MapCause::Retry), "{mapped:?}");
    assert!(mmu.memory().is_over());
    reader.quiescent();
    guest.reclaim(&reader, 8).unwrap();
    assert_eq!(tables(), 2, "but for the root");
    guest.map(&reader, range(0, PAGE), Pa::new(0), RW, Content::New).unwrap();
}
