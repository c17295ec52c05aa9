//! Faults, from the registers the CPU reports to what the embedder is to do.

use stage2::addr::{Ipa, IpaRange, Pa};
use stage2::arch::{Scope, Tlbi};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::Content;
use stage2::fault::decode::{MmioSize, NotAnAbort};
use stage2::fault::inject::GuestRegisters;
use stage2::fault::{FaultError, Outcome, Page, Region, Syndrome, Unavailable};
use stage2::model::ModelArch;

use crate::support::*;

/// The fault status code that the guest is to see.
fn reflected(outcome: Outcome) -> u64 {
    let Outcome::Reflect(reflection) = outcome else { panic!("{outcome:?}") };
    let at_el1 = GuestRegisters { spsr_el2: 0b0101, ..GuestRegisters::default() };
    reflection.inject(&at_el1).unwrap().esr_el1 & 0x3f
}

const EXTERNAL_ABORT: u64 = 0b01_0000;

#[test]
fn a_translation_fault_maps_the_page_that_the_backing_gives() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0x8000, RW);
    assert_eq!(resolve(&loaded, &reader, &memory, write_fault(0x4567)), Outcome::Resumed);
    assert_eq!(*memory.asked.borrow(), [(Ipa::new(0x4000), true)]);
    assert_eq!(target(&guest, &reader, 0x4567), Some(0x8567));
    assert!(memory.unused.borrow().is_empty());
    assert_eq!(mmu.statistics().faults_translation, 1);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn an_instruction_fetch_maps_a_page_too() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let fetch = instruction_abort(0x4000, code::TRANSLATION);
    let executable = Memory::at(0x8000, Attributes::normal(Permissions::RX));
    assert_eq!(resolve(&loaded, &reader, &executable, fetch), Outcome::Resumed);
    let data = Memory::at(0x9000, RW);
    let elsewhere = instruction_abort(0x6000, code::TRANSLATION);
    assert_eq!(reflected(resolve(&loaded, &reader, &data, elsewhere)), EXTERNAL_ABORT);
    assert_eq!(target(&guest, &reader, 0x6000), None);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn the_fault_of_a_second_cpu_on_the_same_page_is_spurious() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let readers = [reader(mmu, 0), reader(mmu, 1)];
    let memory = Memory::at(0x8000, RW);
    for reader in &readers {
        let loaded = guest.load(reader).unwrap();
        assert_eq!(resolve(&loaded, reader, &memory, write_fault(0x4000)), Outcome::Resumed);
    }
    assert_eq!(memory.asked.borrow().len(), 1, "the second found it by looking");
    assert_eq!(mmu.statistics().faults_spurious, 1);
    tear_down(guest, &readers[0]);
}

#[test]
fn a_store_to_a_clean_page_is_found_by_translating_its_address_and_makes_it_dirty() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0x4000, PAGE);
    guest.write_protect(&reader, range(0x4000, PAGE)).unwrap();
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0, RW);
    let va = 0xffff_8000_0000_5000;
    let fault = Syndrome { far: va | 0x123, hpfar: 0, ..data_abort(0, code::PERMISSION | WRITE) };
    // The guest has just changed its tables: the access is to be tried again.
    assert_eq!(resolve(&loaded, &reader, &memory, fault), Outcome::Retry);
    mmu.arch().map_stage1(va, Ipa::new(0x4000));
    assert_eq!(resolve(&loaded, &reader, &memory, fault), Outcome::Resumed);
    assert!(guest.query(&reader, Ipa::new(0x4000)).unwrap().unwrap().dirty);
    assert_eq!(mmu.statistics().faults_permission, 2);
    assert!(memory.asked.borrow().is_empty(), "the page is there");
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_stage_1_walk_that_lacks_permission_wanted_to_write_whatever_the_syndrome_says() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0x4000, PAGE);
    let mut log = logged_and_clean(&guest, &reader);
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0, RW);
    // WnR is clear, FAR is the address that was being translated; HPFAR is valid.
    let walk = Syndrome { far: 0xffff_0000_dead_b000, ..data_abort(0x4000, code::PERMISSION | STAGE1_WALK) };
    assert_eq!(resolve(&loaded, &reader, &memory, walk), Outcome::Resumed);
    assert!(log(&reader), "the page is dirty");
    drop(loaded);
    let memory = Memory::at(0, Attributes::normal(Permissions::R));
    let loaded = guest.load(&reader).unwrap();
    assert_eq!(reflected(resolve(&loaded, &reader, &memory, walk)), EXTERNAL_ABORT, "tables in read-only memory");
}

