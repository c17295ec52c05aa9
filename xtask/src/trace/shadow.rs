//! From accesses to the checker's events: table memory as the stores made it, and the locks in its metadata.
//!
//! A store that changes nothing is no event: a store exclusive or compare-and-swap that fails looks like one. What the hardware's
//! walkers write is not in the trace; it comes out when an atomic access finds something else than was last stored.
//!
//! # Layout
//! A pool is metadata, 64 bytes a table, and behind it the tables (`memory::Pool`). A table's lock is the one byte of its metadata
//! that is taken by an atomic from 0 to 1 and given back by a store of 0. Where in the 64 bytes that is the first lock tells, and
//! all others have to agree.
//!
//! # What is checked here
//! What takes the memory's layout to be seen: a descriptor is stored whole, in a table that was given out, by who has its lock; but
//! for one that nobody else can have come to yet.

use anyhow::{Result, bail, ensure};
use stage2::Pa;
use stage2::model::checker::{Event, Kind, Lock, MAX_CPUS};
use stage2_trace_events::instruction::StoreKind;
use stage2_trace_events::mark::Pool;

/// Of an entry, the address: of a table, if it leads to one.
const ADDRESS: u64 = 0xffff_ffff_f000;
/// The bytes of a table's metadata.
const META_BYTES: u64 = 64;

/// Table memory, as far as it is known.
#[derive(Debug)]
pub(super) struct Shadow {
    metas: u64,
    /// Where the tables begin.
    tables: u64,
    page_shift: u32,
    words: Vec<u64>,
    /// By the tables' numbers.
    states: Vec<Table>,
    /// Where in a table's metadata its lock is.
    lock: Option<u64>,
    /// The byte that a CPU's atomic access found last, and where.
    found: [Option<(u64, u64)>; MAX_CPUS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Table {
    is_given: bool,
    /// An entry has led to it, or its lock was taken. Before, it is its maker's alone, who fills it as he likes.
    is_shared: bool,
    holder: Option<u16>,
}

/// What an access was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// Something for the checker.
    Event(Event),
    /// Something wrong, and an event all the same.
    Wrong(Kind, String, Event),
}

impl Shadow {
    pub(super) fn new(pool: &Pool) -> Result<Self> {
        ensure!((12..=16).contains(&pool.page_shift), "there is no granule of 2^{} bytes", pool.page_shift);
        let page = 1u64 << pool.page_shift;
        let metas = pool.start.next_multiple_of(META_BYTES);
        let behind = |count: u64| (metas + count * META_BYTES).next_multiple_of(page);
        let most = pool.bytes / (page + META_BYTES);
        let fits = |&count: &u64| behind(count) + count * page <= pool.start + pool.bytes;
        let Some(count @ 1..) = (most.saturating_sub(1)..=most).rev().find(fits) else {
            bail!("{pool:x?} has no room for a table");
        };
        Ok(Self {
            metas,
            tables: behind(count),
            page_shift: pool.page_shift,
            words: vec![0; (count * page / 8) as usize],
            states: vec![Table::default(); count as usize],
            lock: None,
            found: [None; MAX_CPUS],
        })
    }

    /// A store of `1 << size` bytes.
    ///
    /// # Errors
    ///
    /// The image's memory is not laid out as is known here.
    pub(super) fn store(&mut self, cpu: u16, pa: u64, value: u64, size: u8, kind: StoreKind) -> Result<Option<Seen>> {
        match self.place(pa) {
            Some(Place::Entry { number, index }) => Ok(self.store_entry(cpu, pa, (number, index), value, size, kind)),
            Some(Place::Meta { number, offset }) if size == 0 => {
                self.store_meta(cpu, pa, (number, offset), value, kind)
            }
            _ => Ok(None),
        }
    }

