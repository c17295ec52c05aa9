//! Table pages: given out, stored to, given back.

use std::format;

use super::memory::Version;
use super::shape::{Shape, is_valid};
use super::tlb::{cpus, owned};
use super::walks::{EVERYWHERE, Fetching};
use super::{Checker, Cpu, Kind, Lock, of_table};
use crate::addr::Pa;
use crate::descriptor::Descriptor;

impl Checker {
    pub(super) fn given(&mut self, cpu: u16, table: u64, order: u32) {
        for page in pages(table, order, self.options.shape) {
            let zeroed = self.next_write(cpu);
            self.memory.give(page, zeroed);
        }
    }

    pub(super) fn freed(&mut self, cpu: u16, table: u64, order: u32) {
        for page in pages(table, order, self.options.shape) {
            self.one_freed(cpu, page);
        }
    }

    pub(super) fn one_freed(&mut self, cpu: u16, table: u64) {
        let Some(page) = self.memory.page_mut(table).filter(|page| !page.is_free) else {
            let what = format!("table {table:#x} is given back, and nobody has it");
            return self.violation(Kind::FreedTwice, what, of_table(table));
        };
        page.is_free = true;
        page.is_linked = false;
        let cached = owned(self.tlb.leading_to_table(table));
        let thing = || format!("table {table:#x} is given back");
        self.must_not_be_cached(Kind::TableFreedWhileCached, thing, cached);
        if let Some(loaded) = self.cpus.iter().position(|state| self.is_root_of(state, table)) {
            let what = format!("table {table:#x} is given back while it is a root of cpu {loaded}");
            self.violation(Kind::TableFreedWhileCached, what, of_table(table));
        }
        let reader = self.cpus.iter().position(|state| state.looked_at.contains(table));
        if let Some(reader) = reader.filter(|&reader| reader != usize::from(cpu)) {
            let what =
                format!("table {table:#x} is given back in a read section of cpu {reader} that has looked at it");
            self.violation(Kind::TableFreedWhileRead, what, of_table(table));
        }
    }

    pub(super) fn is_root_of(&self, state: &Cpu, table: u64) -> bool {
        state.root.is_some_and(|root| {
            let bytes = root.tables(self.options.shape) << self.options.shape.page_shift;
            (root.pa..root.pa + bytes).contains(&table)
        })
    }

    pub(super) fn stored(&mut self, cpu: u16, table: u64, index: usize, old: u64, new: u64, release: bool) {
        if !self.options.locks {
            let everything = self.everything();
            self.cpu(cpu).ordered.join(&everything);
        }
        if release {
            self.release(cpu);
        }
        let write = self.next_write(cpu);
        let state = &self.cpus[usize::from(cpu)];
        // The own store itself is not said: of a CPU's stores a clock has all up to one.
        let brings = if release { state.ordered } else { state.fenced };
        let (is_free, is_linked) =
            self.memory.page(table).map_or((false, false), |page| (page.is_free, page.is_linked));
        let holder = self.locks.get(&Lock::Table(Pa::new(table))).and_then(|held| held.by);
        if is_free {
            let what = format!("cpu {cpu} stores {new:#x} to entry {index} of the freed table {table:#x}");
            self.violation(Kind::FreedTableUsed, what, of_table(table));
        } else if self.options.locks && is_linked && holder != Some(cpu) {
            let what = format!("cpu {cpu} stores {new:#x} to entry {index} of {table:#x} without its lock");
            self.violation(Kind::StoredWithoutLock, what, of_table(table));
        }
        self.look_for_settled(table, index, old, new);
        self.note_store(table, index, Version::new(new, write, brings));
    }

    /// The hardware's own stores come through a walk: they are as visible as that.
    pub(super) fn updated(&mut self, cpu: u16, table: u64, index: usize, new: u64) {
        let write = self.next_write(cpu);
        let brings = self.cpus[usize::from(cpu)].fenced;
        if self.memory.page(table).is_some_and(|page| page.is_free) {
            let what = format!("the hardware stores {new:#x} to entry {index} of the freed table {table:#x}");
            self.violation(Kind::FreedTableUsed, what, of_table(table));
        }
        self.note_store(table, index, Version::new(new, write, brings));
    }

    /// The value may be seen, and cached, from now on.
    pub(super) fn note_store(&mut self, table: u64, index: usize, version: Version) {
        self.memory.store(table, index, version);
        if !is_valid(version.value) {
            return;
        }
        for (at, mask) in self.contexts(table) {
            let Some(fetched) = at.entry(index, &version, self.options.shape) else { continue };
            cpus(mask).for_each(|cpu| self.fetch(cpu, fetched, EVERYWHERE, Fetching::Anew));
        }
    }

    /// A marker stands for an entry until no TLB holds it any more.
    pub(super) fn look_for_settled(&mut self, table: u64, index: usize, old: u64, new: u64) {
        let old = Descriptor::from_raw(old);
        if old.is_valid() || old.is_none() || !Descriptor::from_raw(new).is_none() {
            return;
        }
        let cached = owned(self.tlb.read_from(table, index));
        let thing = || format!("entry {index} of {table:#x} holds nothing any more");
        self.must_not_be_cached(Kind::SettledWhileCached, thing, cached);
    }

    pub(super) fn is_shared(&self, frame: u64) -> bool {
        self.options.shared_frames.is_some_and(|(first, end)| (first.raw()..end.raw()).contains(&frame))
    }
}

fn pages(table: u64, order: u32, shape: Shape) -> impl Iterator<Item = u64> {
    (0..1u64 << order).map(move |nth| table + (nth << shape.page_shift))
}
