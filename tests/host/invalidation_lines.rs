//! Single lines again, where no interleaving is needed: what is invalidated, in which regime and under which VMID, and when a
//! frame can be had back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use stage2::addr::{Ipa, Level, Pa};
use stage2::arch::{Arch, Dsb, SavedContext, Scope, Stage1Access, Stage2Registers, Tlbi};
use stage2::descriptor::Permissions;
use stage2::dirty::{Initial, Word};
use stage2::error::{ChangeCause, Corrupt};
use stage2::fault::Outcome;
use stage2::geometry::Granule4K;
use stage2::model::{Event, ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::{ProtectError, QueryError, UnmapError};

use crate::protocol_lines::Same;
use crate::support::*;

/// The table of `level` on the way to `ipa`, found as the hardware would in the tree that was loaded last in `events`.
pub(crate) fn table(memory: &ModelMemory<Granule4K>, events: &[Event], level: Level, ipa: u64) -> Pa {
    let loaded = |event: &Event| if let Event::Load(registers) = event { Some(registers.vttbr) } else { None };
    let mut table = Pa::new(events.iter().rev().find_map(loaded).expect("a load") & 0xffff_ffff_f000);
    for (at, shift) in [(Level::L1, 30), (Level::L2, 21)] {
        if at < level {
            table =
                Pa::new(word(memory, table, (ipa >> shift & 511) as usize).load(Ordering::Relaxed) & 0xffff_ffff_f000);
        }
    }
    table
}

/// The entry for `ipa` in that table.
pub(crate) fn entry<'m>(memory: &'m ModelMemory<Granule4K>, events: &[Event], level: Level, ipa: u64) -> &'m Word {
    word(memory, table(memory, events, level, ipa), (ipa >> (12 + 9 * (3 - level as u32)) & 511) as usize)
}

#[test]
fn a_frame_is_had_back_once_no_reader_can_look_at_it() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let mut looking = crate::support::reader(mmu, 1);
    map(&guest, &reader, 0, 2 * PAGE);
    let mut frames = Vec::new();
    guest.unmap_with(&reader, range(0, PAGE), |removed| frames.push(removed.frame)).unwrap();
    let region = guest.unmap(&reader, range(PAGE, PAGE)).unwrap();
    reader.quiescent();
    let frame = frames.pop().unwrap().poll().expect_err("the other reader may copy from it").0;
    let region = region.poll().expect_err("likewise").0;
    looking.quiescent();
    assert_eq!(frame.poll().ok(), Some(Pa::new(0)));
    assert!(region.poll().is_ok());
    tear_down(guest, &reader);
}

#[test]
fn every_page_that_a_rearm_cleans_is_invalidated() {
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 1, 16, plain_features());
    let guest = logged_guest(mmu, 0, 64);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, 0, 8 * PAGE);
    let mut log = guest.start_logging(&reader, Initial::Dirty).unwrap();
    mmu.arch().take_events();
    assert_eq!(log.rearm(&reader, range(0, 64 * PAGE), &[0b1_0110]).unwrap().cleaned, 3);
    let by_ipa = |page: u64| Tlbi::Ipa { ipa: Ipa::new(page * PAGE), ttl: 0, scope: Scope::InnerShareable };
    let all = Tlbi::Vmalle1 { scope: Scope::InnerShareable };
    assert_eq!(tlbis(mmu.arch()), [by_ipa(1), by_ipa(2), by_ipa(3), by_ipa(4), all]);
    log.stop();
    tear_down(guest, &reader);
}

/// A guest with a table at 0, and at [`TABLE`] a writable block where a leaf table was: no operation makes one yet.
fn guest_with_a_block() -> (Guest, Reader<'static>) {
    let mmu = machine(16);
    let guest = logged_guest(mmu, 0, 1024);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, 0, PAGE);
    map(&guest, &reader, TABLE, PAGE);
    mmu.arch().take_events();
    drop(guest.load(&reader).unwrap());
    let events = mmu.arch().take_events();
    let page = entry(mmu.memory(), &events, Level::L3, TABLE).load(Ordering::Relaxed);
    entry(mmu.memory(), &events, Level::L2, TABLE).store(page & !0b10, Ordering::Relaxed);
    (guest, reader)
}

