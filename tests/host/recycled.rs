//! A table taken out, and its page recycled, between a walk's read of the entry that leads there and its lock: staged, at the
//! one moment that counts.

use std::sync::mpsc::channel;
use std::time::Duration;

use stage2::addr::{Ipa, Level, Pa};
use stage2::cpu::CpuIndex;
use stage2::descriptor::Permissions;
use stage2::dirty::Content;
use stage2::error::{ChangeCause, Corrupt, Stopped};
use stage2::fault::{Backing, Outcome, Page, Region, Unavailable};
use stage2::memory::{TableMemory, TableState};
use stage2::quiescence::Reader;
use stage2::stage2::UnmapError;

use crate::staged_memory::*;
use crate::support::*;
use crate::tables::{path, read};

const FRAME: u64 = 0x70_0000;
const FIVE: u64 = 5 * PAGE;

fn map_at(guest: &StagedGuest, reader: &Reader<'_>, ipa: u64, frame: u64) {
    guest.map(reader, range(ipa, PAGE), Pa::new(frame), RW, Content::New).unwrap();
}

fn target_of(guest: &StagedGuest, reader: &Reader<'_>, ipa: u64) -> Option<u64> {
    guest.query(reader, Ipa::new(ipa)).unwrap().map(|mapping| mapping.pa.raw())
}

fn leaf_table(guest: &StagedGuest, reader: &Reader<'_>) -> Pa {
    let path = path(guest, reader, Ipa::new(0));
    assert_eq!(path.last().map(|(level, _)| *level), Some(Level::L3));
    path[2].1
}

/// A leaf table that is empty, linked and due to be taken out at once. The table above stays.
fn due(pages: usize) -> (&'static StagedMmu, &'static StagedGuest, Reader<'static>, Pa) {
    let (mmu, guest) = staged_guest(pages);
    let mut reader = mmu.reader(CpuIndex(0)).unwrap();
    map_at(guest, &reader, TABLE, 0);
    map_at(guest, &reader, 0, 0);
    let table = leaf_table(guest, &reader);
    let _ = guest.unmap(&reader, range(0, PAGE)).unwrap();
    for _ in 0..2 {
        reader.quiescent();
        assert_eq!(guest.reclaim(&reader, 0).unwrap().hinted, 1);
    }
    (mmu, guest, reader, table)
}

/// What another CPU does: takes the table out, tries its best to have the page back, and maps the first page of the place.
fn take_out_and_map(mmu: &'static StagedMmu, guest: &'static StagedGuest, table: Pa) {
    let mut reader = mmu.reader(CpuIndex(1)).unwrap();
    assert_eq!(guest.reclaim(&reader, 8).unwrap().unlinked, 1);
    for _ in 0..8 {
        reader.quiescent();
        let progress = guest.reclaim(&reader, 8).unwrap();
        assert_eq!((progress.freed, progress.waiting), (0, 1), "the walk is in its section");
    }
    map_at(guest, &reader, 0, FRAME);
    assert_ne!(leaf_table(guest, &reader), table);
    assert!(mmu.memory().is_over());
}

/// A backing while whose answer the table goes: after the fault has looked, before it locks.
struct Meanwhile<F: Fn()>(Memory, F);

impl<F: Fn()> Backing for Meanwhile<F> {
    fn region(&self, ipa: Ipa) -> Region {
        self.0.region(ipa)
    }

    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
        (self.1)();
        self.0.page(ipa, write)
    }

    fn unused(&self, ipa: Ipa, page: Page) {
        self.0.unused(ipa, page);
    }
}

#[test]
fn a_fault_whose_table_is_taken_out_while_the_backing_answers_is_sent_back_and_maps_nothing() {
    let (mmu, guest, mut reader, table) = due(16);
    let loaded = guest.load(&reader).unwrap();
    let meanwhile = Meanwhile(Memory::at(FIVE, RW), || take_out_and_map(mmu, guest, table));
    assert_eq!(loaded.resolve(&reader, &meanwhile, write_fault(FIVE)), Ok(Outcome::Retry));
    assert_eq!(mmu.statistics().revalidation_retries, 1);
    assert_eq!(target_of(guest, &reader, FIVE), None);
    assert_eq!(target_of(guest, &reader, 0), Some(FRAME));
    assert_eq!(loaded.resolve(&reader, &Memory::at(FIVE, RW), write_fault(FIVE)), Ok(Outcome::Resumed));
    assert_eq!(target_of(guest, &reader, FIVE), Some(FIVE), "found where the hardware looks");
    drop(loaded);
    reader.quiescent();
    assert_eq!(guest.reclaim(&reader, 0).unwrap().freed, 1);
}

#[derive(Clone, Copy, Debug)]
enum Walk {
    Map,
    Fault,
    Unmap,
    UnmapWith,
    Protect,
    Query,
    View,
}

impl Walk {
    fn run(self, mmu: &StagedMmu, guest: &StagedGuest, reader: &Reader<'_>) {
        let whole = range(0, TABLE);
        match self {
            Self::Map => map_at(guest, reader, FIVE, FIVE),
            Self::Fault => {
                let loaded = guest.load(reader).unwrap();
                let memory = Memory::at(FIVE, RW);
                // Taken out and not yet flushed it would be a retry; it was flushed.
                assert_eq!(loaded.resolve(reader, &memory, write_fault(FIVE)), Ok(Outcome::Resumed));
            }
            Self::Unmap => assert_eq!(guest.unmap(reader, whole).unwrap().peek().leaves, 1),
            Self::UnmapWith => {
                let mut frames = Vec::new();
                guest.unmap_with(reader, whole, |leaf| frames.push(leaf.frame.peek().raw())).unwrap();
                assert_eq!(frames, [FRAME]);
            }
            Self::Protect => guest.protect(reader, whole, Permissions::R).unwrap(),
            // A look may end in the table as it was.
            Self::Query => assert!([None, Some(FRAME)].contains(&target_of(guest, reader, 0))),
            Self::View => {
                let view = guest.view(reader, Ipa::new(0)).unwrap();
                assert!(view.is_none_or(|view| view.pa().raw() == FRAME));
            }
        }
        assert!(mmu.memory().is_over(), "{self:?} did not look at the table");
    }
}

