//! What each CPU knows of the others' stores: by its own, by locks, by acquiring loads and barriers.

use std::format;

use rustc_hash::FxHashSet;

use super::clock::Write;
use super::{Checker, Kind, Lock, of_table};

/// Tables a CPU has looked at in its read section.
#[derive(Clone, Default)]
pub(super) struct LookedAt {
    tables: FxHashSet<u64>,
    /// The one it looks at: many looks in a row are at one table.
    latest: Option<u64>,
}

impl LookedAt {
    fn note(&mut self, table: u64) {
        if self.latest.replace(table) != Some(table) {
            self.tables.insert(table);
        }
    }

    pub(super) fn contains(&self, table: u64) -> bool {
        self.tables.contains(&table)
    }

    /// The read section has ended.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
        self.latest = None;
    }
}

impl Checker {
    /// # Panics
    /// If it is one of more stores than a clock can count.
    pub(super) fn next_write(&mut self, cpu: u16) -> Write {
        let state = self.cpu(cpu);
        state.stores = state.stores.checked_add(1).expect("a CPU stores less often than 2^32 times");
        let write = Write { cpu, nth: state.stores };
        state.ordered.add(write);
        write
    }

    /// From here on what this CPU has read from is before what it stores.
    pub(super) fn release(&mut self, cpu: u16) {
        let state = self.cpu(cpu);
        let acquired = core::mem::take(&mut state.acquired);
        state.ordered.join(&acquired);
    }

    pub(super) fn fence(&mut self, cpu: u16) {
        self.release(cpu);
        let state = self.cpu(cpu);
        state.fenced = state.ordered;
    }

    pub(super) fn locked(&mut self, cpu: u16, lock: Lock) {
        let held = self.locks.entry(lock).or_default();
        let (before, brings) = (held.by.replace(cpu), held.brings);
        self.cpu(cpu).acquired.join(&brings);
        if let Some(before) = before {
            self.violation(Kind::LockNotExclusive, format!("{lock:x?} taken while cpu {before} holds it"), |_| true);
        }
    }

    pub(super) fn unlocked(&mut self, cpu: u16, lock: Lock) {
        self.release(cpu);
        let brings = self.cpu(cpu).ordered;
        let held = self.locks.entry(lock).or_default();
        held.brings.join(&brings);
        if held.by.take() != Some(cpu) {
            self.violation(Kind::LockNotExclusive, format!("{lock:x?} given back by who does not hold it"), |_| true);
        }
    }

    pub(super) fn looked(&mut self, cpu: u16, table: u64, index: usize, acquire: bool) {
        let state = &mut self.cpus[usize::from(cpu)];
        state.looked_at.note(table);
        let Some(page) = self.memory.page(table) else { return };
        if acquire && let Some(current) = page.current(index) {
            state.acquired.join(&current.brings);
        }
        if page.is_free {
            let what = format!("cpu {cpu} looks at entry {index} of the freed table {table:#x}");
            self.violation(Kind::FreedTableUsed, what, of_table(table));
        }
    }
}