    fn store_entry(
        &mut self,
        cpu: u16,
        pa: u64,
        (number, index): (usize, usize),
        value: u64,
        size: u8,
        kind: StoreKind,
    ) -> Option<Seen> {
        let table = self.table(number);
        let old = std::mem::replace(self.word(pa), value);
        let event = Event::Store { table, index, old, new: value, release: kind.release };
        let Table { is_given, is_shared, holder } = self.states[number];
        let describe = |how: &str| format!("cpu {cpu} stores {value:#x} to entry {index} of {table:x?} {how}");
        if size != 3 || !pa.is_multiple_of(8) {
            return Some(Seen::Wrong(Kind::ConflictingTranslations, describe("in parts"), event));
        }
        if !is_given {
            // Zeroes, before it is given out.
            let how = "while it is not given out";
            return (value != 0).then(|| Seen::Wrong(Kind::FreedTableUsed, describe(how), event));
        }
        if old == value {
            return None;
        }
        if let Some(Place::Entry { number, .. }) = self.place(value & ADDRESS) {
            self.states[number].is_shared = true;
        }
        if is_shared && holder != Some(cpu) {
            return Some(Seen::Wrong(Kind::StoredWithoutLock, describe("without its lock"), event));
        }
        Some(Seen::Event(event))
    }

    fn store_meta(
        &mut self,
        cpu: u16,
        pa: u64,
        (number, offset): (usize, u64),
        value: u64,
        kind: StoreKind,
    ) -> Result<Option<Seen>> {
        let lock = Lock::Table(self.table(number));
        if kind.atomic && value == 1 && self.found[usize::from(cpu)].take() == Some((pa, 0)) {
            let is_there = *self.lock.get_or_insert(offset) == offset;
            ensure!(is_there, "{lock:x?} is at {offset} of its metadata, not where the others are");
            self.states[number].holder = Some(cpu);
            self.states[number].is_shared = true;
            return Ok(Some(Seen::Event(Event::Locked(lock))));
        }
        let is_unlock = self.lock == Some(offset) && value == 0 && self.states[number].holder.take().is_some();
        Ok(is_unlock.then_some(Seen::Event(Event::Unlocked(lock))))
    }

    /// What an atomic access has found.
    pub(super) fn found(&mut self, cpu: u16, pa: u64, value: u64, size: u8) -> Option<Seen> {
        match self.place(pa)? {
            Place::Entry { number, index } if size == 3 => {
                let table = self.table(number);
                let old = std::mem::replace(self.word(pa), value);
                (old != value).then_some(())?;
                let event = Event::Updated { table, index, new: value };
                // AF and S2AP[1] of what is valid, from 0 to 1.
                const HARDWARES: u64 = 1 << 10 | 1 << 7;
                if old & 1 != 0 && old & !value == 0 && (old ^ value) & !HARDWARES == 0 {
                    return Some(Seen::Event(event));
                }
                let what = format!("{old:#x} at entry {index} of {table:x?} has become {value:#x} by itself");
                Some(Seen::Wrong(Kind::StoredWithoutLock, what, event))
            }
            Place::Meta { .. } if size == 0 => {
                self.found[usize::from(cpu)] = Some((pa, value));
                None
            }
            _ => None,
        }
    }

    /// `1 << order` tables were given out, or are taken back.
    pub(super) fn set_given(&mut self, table: u64, order: u32, is_given: bool) {
        let Some(Place::Entry { number, .. }) = self.place(table) else { return };
        let count = 1usize << order.min(4);
        self.states.iter_mut().skip(number).take(count).for_each(|state| {
            state.is_given = is_given;
            state.is_shared = false;
        });
    }

    fn place(&self, pa: u64) -> Option<Place> {
        let entry = pa.checked_sub(self.tables).filter(|&offset| offset / 8 < self.words.len() as u64);
        if let Some(offset) = entry {
            let index = (offset & ((1 << self.page_shift) - 1)) / 8;
            return Some(Place::Entry { number: (offset >> self.page_shift) as usize, index: index as usize });
        }
        let offset = pa.checked_sub(self.metas)?;
        let number = (offset / META_BYTES) as usize;
        (number < self.states.len()).then_some(Place::Meta { number, offset: offset % META_BYTES })
    }

    fn table(&self, number: usize) -> Pa {
        Pa::new(self.tables + ((number as u64) << self.page_shift))
    }

    fn word(&mut self, pa: u64) -> &mut u64 {
        &mut self.words[((pa - self.tables) / 8) as usize]
    }
}

/// What is at an address.
enum Place {
    /// An entry of a table.
    Entry { number: usize, index: usize },
    /// So many bytes into a table's metadata.
    Meta { number: usize, offset: u64 },
}
