//! Sequences that are right, and what is found when one step of them is left out or weakened.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::addr::{Ipa, Level};
use crate::arch::{Dsb, RangeOperand, Scope, Tlbi, ttl};
use crate::descriptor::{Attributes, Descriptor, Format, Marker, MemoryType, Permissions};

const ROOT: Pa = Pa::new(0x1_0000);
const L2: Pa = Pa::new(0x1_1000);
const L3: Pa = Pa::new(0x1_2000);
const OTHER: Pa = Pa::new(0x1_3000);
const FRAME: Pa = Pa::new(0x4000_0000);
const IPA: u64 = 0x3000;
/// Its place in the table of level 3.
const AT: usize = 3;
const SHAPE: Shape = Shape { page_shift: 12, index_bits: 9 };
const RW: Attributes = Attributes::normal(Permissions::RW);

fn checker() -> Checker {
    Checker::new(Options { shape: SHAPE, cpus: 3, locks: true, shared_frames: None })
}

/// 39 bits of IPA: one root table of level 1.
fn registers(root: Pa, vmid: u16) -> Stage2Registers {
    Stage2Registers { vtcr: 25 | 1 << 6 | 1 << 19, vttbr: u64::from(vmid) << 48 | root.raw(), fwb: false }
}

fn load(vmid: u16) -> Event {
    Event::Registers { registers: registers(ROOT, vmid), walks: true }
}

fn enter(vmid: u16) -> Event {
    Event::Registers { registers: registers(ROOT, vmid), walks: false }
}

fn leaf(frame: Pa, dirty: bool) -> Descriptor {
    Format::default().leaf(Level::L3, frame, RW, dirty)
}

fn removing() -> Descriptor {
    leaf(FRAME, true).into_removing(0)
}

/// A store with release, under the lock.
fn store(table: Pa, index: usize, old: Descriptor, new: Descriptor) -> [Event; 3] {
    let lock = Lock::Table(table);
    let store = Event::Store { table, index, old: old.raw(), new: new.raw(), release: true };
    [Event::Locked(lock), store, Event::Unlocked(lock)]
}

fn tlbi(operation: Tlbi) -> Event {
    Event::Tlbi(operation.into())
}

fn by_ipa(ipa: u64, leaf: Option<Level>) -> Event {
    tlbi(Tlbi::Ipa { ipa: Ipa::new(ipa), ttl: ttl(12, leaf), scope: Scope::InnerShareable })
}

fn vmalle1() -> Event {
    tlbi(Tlbi::Vmalle1 { scope: Scope::InnerShareable })
}

fn all_of_vmid() -> Event {
    tlbi(Tlbi::Vmalls12e1 { scope: Scope::InnerShareable })
}

const ISHST: Event = Event::Dsb(Dsb::Ishst);
const ISH: Event = Event::Dsb(Dsb::Ish);

/// The whole sequence for leaves at `ipa`, in VMID 5.
fn flush(ipa: u64) -> Vec<Event> {
    vec![ISHST, enter(5), Event::Isb, by_ipa(ipa, Some(Level::L3)), ISH, vmalle1(), ISH, Event::Isb]
}

/// A root with a table of level 2 and one of level 3, that maps [`IPA`]; CPU 1 has it loaded under VMID 5.
fn mapped() -> Checker {
    let mut checker = checker();
    for table in [ROOT, L2, L3] {
        checker.step(0, Event::TableGiven { table, order: 0 });
    }
    let links = [(ROOT, Descriptor::table(L2), 0), (L2, Descriptor::table(L3), 0), (L3, leaf(FRAME, true), AT)];
    for (table, entry, index) in links.into_iter().rev() {
        run(&mut checker, 0, &store(table, index, Descriptor::NONE, entry));
    }
    checker.step(0, ISHST);
    run(&mut checker, 1, &[load(5), Event::Isb]);
    assert_sound(&checker);
    checker
}

