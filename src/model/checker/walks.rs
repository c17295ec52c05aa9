//! Walks of the hardware: what a CPU may fetch and cache, and whether that may stand beside what it has.

use std::format;
use std::vec::Vec;

use super::clock::Clock;
use super::memory::Version;
use super::shape::{self, Meaning, Root, Shape, conflict, meaning};
use super::tlb::{Fetched, Mask, Place, owned};
use super::{Checker, Event, Kind, of_table};

/// All addresses.
pub(super) const EVERYWHERE: (u64, u64) = (0, u64::MAX >> 8);

/// A table on a walk.
#[derive(Clone, Copy)]
pub(super) struct Context {
    /// The entry that led to it; of a root, the root itself.
    pub(super) place: Place,
    pub(super) level: u8,
    pub(super) table: u64,
    pub(super) base: u64,
    pub(super) seen: Clock,
}

impl Context {
    pub(super) fn place(&self, index: usize, shape: Shape) -> Option<Place> {
        let ipa = self.base.checked_add((index as u64) << shape.shift(self.level))?;
        Some(Place { level: self.level, ipa, ..self.place })
    }

    /// The entry at `index`, if what it holds is valid.
    pub(super) fn entry(&self, index: usize, version: &Version, shape: Shape) -> Option<Fetched> {
        let Version { value, brings, .. } = version;
        if meaning(*value, self.level, shape) == Meaning::Invalid {
            return None;
        }
        let (place, seen) = (self.place(index, shape)?, self.seen.joined(brings));
        Some(Fetched { place, value: *value, table: self.table, index, seen })
    }
}

/// Why something is fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetching {
    /// It was not there before: a conflict with what is cached is news.
    Anew,
    /// An invalidation has just taken it, and it may have been cached after that was issued. That is so only of what was there until
    /// now: what was taken meanwhile by another invalidation, issued later, is gone.
    Again,
}

impl Checker {
    /// Where a table is reachable, and for which CPUs.
    pub(super) fn contexts(&self, table: u64) -> Vec<(Context, Mask)> {
        let shape = self.options.shape;
        let mut contexts = Vec::new();
        for (place, cached) in self.tlb.leading_to_table(table) {
            let at = Context { place, level: place.level + 1, table, base: place.ipa, seen: cached.seen };
            contexts.push((at, cached.stage2));
        }
        for (cpu, state) in self.cpus.iter().enumerate().filter(|(_, state)| self.is_root_of(state, table)) {
            let Some(root) = state.root else { continue };
            let nth = (table - root.pa) >> shape.page_shift;
            contexts.push((self.root_context(cpu as u16, root, nth), 1 << cpu));
        }
        contexts
    }

    pub(super) fn root_context(&self, cpu: u16, root: Root, nth: u64) -> Context {
        let shape = self.options.shape;
        let base = nth << (shape.shift(root.level) + shape.index_bits);
        Context {
            place: Place { vmid: root.vmid, level: root.level, ipa: base, root: root.pa },
            level: root.level,
            table: root.pa + (nth << shape.page_shift),
            base,
            seen: self.done.joined(&self.cpus[usize::from(cpu)].done),
        }
    }

    /// `cpu` may fetch this entry, and what it leads to within `range`.
    pub(super) fn fetch(&mut self, cpu: u16, fetched: Fetched, range: (u64, u64), fetching: Fetching) {
        let shape = self.options.shape;
        if fetching == Fetching::Again && !self.tlb.had(cpu, &fetched, self.now) {
            return;
        }
        let is_new = self.tlb.insert(cpu, &fetched);
        if is_new && fetching == Fetching::Anew {
            self.look_for_conflicts(cpu, &fetched);
        }
        let Meaning::Table(child) = meaning(fetched.value, fetched.place.level, shape) else { return };
        if let Some(page) = self.memory.page_mut(child) {
            page.is_linked |= !page.is_free;
        }
        if is_new && !self.memory.is_prepared(child, &fetched.seen) {
            let what =
                format!("a walk through {:x?} may find {child:#x} as it was before it was zeroed", fetched.place);
            self.violation(Kind::PublishedUnprepared, what, of_table(child));
        }
        let Place { level, ipa, .. } = fetched.place;
        let at = Context { place: fetched.place, level: level + 1, table: child, base: ipa, seen: fetched.seen };
        self.walk(cpu, at, range, fetching);
    }