/// Cleans the page at 0x4000 and tells whether it is dirty.
fn logged_and_clean<'g>(
    guest: &'g Guest,
    reader: &stage2::quiescence::Reader<'_>,
) -> impl FnMut(&stage2::quiescence::Reader<'_>) -> bool + 'g {
    guest.write_protect(reader, range(0x4000, PAGE)).unwrap();
    |reader| guest.query(reader, Ipa::new(0x4000)).unwrap().unwrap().dirty
}

#[test]
fn a_stage_1_walk_of_a_page_that_is_not_there_is_a_read() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0x8000, Attributes::normal(Permissions::R));
    let walk = data_abort(0x4000, code::TRANSLATION | STAGE1_WALK | WRITE);
    assert_eq!(resolve(&loaded, &reader, &memory, walk), Outcome::Resumed);
    assert_eq!(*memory.asked.borrow(), [(Ipa::new(0x4000), false)]);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_store_to_a_read_only_region_is_the_guests_own_fault() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let rom = Memory::at(0x8000, Attributes::normal(Permissions::R));
    assert_eq!(reflected(resolve(&loaded, &reader, &rom, write_fault(0x4000))), EXTERNAL_ABORT);
    assert!(rom.asked.borrow().is_empty());
    assert_eq!(resolve(&loaded, &reader, &rom, read_fault(0x4000)), Outcome::Resumed);
    assert_eq!(reflected(resolve(&loaded, &reader, &rom, store_denied(mmu, 0x4000))), EXTERNAL_ABORT);
    assert_eq!(mmu.statistics().faults_reflected, 2);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_store_to_a_page_that_was_protected_is_the_guests_own_fault_although_its_region_is_writable() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0x4000, PAGE);
    guest.protect(&reader, range(0x4000, PAGE), Permissions::R).unwrap();
    let loaded = guest.load(&reader).unwrap();
    let outcome = resolve(&loaded, &reader, &Memory::at(0, RW), store_denied(mmu, 0x4000));
    assert_eq!(reflected(outcome), EXTERNAL_ABORT);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn an_access_to_an_emulated_device_is_described() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let device = Memory::region(Region::Emulated);
    // ISV, a halfword, x7.
    let described = 1 << 24 | 0b01 << 22 | 7 << 16;
    let outcome = resolve(&loaded, &reader, &device, data_abort(0x900_0018, code::TRANSLATION | WRITE | described));
    let Outcome::Mmio(access) = outcome else { panic!("{outcome:?}") };
    assert_eq!((access.ipa, access.write), (Ipa::new(0x900_0018), true));
    assert_eq!((access.size, access.register), (MmioSize::Halfword, Some(7)));
    assert_eq!(access.stored(0x1234_5678), 0x5678);
    // A load pair is not described: the guest is told.
    assert_eq!(reflected(resolve(&loaded, &reader, &device, read_fault(0x900_0018))), EXTERNAL_ABORT);
    assert_eq!(mmu.statistics().faults_mmio, 1);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn where_there_is_nothing_the_guest_gets_an_external_abort() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let nothing = Memory::region(Region::Nothing);
    assert_eq!(reflected(resolve(&loaded, &reader, &nothing, read_fault(0x4000))), EXTERNAL_ABORT);
    let never = Memory::unavailable(Unavailable::Never);
    assert_eq!(reflected(resolve(&loaded, &reader, &never, read_fault(0x4000))), EXTERNAL_ABORT);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_page_that_is_not_to_be_had_now_is_tried_again() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let later = Memory::unavailable(Unavailable::Later);
    assert_eq!(resolve(&loaded, &reader, &later, read_fault(0x4000)), Outcome::Retry);
    assert_eq!(mmu.statistics().faults_retry, 1);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn an_address_beyond_the_guests_memory_is_an_address_size_fault() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0, RW);
    for fault in [read_fault(1 << 40), read_fault(0xf_ffff_ffff_ffff), data_abort(0, code::ADDRESS_SIZE)] {
        assert_eq!(reflected(resolve(&loaded, &reader, &memory, fault)), code::ADDRESS_SIZE);
    }
    assert_eq!(
        resolve(&loaded, &reader, &memory, read_fault((1 << 40) - 1)),
        Outcome::Resumed,
        "the last byte is there"
    );
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn an_access_flag_fault_on_an_accessed_page_is_spurious() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0x4000, PAGE);
    let loaded = guest.load(&reader).unwrap();
    let outcome = resolve(&loaded, &reader, &Memory::at(0, RW), data_abort(0x4000, code::ACCESS_FLAG));
    assert_eq!(outcome, Outcome::Resumed);
    assert_eq!((mmu.statistics().faults_access_flag, mmu.statistics().faults_spurious), (1, 1));
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_tlb_conflict_takes_all_of_the_guests_entries() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let loaded = guest.load(&reader).unwrap();
    mmu.arch().take_events();
    let outcome = resolve(&loaded, &reader, &Memory::at(0, RW), data_abort(0x4000, code::TLB_CONFLICT));
    assert_eq!(outcome, Outcome::Retry);
    assert_eq!(tlbis(mmu.arch()), [Tlbi::Vmalls12e1 { scope: Scope::InnerShareable }]);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn every_fault_of_a_frozen_guest_waits_and_changes_nothing() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    map(&guest, &reader, 0x4000, PAGE);
    guest.write_protect(&reader, range(0x4000, PAGE)).unwrap();
    let store = store_denied(mmu, 0x4000);
    let memory = Memory::at(0x8000, RW);
    let loaded = guest.load(&reader).unwrap();
    let frozen = guest.freeze(&reader).unwrap();
    for fault in [read_fault(0x4000), read_fault(0x5000), write_fault(1 << 39), store] {
        assert_eq!(resolve(&loaded, &reader, &memory, fault), Outcome::Retry);
    }
    assert!(memory.asked.borrow().is_empty());
    frozen.thaw(&reader).map_err(|(_, why)| why).unwrap();
    assert_eq!(target(&guest, &reader, 0x5000), None);
    assert_eq!(resolve(&loaded, &reader, &memory, store), Outcome::Resumed);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_fault_on_a_page_that_is_being_removed_waits_until_it_is() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let (reader, other) = (reader(mmu, 0), reader(mmu, 1));
    map(&guest, &reader, 0x4000, 2 * PAGE);
    let loaded = guest.load(&other).unwrap();
    let memory = Memory::at(0x8000, RW);
    let mut inside = 0;
    guest
        .unmap_with(&reader, range(0x4000, 2 * PAGE), |leaf| {
            inside += 1;
            let ipa = leaf.ipa.raw();
            assert_eq!(target(&guest, &other, ipa), None);
            assert_eq!(resolve(&loaded, &other, &memory, write_fault(ipa)), Outcome::Retry);
            let mapped = guest.map(&other, range(ipa, PAGE), Pa::new(0), RW, Content::New);
            assert!(mapped.is_err(), "its content may be on the move");
        })
        .unwrap();
    assert_eq!(inside, 2);
    assert!(memory.asked.borrow().is_empty());
    assert_eq!(resolve(&loaded, &other, &memory, write_fault(0x4000)), Outcome::Resumed);
    drop(loaded);
    tear_down(guest, &reader);
}