fn run(checker: &mut Checker, cpu: u16, events: &[Event]) {
    events.iter().for_each(|&event| checker.step(cpu, event));
}

fn assert_sound(checker: &Checker) {
    if let Some(violation) = checker.violations().first() {
        panic!("{violation}");
    }
}

fn kinds(checker: &Checker) -> Vec<Kind> {
    checker.violations().iter().map(|violation| violation.kind).collect()
}

/// Mark, flush, settle, give the frame back.
fn unmap() -> Vec<Event> {
    let mut events = store(L3, AT, leaf(FRAME, true), removing()).to_vec();
    events.extend(flush(IPA));
    events.extend(store(L3, AT, removing(), Descriptor::NONE));
    events.extend([ISHST, Event::FrameFreed { frame: FRAME, bytes: 4096 }]);
    events
}

/// `events` are right in `scene`; without `step`, or with `instead` of it, `kind` is found.
fn assert_needs(scene: impl Fn() -> Checker, events: &[Event], step: Event, instead: Option<Event>, kind: Kind) {
    let mut good = scene();
    run(&mut good, 0, events);
    assert_sound(&good);
    let places = events.iter().enumerate().filter(|(_, event)| **event == step).map(|(at, _)| at);
    let places: Vec<usize> = places.collect();
    assert!(!places.is_empty(), "{step:?} is a step");
    for at in places {
        let mut bad = scene();
        let mut events = events.to_vec();
        events.splice(at..=at, instead);
        run(&mut bad, 0, &events);
        assert!(kinds(&bad).contains(&kind), "step {at}, {step:x?}: {:?}", kinds(&bad));
    }
}

#[test]
fn an_unmap_needs_each_step_of_its_invalidation() {
    for (step, instead) in [
        (ISHST, None),
        (by_ipa(IPA, Some(Level::L3)), None),
        (vmalle1(), None),
        (ISH, None),
        (ISH, Some(ISHST)),
        (ISH, Some(Event::Dsb(Dsb::Nsh))),
        (by_ipa(IPA, Some(Level::L3)), Some(by_ipa(IPA + 0x1000, Some(Level::L3)))),
        (by_ipa(IPA, Some(Level::L3)), Some(by_ipa(IPA, Some(Level::L2)))),
        (enter(5), Some(enter(6))),
    ] {
        let mut events = unmap();
        // The last barrier is for what comes after.
        let last = events.iter().rposition(|event| *event == ISHST).unwrap();
        events.remove(last);
        assert_needs(mapped, &events, step, instead, Kind::FrameFreedWhileCached);
        assert_needs(mapped, &events, step, instead, Kind::SettledWhileCached);
    }
}

#[test]
fn an_invalidation_that_was_issued_before_the_mark_and_completes_later_brings_nothing_back_and_takes_nothing_for_good()
{
    let earlier = || {
        let mut checker = mapped();
        run(&mut checker, 2, &flush(IPA)[..4]);
        checker
    };
    let unmap = unmap();
    let until = 1 + unmap.iter().position(|&event| event == ISH).unwrap();
    let mut both = earlier();
    run(&mut both, 0, &unmap[..until]);
    run(&mut both, 2, &flush(IPA)[4..]);
    run(&mut both, 0, &unmap[until..]);
    assert_sound(&both);

    let mut earlier_alone = earlier();
    let mark = store(L3, AT, leaf(FRAME, true), removing());
    run(&mut earlier_alone, 0, &mark);
    earlier_alone.step(0, ISHST);
    run(&mut earlier_alone, 2, &flush(IPA)[4..]);
    run(&mut earlier_alone, 0, &store(L3, AT, removing(), Descriptor::NONE));
    assert_eq!(kinds(&earlier_alone), [Kind::SettledWhileCached]);
}

