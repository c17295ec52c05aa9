//! KVM/arm64's own old bugs, each as the regression of its counterpart here; what counts is said at each test. Facts only:
//! what went wrong there, and what stands in its place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stage2::addr::{Ipa, Level, Pa};
use stage2::arch::{Dsb, Scope, Tlbi, ttl};
use stage2::cpu::CpuIndex;
use stage2::descriptor::{Attributes, Descriptor, Permissions, needs_break};
use stage2::dirty::{Content, DirtyBitmap, Initial, Tracking, Word};
use stage2::error::ArgumentError;
use stage2::fault::inject::GuestRegisters;
use stage2::fault::{FaultError, Outcome, Syndrome};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule4K, HardwareUpdate, IdRegisters};
use stage2::memory::{Pool, PoolRegion, TableMemory};
use stage2::mmu::Mmu;
use stage2::model::{Event, ModelArch, ModelMemory};
use stage2::stage2::{MapError, Stage2};

use crate::staged_memory::*;
use crate::support::*;
use crate::tables::{Contents, every_page_is_there_once, path, read};

/// There: a walk's callback freed the subtree of an entry, and the walk went on with the entry it had read before, into the
/// freed tables. Here a walk has no callback that frees; what it holds across is a table that another CPU may take out, and
/// it goes on from the root.
#[test]
fn a_walk_does_not_go_on_in_a_subtree_that_is_gone() {
    let (mmu, guest) = staged_guest(24);
    let mut reader = mmu.reader(CpuIndex(0)).unwrap();
    let map = |reader: &_, ipa| guest.map(reader, range(ipa, PAGE), Pa::new(ipa), RW, Content::New).unwrap();
    // The one in the middle is empty and due to be taken out; its own table of level 2 follows it.
    let middle = 1 << 30;
    for ipa in [0, middle, 2 << 30] {
        map(&reader, ipa);
    }
    let tables: Vec<Pa> = path(guest, &reader, Ipa::new(middle)).into_iter().skip(1).map(|(_, table)| table).collect();
    let _ = guest.unmap(&reader, range(middle, PAGE)).unwrap();
    for _ in 0..2 {
        reader.quiescent();
        guest.reclaim(&reader, 0).unwrap();
    }
    mmu.memory().cue(At::Look(tables[1]), move || {
        let other = mmu.reader(CpuIndex(1)).unwrap();
        assert_eq!(guest.reclaim(&other, 8).unwrap().unlinked, 1);
    });
    let before = Contents::of(&mmu.memory().memory, tables[1..].iter().copied());
    let mut removed = Vec::new();
    guest.unmap_with(&reader, range(0, 3 << 30), |leaf| removed.push(leaf.ipa.raw())).unwrap();
    assert!(mmu.memory().is_over());
    assert_eq!(removed, [0, 2 << 30], "what is behind it was reached");
    assert!(before.is_unchanged(&mmu.memory().memory), "nothing was stored to what is gone");
}

/// The same of the walk that frees all: a table is read to its end before it is free. (A freed page is poisoned; a teardown
/// that read it would find no more tables, and lose them.)
#[test]
fn a_teardown_reads_no_table_that_it_has_freed() {
    for ipa_bits in [40, 48] {
        let mmu = machine(64);
        let guest: Guest = Stage2::new(mmu, geometry(ipa_bits), None).unwrap();
        let reader = reader(mmu, 0);
        for at in [0, TABLE, 511 * TABLE, 1 << 30, 511 << 30, (1 << ipa_bits) - PAGE] {
            map(&guest, &reader, at, PAGE);
        }
        guest.teardown(&reader).map_err(|(_, why)| why).unwrap();
        every_page_is_there_once(mmu, 64, 0);
    }
}