/// A backing that is slow: while it looks for the page, another CPU takes the same fault.
struct Slow<'g> {
    guest: &'g Guest,
    own: Memory,
    others: Memory,
    other: stage2::quiescence::Reader<'static>,
}

impl stage2::fault::Backing for Slow<'_> {
    fn region(&self, ipa: Ipa) -> Region {
        self.own.region(ipa)
    }

    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
        let loaded = self.guest.load(&self.other).unwrap();
        assert_eq!(resolve(&loaded, &self.other, &self.others, read_fault(ipa.raw())), Outcome::Resumed);
        self.own.page(ipa, write)
    }

    fn unused(&self, ipa: Ipa, page: Page) {
        self.own.unused(ipa, page);
    }
}

#[test]
fn the_loser_of_a_race_gives_its_page_back() {
    let mmu = machine(16);
    let guest = guest(mmu);
    let reader = reader(mmu, 0);
    let other = crate::support::reader(mmu, 1);
    let slow = Slow { guest: &guest, own: Memory::at(0x8000, RW), others: Memory::at(0x9000, RW), other };
    let loaded = guest.load(&reader).unwrap();
    assert_eq!(resolve(&loaded, &reader, &slow, write_fault(0x4000)), Outcome::Resumed);
    assert_eq!(target(&guest, &reader, 0x4000), Some(0x9000), "the winner's");
    let page = Page { frame: Pa::new(0x8000), content: Content::New };
    assert_eq!(*slow.own.unused.borrow(), [page]);
    assert!(slow.others.unused.borrow().is_empty());
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_fault_for_which_tables_are_on_their_way_back_is_tried_again() {
    let mmu = machine(4);
    let guest = guest(mmu);
    let mut reader = reader(mmu, 0);
    map(&guest, &reader, 0, PAGE);
    unmap(&guest, &reader, 0, PAGE);
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0x8000, RW);
    assert_eq!(resolve(&loaded, &reader, &memory, write_fault(8 * TABLE)), Outcome::Retry);
    assert_eq!(memory.unused.borrow().len(), 1);
    reclaim_all(&guest, &mut reader);
    assert_eq!(resolve(&loaded, &reader, &memory, write_fault(8 * TABLE)), Outcome::Resumed);
    drop(loaded);
    tear_down(guest, &reader);
}