#[test]
fn a_local_invalidation_does_not_reach_another_cpu() {
    let operation = Tlbi::Ipa { ipa: Ipa::new(IPA), ttl: 0, scope: Scope::Local };
    for (step, instead) in
        [(by_ipa(IPA, Some(Level::L3)), tlbi(operation)), (vmalle1(), tlbi(Tlbi::Vmalle1 { scope: Scope::Local }))]
    {
        assert_needs(mapped, &unmap(), step, Some(instead), Kind::FrameFreedWhileCached);
    }
}

#[test]
fn all_of_the_vmid_takes_both_forms_at_once_and_vmalle1_alone_takes_none_that_can_be_made_anew() {
    let mut events = store(L3, AT, leaf(FRAME, true), removing()).to_vec();
    events.extend([ISHST, enter(5), Event::Isb, all_of_vmid(), ISH]);
    events.extend(store(L3, AT, removing(), Descriptor::NONE));
    assert_needs(mapped, &events, all_of_vmid(), Some(vmalle1()), Kind::SettledWhileCached);
}

#[test]
fn a_range_covers_what_its_operand_says_and_no_page_more() {
    let range = |base: u64, level| {
        let (operand, _) = RangeOperand::largest(Ipa::new(base), 12, 2, 0, level).unwrap();
        tlbi(Tlbi::IpaRange { operand, scope: Scope::InnerShareable })
    };
    let good = range(IPA - 0x1000, Some(Level::L3));
    let mut events = unmap();
    let at = events.iter().position(|event| *event == by_ipa(IPA, Some(Level::L3))).unwrap();
    events[at] = good;
    for bad in [range(IPA - 0x2000, Some(Level::L3)), range(IPA + 0x1000, None), range(IPA, Some(Level::L2))] {
        assert_needs(mapped, &events, good, Some(bad), Kind::FrameFreedWhileCached);
    }
}

/// Detach the empty table of level 3, flush, give it back.
fn detach() -> (impl Fn() -> Checker, Vec<Event>) {
    let scene = || {
        let mut checker = mapped();
        run(&mut checker, 0, &unmap());
        checker
    };
    let marker = Descriptor::table(L3).into_marker(Marker::Detached);
    let mut events = store(L2, 0, Descriptor::table(L3), marker).to_vec();
    events.extend([ISHST, enter(5), Event::Isb, by_ipa(0, None), ISH, vmalle1(), ISH]);
    events.extend(store(L2, 0, marker, Descriptor::NONE));
    events.push(Event::TableFreed { table: L3, order: 0 });
    (scene, events)
}

#[test]
fn a_table_needs_an_invalidation_that_is_for_table_entries() {
    let (scene, events) = detach();
    for instead in [None, Some(by_ipa(0, Some(Level::L3))), Some(by_ipa(0, Some(Level::L2)))] {
        assert_needs(&scene, &events, by_ipa(0, None), instead, Kind::TableFreedWhileCached);
        assert_needs(&scene, &events, by_ipa(0, None), instead, Kind::SettledWhileCached);
    }
    let leaf_only = Invalidate { instruction: Instruction::Ipas2le1, operand: 0, scope: Scope::InnerShareable };
    assert_needs(&scene, &events, by_ipa(0, None), Some(Event::Tlbi(leaf_only)), Kind::TableFreedWhileCached);
    assert_needs(&scene, &events, ISHST, None, Kind::TableFreedWhileCached);
}

#[test]
fn a_table_that_is_given_back_or_linked_too_early_is_found() {
    let (scene, events) = detach();
    let mut early = scene();
    run(&mut early, 0, &[Event::TableFreed { table: L3, order: 0 }]);
    assert_eq!(kinds(&early), [Kind::TableFreedWhileCached]);

    // Another table where the first was, before the flush.
    let mut conflicting = scene();
    run(&mut conflicting, 0, &events[..3]);
    run(&mut conflicting, 0, &[Event::TableGiven { table: OTHER, order: 0 }]);
    let marker = Descriptor::table(L3).into_marker(Marker::Detached);
    run(&mut conflicting, 0, &store(L2, 0, marker, Descriptor::table(OTHER)));
    assert!(kinds(&conflicting).contains(&Kind::ConflictingTranslations));

    let mut twice = scene();
    run(&mut twice, 0, &events);
    run(&mut twice, 0, &[Event::TableFreed { table: L3, order: 0 }]);
    assert_eq!(kinds(&twice), [Kind::FreedTwice]);
}