    /// `cpu` may fetch everything of this table that is valid, within `range`.
    pub(super) fn walk(&mut self, cpu: u16, at: Context, range: (u64, u64), fetching: Fetching) {
        let shape = self.options.shape;
        let shift = shape.shift(at.level);
        let end = at.base + ((shape.entries() as u64) << shift) - 1;
        let (first, last) = (range.0.max(at.base), range.1.min(end));
        if first > last {
            return;
        }
        let (first, last) = (((first - at.base) >> shift) as usize, ((last - at.base) >> shift) as usize);
        let mut found: Vec<Fetched> = Vec::new();
        for index in self.memory.maybe_valid(at.table, first, last) {
            let versions = self.memory.visible(at.table, index, &at.seen);
            found.extend(versions.filter_map(|version| at.entry(index, version, shape)));
        }
        found.into_iter().for_each(|fetched| self.fetch(cpu, fetched, range, fetching));
    }

    pub(super) fn walk_root(
        &mut self,
        cpu: u16,
        root: Root,
        seen: Option<&Clock>,
        range: (u64, u64),
        fetching: Fetching,
    ) {
        for nth in 0..root.tables(self.options.shape) {
            let mut at = self.root_context(cpu, root, nth);
            if let Some(page) = self.memory.page_mut(at.table) {
                page.is_linked = true;
            }
            at.seen = seen.copied().unwrap_or(at.seen);
            self.walk(cpu, at, range, fetching);
        }
    }

    /// What `cpu` may have cached beside this entry must not be of another mind.
    pub(super) fn look_for_conflicts(&mut self, cpu: u16, fetched: &Fetched) {
        let shape = self.options.shape;
        let Fetched { place, value, table, .. } = *fetched;
        let bit = 1 << cpu;
        let is_leaf = matches!(meaning(value, place.level, shape), Meaning::Leaf(_));
        let last = place.ipa + ((1 << shape.shift(place.level)) - 1);
        let mut wrong = None;
        for level in 0..=shape::LEAF {
            for (other, cached) in self.tlb.over(place.vmid, level, place.ipa, last) {
                let theirs = cached.stage2 | cached.combined;
                let leads_on = matches!(meaning(cached.value, level, shape), Meaning::Table(_));
                let is_wrong = if level == place.level {
                    conflict(value, cached.value, level, shape)
                } else {
                    // Leaves of two sizes.
                    is_leaf && !leads_on
                };
                if theirs & bit != 0 && other.root == place.root && is_wrong {
                    wrong = Some((other, cached.value));
                }
            }
        }
        if let Some((other, old)) = wrong {
            let what = format!("{value:#x} at {place:x?} while {old:#x} at {other:x?} may be cached by cpu {cpu}");
            self.violation(Kind::ConflictingTranslations, what, of_table(table));
        }
        if let Meaning::Leaf(frame) = meaning(value, place.level, shape) {
            self.look_for_reuse(place, frame, table);
        }
    }

    pub(super) fn look_for_reuse(&mut self, place: Place, frame: u64, table: u64) {
        let bytes = 1 << self.options.shape.shift(place.level);
        let is_elsewhere = |other: &Place| {
            // A block and a page under it are for the conflicts.
            other.root != place.root || other.ipa != place.ipa && other.level == place.level
        };
        if self.is_shared(frame) {
            return;
        }
        let cached = owned(self.tlb.leading_to_frame(frame, bytes).filter(|(other, _)| is_elsewhere(other)));
        let shape = self.options.shape;
        let (mapped, reused): (Vec<_>, Vec<_>) = cached.into_iter().partition(|(other, cached)| {
            let there = self.memory.current(cached.table, cached.index);
            there.map(|value| meaning(value, other.level, shape)) == Some(meaning(cached.value, other.level, shape))
        });
        let thing = || format!("frame {frame:#x} is mapped at {place:x?}");
        if let Some((other, cached)) = mapped.first() {
            let of_both = |event: &Event| of_table(table)(event) || of_table(cached.table)(event);
            self.violation(Kind::FrameMappedTwice, format!("{} and at {other:x?}", thing()), of_both);
        }
        self.must_not_be_cached(Kind::FrameReusedWhileCached, thing, reused);
    }
}