#[test]
fn a_part_of_a_block_is_an_error() {
    let (guest, reader) = guest_with_a_block();
    let mapping = guest.query(&reader, Ipa::new(TABLE + PAGE)).unwrap().unwrap();
    assert_eq!((mapping.level, mapping.dirty), (Level::L2, true));
    for part in [range(TABLE, PAGE), range(TABLE + PAGE, TABLE - PAGE), range(0, TABLE + PAGE)] {
        let Err(UnmapError::Stopped(stopped)) = guest.unmap(&reader, part) else { panic!("unmapped") };
        assert_eq!(stopped.cause, ChangeCause::PartOfBlock);
        let Err(ProtectError::Stopped(stopped)) = guest.protect(&reader, part, Permissions::R) else {
            panic!("changed")
        };
        assert_eq!(stopped.cause, ChangeCause::PartOfBlock);
        assert_eq!(guest.query(&reader, Ipa::new(TABLE + PAGE)), Ok(Some(mapping)));
    }
}

#[test]
fn what_was_marked_before_an_unmap_stops_is_invalidated() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, 2 * PAGE);
    let loaded = guest.load(&reader).unwrap();
    // Reserved: the unmap goes so far and no further.
    entry(mmu.memory(), &mmu.arch().take_events(), Level::L3, PAGE).store(0b01, Ordering::Relaxed);
    let Err(UnmapError::Stopped(stopped)) = guest.unmap(&reader, range(0, 2 * PAGE)) else { panic!("unmapped") };
    assert_eq!(stopped.done, Some(range(0, PAGE)));
    assert_eq!(target(&guest, &reader, 0), None);
    assert!(!tlbis(mmu.arch()).is_empty(), "it is unmapped, and in no TLB");
    drop(loaded);
}

/// A CPU under VHE: what applies to a regime is in the guest's, or it would be for the host. It knows what it has loaded.
#[derive(Default)]
struct Vhe {
    in_guest: AtomicBool,
    loaded: Mutex<Stage2Registers>,
}

impl Vhe {
    fn in_the_guests_regime(&self) {
        assert!(self.in_guest.load(Ordering::Relaxed), "it would be for the host's regime");
    }
}

impl Arch for Vhe {
    fn dsb(&self, _barrier: Dsb) {}

    fn isb(&self) {}

    fn tlbi(&self, operation: Tlbi) {
        if !matches!(operation, Tlbi::Alle1 { .. }) {
            self.in_the_guests_regime();
        }
    }

    fn enter_vmid(&self, _registers: Stage2Registers) -> SavedContext {
        self.in_guest.store(true, Ordering::Relaxed);
        SavedContext::default()
    }

    fn leave_vmid(&self, _saved: SavedContext) {
        self.in_guest.store(false, Ordering::Relaxed);
    }

    fn load(&self, registers: Stage2Registers) {
        *self.loaded.lock().unwrap() = registers;
    }

    fn unload(&self) {
        self.load(Stage2Registers::default());
    }

    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        self.in_guest.store(true, Ordering::Relaxed);
        let result = f();
        self.in_guest.store(false, Ordering::Relaxed);
        result
    }

    fn is_loaded(&self, registers: Stage2Registers) -> bool {
        *self.loaded.lock().unwrap() == registers
    }

    fn translate_stage1(&self, address: u64, _access: Stage1Access) -> u64 {
        self.in_the_guests_regime();
        address
    }

    fn clean_invalidate_to_poc(&self, _start: Pa, _bytes: u64) {}

    fn synchronize_instructions(&self, _start: Pa, _bytes: u64, _clean: bool, _invalidate: bool) {}
}