/// There: the invalidation after a table entry was removed carried the level of a leaf, which is for cached leaves alone.
#[test]
fn no_level_is_given_for_the_invalidation_of_a_table_entry_whatever_its_level() {
    let mmu = machine(16);
    let guest: Guest = Stage2::new(mmu, geometry(48), None).unwrap();
    let mut reader = reader(mmu, 0);
    give_vmid(&guest, &reader);
    let ipa = (1 << 46) + (5 << 30) + 3 * TABLE;
    map(&guest, &reader, ipa, PAGE);
    mmu.arch().take_events();
    unmap(&guest, &reader, ipa, PAGE);
    let leaf = ttl(12, Some(Level::L3));
    assert!(matches!(tlbis(mmu.arch())[0], Tlbi::Ipa { ttl, .. } if ttl == leaf), "of a page it is");
    assert_eq!(reclaim_all(&guest, &mut reader), 3, "of levels 3, 2 and 1");
    let of_tables = tlbis(mmu.arch());
    let by_address = of_tables.iter().filter(|tlbi| !matches!(tlbi, Tlbi::Vmalle1 { .. }));
    assert_eq!(by_address.clone().count(), 3);
    for tlbi in by_address {
        assert!(matches!(tlbi, Tlbi::Ipa { ttl: 0, scope: Scope::InnerShareable, .. }), "{tlbi:?}");
    }
    // Many at once are still no leaves.
    for table in 0..4 {
        map(&guest, &reader, table * TABLE, PAGE);
    }
    unmap(&guest, &reader, 0, 4 * TABLE);
    mmu.arch().take_events();
    reclaim_all(&guest, &mut reader);
    for tlbi in tlbis(mmu.arch()) {
        let any_level = match tlbi {
            Tlbi::Ipa { ttl, .. } => ttl == 0,
            Tlbi::IpaRange { operand, .. } => operand.level == 0,
            Tlbi::Vmalle1 { .. } | Tlbi::Vmalls12e1 { .. } | Tlbi::Alle1 { .. } => true,
        };
        assert!(any_level, "{tlbi:?}");
    }
    tear_down(guest, &reader);
}

/// There: the walk that destroys tables freed one and left the entry above set. (Elsewhere: freed it before the TLBI, or with
/// none.)
#[test]
fn when_a_table_is_freed_nothing_leads_to_it_and_no_walk_cache_does() {
    let (mmu, guest) = staged_guest(16);
    let mut reader = mmu.reader(CpuIndex(0)).unwrap();
    drop(guest.load(&reader).unwrap());
    guest.map(&reader, range(0, PAGE), Pa::new(0), RW, Content::New).unwrap();
    let tables: Vec<Pa> = path(guest, &reader, Ipa::new(0)).into_iter().map(|(_, table)| table).collect();
    let _ = guest.unmap(&reader, range(0, PAGE)).unwrap();
    let freed: &'static AtomicU64 = Box::leak(Box::default());
    for (level, parent, table) in [(2, tables[1], tables[2]), (1, tables[0], tables[1])] {
        mmu.memory().cue(At::Free(table), move || {
            assert_eq!(read(mmu.memory(), parent, 0), 0, "the entry above at level {level}");
            let events = mmu.arch().take_events();
            let by_address = |event: &Event| matches!(event, Event::Tlbi(Tlbi::Ipa { .. }));
            let last = events.iter().rposition(by_address).expect("an invalidation since");
            assert!(events[last..].contains(&Event::Dsb(Dsb::Ish)), "and it is complete");
            freed.fetch_add(1, Ordering::Relaxed);
        });
    }
    mmu.arch().take_events();
    for _ in 0..8 {
        reader.quiescent();
        guest.reclaim(&reader, 8).unwrap();
    }
    assert_eq!(freed.load(Ordering::Relaxed), 2);
}

/// CPUs whose hardware sets the access flag and dirty state.
fn updating() -> Features {
    Features::from_id_registers(&IdRegisters {
        id_aa64mmfr0_el1: 1 << 20 | 5,
        id_aa64mmfr1_el1: 1 << 28 | 2 << 4 | 2,
        ..IdRegisters::default()
    })
}

/// The hardware of one CPU, whose guest stores to every page it may: through DBM, by compare-exchange, while it is let.
#[derive(Default)]
struct Stores {
    running: AtomicBool,
    idle: AtomicBool,
    over: AtomicBool,
}