#[test]
fn a_frame_that_no_descriptor_can_hold_is_refused() {
    for frame in [0x8001, 0x8800, 1 << 48, 1 << 52, !0xfff] {
        let mmu = machine(8);
        let guest = guest(mmu);
        let reader = reader(mmu, 0);
        let loaded = guest.load(&reader).unwrap();
        let memory = Memory::at(frame, RW);
        let error = loaded.resolve(&reader, &memory, write_fault(0x4000));
        assert_eq!(error, Err(FaultError::BadFrame(Pa::new(frame))));
        assert_eq!(memory.unused.borrow().len(), 1);
        assert_eq!(target(&guest, &reader, 0x4000), None);
        drop(loaded);
        tear_down(guest, &reader);
    }
}

#[test]
fn an_exception_that_is_no_stage_2_fault_and_a_reader_of_another_cpu_are_refused() {
    let mmu = machine(8);
    let guest = guest(mmu);
    let (reader, other) = (reader(mmu, 0), reader(mmu, 1));
    let loaded = guest.load(&reader).unwrap();
    let memory = Memory::at(0, RW);
    let smc = Syndrome { esr: 0x17 << 26, ..Syndrome::default() };
    let not_an_abort = FaultError::NotAnAbort(NotAnAbort { exception_class: 0x17 });
    assert_eq!(loaded.resolve(&reader, &memory, smc), Err(not_an_abort));
    assert_eq!(loaded.resolve(&other, &memory, read_fault(0)), Err(FaultError::OtherCpu));
    let elsewhere =
        crate::support::reader(machine_of::<_, stage2::geometry::Granule4K>(ModelArch::new(), 1, 8, features()), 0);
    assert_eq!(loaded.resolve(&elsewhere, &memory, read_fault(0)), Err(FaultError::OtherCpu));
    drop(loaded);
    tear_down(guest, &reader);
}

/// A backing that is slow: while it looks for the page, another CPU unmaps this range.
struct Unmapping<'g> {
    guest: &'g Guest,
    memory: Memory,
    other: stage2::quiescence::Reader<'static>,
    unmapped: IpaRange,
}

impl stage2::fault::Backing for Unmapping<'_> {
    fn region(&self, ipa: Ipa) -> Region {
        self.memory.region(ipa)
    }

    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
        let _ = self.guest.unmap(&self.other, self.unmapped).unwrap();
        self.memory.page(ipa, write)
    }

    fn unused(&self, ipa: Ipa, page: Page) {
        self.memory.unused(ipa, page);
    }
}

#[test]
fn an_unmap_far_away_does_not_send_a_fault_back_and_one_of_the_same_table_does() {
    const FAULT: u64 = 8 * TABLE + 5 * PAGE;
    for (unmapped, outcome) in [
        (range(0, TABLE), Outcome::Resumed),
        (range(9 * TABLE, TABLE), Outcome::Resumed),
        (range(7 * TABLE, TABLE), Outcome::Resumed),
        (range(8 * TABLE, PAGE), Outcome::Retry),
        (range(FAULT, PAGE), Outcome::Retry),
        (range(7 * TABLE, 2 * TABLE), Outcome::Retry),
        // As many tables as there are counts, from anywhere on.
        (range(9 * TABLE, 64 * TABLE), Outcome::Retry),
        (range(0, 1 << 40), Outcome::Retry),
    ] {
        let mmu = machine(16);
        let guest = guest(mmu);
        let reader = reader(mmu, 0);
        let other = crate::support::reader(mmu, 1);
        let backing = Unmapping { guest: &guest, memory: Memory::at(0x8000, RW), other, unmapped };
        let loaded = guest.load(&reader).unwrap();
        assert_eq!(resolve(&loaded, &reader, &backing, write_fault(FAULT)), outcome, "{unmapped:?}");
        let back = usize::from(outcome == Outcome::Retry);
        assert_eq!(backing.memory.unused.borrow().len(), back);
        drop((loaded, backing));
        tear_down(guest, &reader);
    }
}
