//! What each CPU knows of the others' stores: by its own, by locks, by acquiring loads and barriers.

use std::format;

use super::clock::Write;
use super::{Checker, Kind, Lock, of_table};

impl Checker {
    pub(super) fn next_write(&mut self, cpu: u16) -> Write {
        let state = self.cpu(cpu);
        state.stores += 1;
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
        let is_free = self.memory.page(table).is_some_and(|page| page.is_free);
        self.cpu(cpu).looked_at.insert(table);
        if acquire && let Some(current) = self.memory.current(table, index) {
            self.cpu(cpu).acquired.join(&current.brings);
        }
        if is_free {
            let what = format!("cpu {cpu} looks at entry {index} of the freed table {table:#x}");
            self.violation(Kind::FreedTableUsed, what, of_table(table));
        }
    }
}