#[test]
fn a_table_outlives_the_read_sections_that_have_seen_it() {
    let look = Event::Look { table: L3, index: AT, acquire: true };
    let (scene, events) = detach();
    let with_reader = |between: &[Event]| {
        let mut checker = scene();
        run(&mut checker, 2, &[look]);
        let (last, before) = events.split_last().unwrap();
        run(&mut checker, 0, before);
        run(&mut checker, 2, between);
        run(&mut checker, 0, &[*last]);
        checker
    };
    assert_sound(&with_reader(&[Event::SectionEnded]));
    assert_eq!(kinds(&with_reader(&[])), [Kind::TableFreedWhileRead]);
    let mut late = with_reader(&[Event::SectionEnded]);
    run(&mut late, 2, &[look]);
    assert_eq!(kinds(&late), [Kind::FreedTableUsed]);
}

/// Give out a table, fill it, link it.
fn publish(release: bool, barrier: Option<Event>) -> Vec<Event> {
    let lock = |table| Lock::Table(table);
    let entry = leaf(FRAME.offset(0x1000), true).raw();
    let link = Descriptor::table(OTHER).raw();
    let mut events = vec![
        Event::TableGiven { table: OTHER, order: 0 },
        Event::Store { table: OTHER, index: 0, old: 0, new: entry, release },
    ];
    events.extend(barrier);
    events.extend([
        Event::Locked(lock(L2)),
        Event::Store { table: L2, index: 1, old: 0, new: link, release },
        Event::Unlocked(lock(L2)),
        ISHST,
    ]);
    events
}

#[test]
fn a_table_is_linked_by_a_release_or_behind_a_barrier() {
    for (release, barrier) in [(true, None), (false, Some(Event::Fence)), (false, Some(ISHST))] {
        let mut good = mapped();
        run(&mut good, 0, &publish(release, barrier));
        assert_sound(&good);
    }
    let mut bad = mapped();
    run(&mut bad, 0, &publish(false, None));
    assert_eq!(kinds(&bad), [Kind::PublishedUnprepared]);
}

#[test]
fn what_another_cpu_stored_is_behind_a_barrier_only_if_it_is_known_and_released() {
    // CPU 2 marks; CPU 0 flushes and settles.
    let mark = store(L3, AT, leaf(FRAME, true), removing());
    let rest = &unmap()[3..];
    let lock = Lock::Table(L3);
    for (knows, good) in [
        (vec![Event::Locked(lock), Event::Unlocked(lock)], true),
        (vec![Event::Look { table: L3, index: AT, acquire: true }, Event::Fence], true),
        // Read, and nothing released since: the barrier for stores does not have it.
        (vec![Event::Look { table: L3, index: AT, acquire: true }], false),
        (vec![], false),
    ] {
        let mut checker = mapped();
        run(&mut checker, 2, &mark);
        run(&mut checker, 0, &knows);
        run(&mut checker, 0, rest);
        assert_eq!(checker.violations().is_empty(), good, "{knows:x?}: {:?}", kinds(&checker));
    }
}