#[test]
fn no_walk_ends_in_a_table_that_was_taken_out_before_its_lock_and_none_is_recycled_under_it() {
    use Walk::*;
    for walk in [Map, Fault, Unmap, UnmapWith, Protect, Query, View] {
        let (mmu, guest, mut reader, table) = due(16);
        mmu.memory().cue(At::Look(table), move || take_out_and_map(mmu, guest, table));
        walk.run(mmu, guest, &reader);
        let gone = matches!(walk, Unmap | UnmapWith);
        assert_eq!(target_of(guest, &reader, 0), (!gone).then_some(FRAME), "{walk:?}");
        if matches!(walk, Map | Fault) {
            assert_eq!(target_of(guest, &reader, FIVE), Some(FIVE), "{walk:?}: found where the hardware looks");
        }
        if matches!(walk, Protect) {
            assert!(!guest.query(&reader, Ipa::new(0)).unwrap().unwrap().permissions.write);
        }
        if matches!(walk, Map) {
            assert_eq!(mmu.statistics().revalidation_retries, 1, "{walk:?}");
        }
        // Out of the tree, whole, until this CPU quiesces.
        // SAFETY: looked at only.
        let state = || unsafe { mmu.memory().table(table) }.unwrap().meta.state();
        assert_eq!(state(), TableState::Unlinked, "{walk:?}");
        reader.quiescent();
        assert_eq!(guest.reclaim(&reader, 0).unwrap().freed, 1);
        assert_eq!(state(), TableState::Free);
    }
}

#[test]
fn a_table_recycled_at_its_place_with_an_equal_descriptor_is_a_table_like_any_other() {
    let (mmu, guest, mut reader, _) = due(16);
    let parent = path(guest, &reader, Ipa::new(0))[1].1;
    let descriptor = read(mmu.memory(), parent, 0);
    let mut lives = 1;
    for round in 0..6 {
        for _ in 0..4 {
            reader.quiescent();
            guest.reclaim(&reader, 8).unwrap();
        }
        assert_eq!(read(mmu.memory(), parent, 0), 0, "nothing is there");
        // Between this walk's read of the place, which is empty, and what it links there.
        let other = round % 2 == 1;
        if other {
            mmu.memory().cue(At::Allocation, move || {
                let reader = mmu.reader(CpuIndex(1)).unwrap();
                map_at(guest, &reader, 0, FRAME);
            });
        }
        map_at(guest, &reader, FIVE, FIVE);
        assert!(mmu.memory().is_over());
        lives += u32::from(read(mmu.memory(), parent, 0) == descriptor);
        assert_eq!(target_of(guest, &reader, FIVE), Some(FIVE));
        assert_eq!(target_of(guest, &reader, 0), other.then_some(FRAME));
        assert_eq!(guest.unmap(&reader, range(0, TABLE)).unwrap().peek().leaves, 1 + u64::from(other));
    }
    assert!(lives > 3, "the same page at the same place: {lives} lives");
    assert!(guest.query(&reader, Ipa::new(TABLE)).unwrap().is_some());
}

/// Does `f` on a thread, which is given up if it does not come to an end.
fn comes_to_an_end<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    std::thread::spawn(move || {
        let _ = done.send(f());
    });
    result.recv_timeout(Duration::from_secs(20)).expect("an end")
}

#[test]
fn a_table_that_leads_to_itself_is_not_waited_for_where_locks_are_coupled() {
    let corrupt = comes_to_an_end(|| {
        let (mmu, guest) = staged_guest(16);
        let reader = mmu.reader(CpuIndex(0)).unwrap();
        map_at(guest, &reader, 0, 0);
        let above = path(guest, &reader, Ipa::new(0))[1].1;
        let leaf = leaf_table(guest, &reader);
        // Somebody stores to the parent's entry before each lock, the first being that of what the read-only walk has shown: first
        // what means the same, last a loop.
        let store = move |raw: u64| {
            // SAFETY: a modelled guest has no memory to lose.
            unsafe { mmu.memory().table(above) }.unwrap().entries[0].store(raw, std::sync::atomic::Ordering::Relaxed);
        };
        let good = read(mmu.memory(), above, 0);
        for ignored in 1..=4 {
            mmu.memory().cue(At::Look(leaf), move || store(good | ignored << 59));
        }
        mmu.memory().cue(At::Look(leaf), move || store(above.raw() | 0b11));
        let Err(UnmapError::Stopped(Stopped { cause, .. })) = guest.unmap(&reader, range(0, PAGE)) else {
            panic!("unmapped")
        };
        assert!(mmu.memory().is_over());
        assert_eq!(mmu.statistics().coupled_walks, 1);
        store(good);
        assert_eq!(guest.unmap(&reader, range(0, PAGE)).unwrap().peek().leaves, 1);
        cause
    });
    assert_eq!(corrupt, ChangeCause::Corrupt(Corrupt { ipa: Ipa::new(0), level: Level::L2 }));
}