const DBM: u64 = 1 << 51;
const S2AP_WRITE: u64 = 1 << 7;

impl Stores {
    /// One pass over the entries after the other; `stored` says to which the guest has.
    fn go_on(&self, entries: &[&stage2::dirty::Word], stored: &[AtomicBool]) {
        let mut first = 0;
        while !self.over.load(Ordering::Acquire) {
            if !self.running.load(Ordering::Acquire) {
                self.idle.store(true, Ordering::Release);
                std::thread::yield_now();
                continue;
            }
            first = (first + 37) % entries.len();
            for page in (first..entries.len()).chain(0..first) {
                let old = entries[page].load(Ordering::Relaxed);
                if old & (DBM | S2AP_WRITE | 1) == DBM | 1 {
                    let new = old | S2AP_WRITE;
                    let set = entries[page].compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
                    stored[page].fetch_or(set.is_ok(), Ordering::Relaxed);
                    // A guest does other things, too, or it were through with all pages before any permission is taken.
                    (0..20).for_each(|_| std::hint::spin_loop());
                }
            }
        }
    }

    fn start(&self) {
        self.idle.store(false, Ordering::Relaxed);
        self.running.store(true, Ordering::Release);
    }

    /// Returns when it does nothing any more.
    fn stop(&self) {
        self.running.store(false, Ordering::Release);
        while !self.idle.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

/// There: write protection went by compare-exchange, whose failure was ignored: where the hardware had just set a bit the page
/// stayed writable. Here the same, and with a plain store the bit would be lost; a page is dirty exactly if it was stored to.
#[test]
fn write_permission_is_taken_also_where_the_hardware_has_just_set_a_bit_and_that_bit_is_not_lost() {
    const PAGES: u64 = 8 * 512;
    const ROUNDS: u32 = 30;
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 2, 16, updating());
    let options = GeometryOptions::default().with_hardware_update(HardwareUpdate::AccessFlagAndDirty);
    let geometry = Geometry::new(40, &updating(), options).unwrap();
    let words = Vec::leak((0..PAGES / 64).map(|_| Word::new(0)).collect());
    let guest: Guest = Stage2::new(mmu, geometry, Some(DirtyBitmap { base: Ipa::new(0), words })).unwrap();
    let (reader, whole) = (reader(mmu, 0), range(0, PAGES * PAGE));
    map(&guest, &reader, 0, PAGES * PAGE);
    let table_of = |ipa| path(&guest, &reader, Ipa::new(ipa))[2].1;
    let tables = (0..PAGES * PAGE).step_by(TABLE as usize).map(table_of);
    let entries: Vec<&Word> =
        tables.flat_map(|table| (0..512).map(move |index| word(mmu.memory(), table, index))).collect();
    let stored: Vec<AtomicBool> = (0..PAGES).map(|_| AtomicBool::new(false)).collect();
    let hardware = Stores::default();
    let (mut wrong, mut both) = (None, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| hardware.go_on(&entries, &stored));
        let mut log = guest.start_logging_with(&reader, Initial::Clean, Tracking::Hardware).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while wrong.is_none() && both < ROUNDS && Instant::now() < until {
            // Writable and clean, all of them, and not stored to.
            guest.protect(&reader, whole, Permissions::RW).unwrap();
            let _ = log.rearm(&reader, whole, &[u64::MAX; PAGES as usize / 64]).unwrap();
            stored.iter().for_each(|stored| stored.store(false, Ordering::Relaxed));
            hardware.start();
            // Not before it has begun; to yield would be to let it end, too, where there are fewer CPUs than threads.
            let mut spins = 0;
            while !stored.iter().any(|stored| stored.load(Ordering::Relaxed)) {
                spins += 1;
                if spins % 1000 == 0 {
                    std::thread::yield_now();
                }
            }
            guest.protect(&reader, whole, Permissions::R).unwrap();
            hardware.stop();
            wrong = entries.iter().zip(&stored).find_map(|(entry, stored)| {
                let (raw, stored) = (entry.load(Ordering::Relaxed), stored.load(Ordering::Relaxed));
                let right = raw & (S2AP_WRITE | DBM) == 0 && Descriptor::from_raw(raw).is_dirty() == stored;
                (!right).then_some((raw, stored))
            });
            let count = stored.iter().filter(|stored| stored.load(Ordering::Relaxed)).count();
            both += u32::from((1..PAGES as usize).contains(&count));
        }
        hardware.over.store(true, Ordering::Release);
        log.stop();
    });
    assert_eq!(
        wrong, None,
        "an entry that still may be written, or that is dirty and was not stored to, or the reverse"
    );
    assert!(both > 0, "permission was taken while the guest stored");
    tear_down(guest, &reader);
}