#[test]
fn another_translation_needs_a_break() {
    let old = leaf(FRAME, true);
    let other_memory = Attributes { memory: MemoryType::NormalNonCacheable, ..RW };
    let elsewhere = leaf(FRAME.offset(0x1000), true);
    let colder = Format::default().leaf(Level::L3, FRAME, other_memory, true);
    for new in [elsewhere, colder] {
        let mut bad = mapped();
        run(&mut bad, 0, &store(L3, AT, old, new));
        assert_eq!(kinds(&bad), [Kind::ConflictingTranslations]);
        let mut good = mapped();
        let marker = old.into_marker(Marker::Breaking);
        run(&mut good, 0, &store(L3, AT, old, marker));
        run(&mut good, 0, &flush(IPA));
        run(&mut good, 0, &store(L3, AT, marker, new));
        assert_sound(&good);
    }
    for new in [old.with_clean(), old.with_old()] {
        let mut good = mapped();
        run(&mut good, 0, &store(L3, AT, old, new));
        assert_sound(&good);
    }
}

#[test]
fn a_block_and_the_pages_under_it_are_never_both_cached() {
    let under = FRAME.offset(0x20_0000);
    let block = Format::default().leaf(Level::L2, under, RW, true);
    let scene = || {
        let mut checker = mapped();
        run(&mut checker, 0, &store(L2, 1, Descriptor::NONE, block));
        checker
    };
    let mut prepared = vec![Event::TableGiven { table: OTHER, order: 0 }];
    let page = Event::Store { table: OTHER, index: 0, old: 0, new: leaf(under, true).raw(), release: true };
    prepared.push(page);
    let table = Descriptor::table(OTHER);
    let mut bad = scene();
    run(&mut bad, 0, &prepared);
    run(&mut bad, 0, &store(L2, 1, block, table));
    assert!(kinds(&bad).contains(&Kind::ConflictingTranslations));
    let marker = block.into_marker(Marker::Breaking);
    let mut good = scene();
    run(&mut good, 0, &prepared);
    run(&mut good, 0, &store(L2, 1, block, marker));
    let mut events = flush(0x20_0000);
    events[3] = by_ipa(0x20_0000, Some(Level::L2));
    run(&mut good, 0, &events);
    run(&mut good, 0, &store(L2, 1, marker, table));
    assert_sound(&good);
}

#[test]
fn a_store_to_a_linked_table_needs_its_lock_and_a_lock_has_one_holder() {
    let new = leaf(FRAME.offset(0x1000), true).raw();
    let store = Event::Store { table: L3, index: 0, old: 0, new, release: true };
    for (events, found) in [
        (vec![store], vec![Kind::StoredWithoutLock]),
        (vec![Event::Locked(Lock::Table(L2)), store], vec![Kind::StoredWithoutLock]),
        (vec![Event::Locked(Lock::Table(L3)), store], vec![]),
        (vec![Event::Unlocked(Lock::Table(L3))], vec![Kind::LockNotExclusive]),
    ] {
        let mut checker = mapped();
        run(&mut checker, 0, &events);
        assert_eq!(kinds(&checker), found, "{events:x?}");
    }
    let mut checker = mapped();
    run(&mut checker, 0, &[Event::Locked(Lock::Table(L3))]);
    run(&mut checker, 2, &[Event::Locked(Lock::Table(L3))]);
    assert_eq!(kinds(&checker), [Kind::LockNotExclusive]);
}

#[test]
fn a_vmid_stands_for_one_tree_until_everything_of_it_is_invalidated() {
    let other = |walks| Event::Registers { registers: registers(OTHER, 5), walks };
    let unload = Event::Registers { registers: Stage2Registers::default(), walks: true };
    let scene = || {
        let mut checker = mapped();
        run(&mut checker, 0, &[Event::TableGiven { table: OTHER, order: 0 }]);
        run(&mut checker, 1, &[unload]);
        checker
    };
    let mut bad = scene();
    run(&mut bad, 0, &[other(true)]);
    assert_eq!(kinds(&bad), [Kind::VmidInUseTwice]);
    for all in [all_of_vmid(), tlbi(Tlbi::Alle1 { scope: Scope::InnerShareable })] {
        let mut good = scene();
        run(&mut good, 0, &[enter(5), Event::Isb, all, ISH, other(true)]);
        assert_sound(&good);
        let mut early = scene();
        run(&mut early, 0, &[enter(5), Event::Isb, all, other(true)]);
        assert_eq!(kinds(&early), [Kind::VmidInUseTwice]);
    }
    // Two CPUs at once.
    let mut both = mapped();
    run(&mut both, 0, &[other(true)]);
    assert!(kinds(&both).contains(&Kind::VmidInUseTwice));
}