#[test]
fn what_a_cpu_does_for_the_guest_it_has_loaded_it_does_in_that_guests_regime() {
    let mmu = machine_of::<_, Granule4K>(Vhe::default(), 1, 16, features());
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    map(&guest, &reader, 0x4000, PAGE);
    guest.write_protect(&reader, range(0x4000, PAGE)).unwrap();
    // HPFAR_EL2 does not say where: AT does. And then the stricter entry of this CPU goes.
    let denied = data_abort(0x4000, code::PERMISSION | WRITE);
    assert_eq!(resolve(&loaded, &reader, &Same, denied), Outcome::Resumed);
    unmap(&guest, &reader, 0x4000, PAGE);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_cpu_that_was_off_has_its_tree_loaded_again_before_the_guest_runs() {
    let mmu = machine_of::<_, Granule4K>(Vhe::default(), 1, 16, features());
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    let mut loaded = guest.load(&reader).unwrap();
    let registers = *mmu.arch().loaded.lock().unwrap();
    *mmu.arch().loaded.lock().unwrap() = Stage2Registers::default();
    assert_eq!(loaded.run(&mut reader, || *mmu.arch().loaded.lock().unwrap()), Ok(registers));
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_vmid_that_is_renewed_for_an_invalidation_is_held_like_any_other() {
    let mmu = machine_of::<_, Granule4K>(Staged(ModelArch::new()), 2, 1200, features().without_vmid16());
    let guest: &'static Guest<Staged> = Box::leak(Box::new(guest(mmu)));
    let reader = reader(mmu, 0);
    give_vmid(guest, &reader);
    map(guest, &reader, 0, PAGE);
    let roll_over = move || {
        let (other, before) = (crate::support::reader(mmu, 1), mmu.vmids().rollovers());
        let others: Vec<Guest<Staged>> = (0..258).map(|_| crate::support::guest(mmu)).collect();
        others.iter().for_each(|guest| give_vmid(guest, &other));
        assert!(mmu.vmids().rollovers() > before);
        std::mem::forget(others);
    };
    // Its VMID is of an old generation now.
    roll_over();
    mmu.arch().0.take_events();
    cue(
        |event| matches!(event, Event::Tlbi(Tlbi::Ipa { .. })),
        move || {
            let vmid = |registers: &Stage2Registers| registers.vttbr >> 48;
            let entered = mmu.arch().0.take_events();
            let held =
                entered.iter().find_map(|event| if let Event::EnterVmid(to) = event { Some(vmid(to)) } else { None });
            roll_over();
            let events = mmu.arch().0.take_events();
            let rollover = events.iter().position(|event| matches!(event, Event::Tlbi(Tlbi::Alle1 { .. }))).unwrap();
            let since = events[rollover..].iter();
            let loaded: Vec<u64> =
                since.filter_map(|event| if let Event::Load(to) = event { Some(vmid(to)) } else { None }).collect();
            assert!(!loaded.is_empty() && !loaded.contains(&held.unwrap()));
        },
    );
    unmap(guest, &reader, 0, PAGE);
}

#[test]
fn a_guest_that_one_cpu_never_leaves_keeps_its_vmid_through_two_rollovers_for_all() {
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 3, 2048, features().without_vmid16());
    let (resident, coming, reader) = (reader(mmu, 0), reader(mmu, 1), reader(mmu, 2));
    let shared = guest(mmu);
    let vmid_of_a_visit = || {
        mmu.arch().take_events();
        drop(shared.load(&coming).unwrap());
        let loaded = |event: &Event| if let Event::Load(to) = event { Some(to.vttbr >> 48) } else { None };
        mmu.arch().take_events().iter().find_map(loaded)
    };
    // It stays in the guest: it does not enter again.
    let loaded = shared.load(&resident).unwrap();
    let vmid = vmid_of_a_visit();
    for rollovers in 1..4 {
        while mmu.vmids().rollovers() < rollovers {
            let other = guest(mmu);
            give_vmid(&other, &reader);
            std::mem::forget(other);
        }
        assert_eq!(vmid_of_a_visit(), vmid);
    }
    drop(loaded);
}

#[test]
fn to_take_the_permission_to_fetch_invalidates() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    map(&guest, &reader, 0, PAGE);
    guest.protect(&reader, range(0, PAGE), Permissions::RWX).unwrap();
    mmu.arch().take_events();
    guest.protect(&reader, range(0, PAGE), Permissions::RW).unwrap();
    assert!(!tlbis(mmu.arch()).is_empty());
    tear_down(guest, &reader);
}

#[test]
fn an_entry_that_leads_out_of_table_memory_is_said_to_be_corrupt() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    drop(guest.load(&reader).unwrap());
    entry(mmu.memory(), &mmu.arch().take_events(), Level::L2, 0).store(0x7fff_f003, Ordering::Relaxed);
    let corrupt = Corrupt { ipa: Ipa::new(0), level: Level::L2 };
    assert_eq!(guest.query(&reader, Ipa::new(0)), Err(QueryError::Corrupt(corrupt)));
}