/// There: of a group of contiguous entries only the first was locked. Here nothing makes a group, whatever is done to pages that
/// could be one, logged or not; an entry cannot become a member or cease to be one without a break; and the lock is the table's.
#[test]
fn no_entry_is_ever_one_of_a_contiguous_group_and_none_becomes_one_without_a_break() {
    const CONTIGUOUS: u64 = 1 << 52;
    let mmu = machine(16);
    let guest = logged_guest(mmu, 0, 512);
    let reader = reader(mmu, 0);
    // Aligned, of one frame, with equal attributes.
    guest.map(&reader, range(0, 16 * PAGE), Pa::new(1 << 30), RW, Content::New).unwrap();
    let loaded = guest.load(&reader).unwrap();
    for page in 16..32 {
        let memory = Memory::at((1 << 30) + page * PAGE, RW);
        assert_eq!(resolve(&loaded, &reader, &memory, write_fault(page * PAGE)), Outcome::Resumed);
    }
    drop(loaded);
    let table = path(&guest, &reader, Ipa::new(0))[2].1;
    let contiguous = || (0..512).filter(|index| read(mmu.memory(), table, *index) & CONTIGUOUS != 0).count();
    assert_eq!(contiguous(), 0);
    let mut log = guest.start_logging(&reader, Initial::Clean).unwrap();
    assert_eq!(contiguous(), 0);
    guest.protect(&reader, range(0, 32 * PAGE), Permissions::RWX).unwrap();
    let mut bitmap = [0; 8];
    log.scan(&reader, range(0, TABLE), &mut bitmap).unwrap();
    let _ = log.rearm(&reader, range(0, TABLE), &bitmap).unwrap();
    log.stop();
    assert_eq!(contiguous(), 0);
    let alone = Descriptor::from_raw(read(mmu.memory(), table, 0));
    let member = Descriptor::from_raw(alone.raw() | CONTIGUOUS);
    assert!(needs_break(alone, member, Level::L3) && needs_break(member, alone, Level::L3));
    assert!(!needs_break(alone, alone.with_write_protection(), Level::L3), "which a change of permission is not");
    tear_down(guest, &reader);
}