#[test]
fn an_invalidation_waits_for_its_vmid_to_be_synchronized() {
    assert_needs(mapped, &unmap()[..7], Event::Isb, None, Kind::ContextNotSynchronized);
}

#[test]
fn a_frame_is_in_one_place() {
    let mut twice = mapped();
    run(&mut twice, 0, &store(L3, 7, Descriptor::NONE, leaf(FRAME, true)));
    assert_eq!(kinds(&twice), [Kind::FrameMappedTwice]);
    let mut reused = mapped();
    run(&mut reused, 0, &store(L3, AT, leaf(FRAME, true), removing()));
    run(&mut reused, 0, &store(L3, 7, Descriptor::NONE, leaf(FRAME, true)));
    assert_eq!(kinds(&reused), [Kind::FrameReusedWhileCached]);
    let mut moved = mapped();
    run(&mut moved, 0, &unmap());
    run(&mut moved, 0, &store(L3, 7, Descriptor::NONE, leaf(FRAME, true)));
    assert_sound(&moved);
}

#[test]
fn a_page_is_copied_when_no_store_passes_unseen() {
    let mut events = store(L3, AT, leaf(FRAME, true), leaf(FRAME, true).with_clean()).to_vec();
    events.extend(flush(IPA));
    events.push(Event::Copied { ipa: IPA });
    for (step, instead) in [(by_ipa(IPA, Some(Level::L3)), None), (vmalle1(), None), (ISH, None), (ISHST, None)] {
        assert_needs(mapped, &events, step, instead, Kind::WriteLost);
    }
    // While it is dirty it will be copied again.
    let mut dirty = mapped();
    run(&mut dirty, 0, &[Event::Copied { ipa: IPA }]);
    assert_sound(&dirty);
}

#[test]
fn what_a_local_barrier_completes_is_seen_by_one_walker() {
    // CPU 1 relaxes a permission for itself, as a fault does: its own TLB is rid of the stricter entry, others' are not.
    let strict = leaf(FRAME, true).with_clean();
    let scene = || {
        let mut checker = mapped();
        run(&mut checker, 0, &store(L3, AT, leaf(FRAME, true), strict));
        run(&mut checker, 0, &flush(IPA));
        run(&mut checker, 2, &[load(5), Event::Isb]);
        checker
    };
    let local = Tlbi::Ipa { ipa: Ipa::new(IPA), ttl: 0, scope: Scope::Local };
    let relax = [
        Event::Dsb(Dsb::Nshst),
        tlbi(local),
        Event::Dsb(Dsb::Nsh),
        tlbi(Tlbi::Vmalle1 { scope: Scope::Local }),
        Event::Dsb(Dsb::Nsh),
    ];
    let may_use = |checker: &Checker, cpu| {
        let translations = checker.translations(cpu, IPA);
        translations.iter().any(|translation| translation.leaf.is_some_and(|leaf| !leaf.permits(Access::Store)))
    };
    let relaxed = |without: Option<usize>| {
        let mut checker = scene();
        run(&mut checker, 1, &store(L3, AT, strict, leaf(FRAME, true)));
        let steps = relax.iter().enumerate().filter(|(at, _)| Some(*at) != without).map(|(_, step)| *step);
        run(&mut checker, 1, &steps.collect::<Vec<_>>());
        checker
    };
    assert!(!may_use(&relaxed(None), 1) && may_use(&relaxed(None), 2));
    for at in 0..relax.len() {
        assert!(may_use(&relaxed(Some(at)), 1), "without step {at}");
    }
}