/// There: a table went, and the lock within it, while somebody waited for that lock. Here the lock is beside the table, in no
/// page that is given out, and stays what and where it is through all of the page's lives.
#[test]
fn the_lock_of_a_table_is_outside_of_it_and_outlives_it() {
    const BYTES: usize = 64 << 12;
    let memory: &'static mut [u64] = Vec::leak(vec![0x5555_5555_5555_5555; BYTES / 8]);
    let start = std::ptr::NonNull::from(memory).cast::<u8>();
    let pa = Pa::new(start.as_ptr().addr() as u64);
    // SAFETY: leaked for the rest of the program, mapped where it is, and nobody else's.
    let pool = unsafe { Pool::<Granule4K>::new(&[PoolRegion { pa, start, bytes: BYTES }]) };
    let mmu: &'static _ = Box::leak(Box::new(Mmu::new(ModelArch::new(), pool, features(), Box::leak(cpus(2)))));
    let guest = Stage2::new(mmu, geometry(40), None).unwrap();
    let mut reader = mmu.reader(CpuIndex(0)).unwrap();
    let mut lives = Vec::new();
    for ipa in [0, 0, 5 * TABLE, 1 << 39] {
        guest.map(&reader, range(ipa, PAGE), Pa::new(0), RW, Content::New).unwrap();
        let table = path(&guest, &reader, Ipa::new(ipa))[2].1;
        // SAFETY: looked at only.
        let page = unsafe { mmu.memory().table(table) }.unwrap();
        lives.push((table, std::ptr::from_ref(page.meta)));
        let (first, meta) = (page.entries.as_ptr().addr(), std::ptr::from_ref(page.meta).addr());
        assert_eq!(first as u64, table.raw());
        let _ = guest.unmap(&reader, range(ipa, PAGE)).unwrap();
        while mmu.memory().usage().live > 2 {
            reader.quiescent();
            guest.reclaim(&reader, 8).unwrap();
        }
        // It is not in a page of any table: all that the pool gives out lies behind it.
        assert!(meta < first);
        let pages: Vec<Pa> = std::iter::from_fn(|| mmu.memory().alloc().ok()).collect();
        assert!(pages.iter().all(|page| page.raw() as usize > meta + 63));
        for page in pages {
            // SAFETY: allocated above, and nobody was told.
            unsafe { mmu.memory().free(page, 0) };
        }
    }
    for (table, meta) in &lives {
        let same = lives.iter().filter(|(other, _)| other == table);
        assert!(same.clone().all(|(_, its)| its == meta));
    }
    assert!(guest.teardown(&reader).is_ok());
    assert_eq!(mmu.memory().usage().live, 0);
}

/// There: the walk of a nested guest's tables did not look whether an output address was within the size. Here there is no
/// nested guest; wherever an address comes from that is put into a descriptor, or looked up, its size is checked.
#[test]
fn an_address_that_is_too_large_is_refused_wherever_it_comes_from() {
    // 36 bits of physical address, 34 of the guest's.
    let narrow = Features::from_id_registers(&IdRegisters { id_aa64mmfr0_el1: 1, ..IdRegisters::default() });
    let mmu = machine_of::<_, Granule4K>(ModelArch::new(), 1, 16, narrow);
    let geometry = Geometry::new(34, &narrow, GeometryOptions::default()).unwrap();
    let guest: Stage2<'static, ModelArch, ModelMemory<Granule4K>> = Stage2::new(mmu, geometry, None).unwrap();
    let reader = reader(mmu, 0);
    let page = range(0, PAGE);
    // From the embedder.
    let mapped = guest.map(&reader, page, Pa::new(1 << 36), RW, Content::New);
    assert_eq!(mapped, Err(MapError::Argument(ArgumentError::BeyondPaSize(page))));
    let loaded = guest.load(&reader).unwrap();
    // From its backing.
    let beyond = Memory::at(1 << 36, RW);
    assert_eq!(loaded.resolve(&reader, &beyond, write_fault(0)), Err(FaultError::BadFrame(Pa::new(1 << 36))));
    assert_eq!(beyond.unused.borrow().len(), 1);
    // From the CPU, and from the guest's own tables.
    let memory = Memory::at(0x8000, Attributes::normal(Permissions::RW));
    let va = 0xffff_0000_0000_0000;
    mmu.arch().map_stage1(va, Ipa::new(1 << 34));
    let translated = Syndrome { far: va, hpfar: 0, ..data_abort(0, code::PERMISSION | WRITE) };
    let walk = Syndrome { far: va, ..data_abort(1 << 34, code::PERMISSION | STAGE1_WALK) };
    for fault in [read_fault(1 << 34), read_fault(1 << 51), translated, walk] {
        let Ok(Outcome::Reflect(reflection)) = loaded.resolve(&reader, &memory, fault) else { panic!("{fault:?}") };
        let at_el1 = GuestRegisters { spsr_el2: 0b0101, ..GuestRegisters::default() };
        assert_eq!(reflection.inject(&at_el1).unwrap().esr_el1 & 0x3f, code::ADDRESS_SIZE, "{fault:?}");
    }
    assert!(memory.asked.borrow().is_empty(), "and nobody is asked for a page");
    drop(loaded);
    tear_down(guest, &reader);
}
