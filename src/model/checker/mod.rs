//! The state machine that knows what TLBs and walkers may do, stepped by what CPUs did.
//!
//! It is pessimistic and does not guess: instead of one TLB it keeps everything that any TLB *may* hold (`tlb`), and instead of
//! one memory every value that a walker *may* still see (`memory`). A CPU with a root in VTTBR_EL2 may at any time walk
//! any path of values it may see, from the root or from an entry of its walk cache, and cache every valid entry on it.
//!
//! | event | what it does |
//! |---|---|
//! | store | the new value may be seen by walkers, and cached, at once; the old ones too, until a DSB is complete that has the store behind it |
//! | `DSB ISHST`, `NSHST` | what this CPU stored, or knew of when it last released something, is seen by all walkers (`NSH`: by its own) |
//! | `DSB ISH`, `NSH` | likewise, and for what it has read; this CPU's TLB invalidations (`NSH`: the local ones) are complete |
//! | TLBI | covers what its operand's bits say, under the VMID in VTTBR_EL2, of what was cached before; complete at the DSB |
//! | completion | what was covered is gone, but for what could be fetched again since the TLBI was issued |
//! | VMALLE1 | takes combined entries that could not be made anew since it was issued |
//!
//! A CPU knows of its own stores and, by locks and by acquiring loads of released stores, of others': vector clocks
//! (`clock`). A walk that comes through an entry sees what was stored before that entry was released.
//!
//! The same machine serves the modelled MMU, which feeds it as things happen, and recorded traces.

mod clock;
mod event;
mod invalidate;
mod memory;
mod shape;
mod tlb;
mod trail;
mod violation;

pub use clock::MAX_CPUS;
pub use event::{Event, Instruction, Invalidate, Lock};
pub(super) use shape::Leaf;
pub use shape::{Access, Shape};
pub use violation::{Kind, Violation};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::format;
use std::string::String;
use std::vec::Vec;

use crate::addr::{Level, Pa};
use crate::arch::{Dsb, Scope, Stage2Registers};
use crate::descriptor::Descriptor;
use clock::{Clock, Write};
use invalidate::Coverage;
use memory::{Memory, Version};
use shape::{Meaning, Root, conflict, meaning};
use tlb::{Cached, Fetched, Mask, Place, Tlb, cpus};
use trail::Trail;

/// What a checker is told of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The granule.
    pub shape: Shape,
    /// CPUs, numbered from 0; at most [`MAX_CPUS`].
    pub cpus: usize,
    /// Whether the events say who takes which lock. If not, a CPU is taken to know of everything that happened before,
    /// and nothing is said of stores without a lock.
    pub locks: bool,
    /// Frames that may be mapped in several places, as addresses from the first up to and without the second.
    pub shared_frames: Option<(Pa, Pa)>,
}

/// See the [module](self).
pub struct Checker {
    options: Options,
    memory: Memory,
    tlb: Tlb,
    cpus: Vec<Cpu>,
    /// Stores that all walkers surely see.
    done: Clock,
    /// Invalidations that are issued and not complete.
    issued: Vec<Issued>,
    locks: HashMap<Lock, Held>,
    /// Every root that a CPU ever had.
    roots: BTreeMap<u64, Root>,
    /// The number of the event.
    now: u64,
    trail: Trail,
    violations: Vec<Violation>,
    events: u64,
}

/// What is known of a CPU.
#[derive(Clone, Default)]
struct Cpu {
    stores: u64,
    /// Stores that are ordered before its next one, if that is a release.
    ordered: Clock,
    /// Stores it has read from, too, since it last released something.
    acquired: Clock,
    /// Stores that are ordered before all it stores from now on.
    fenced: Clock,
    /// Stores that its own walker surely sees.
    done: Clock,
    /// Where it walks from.
    root: Option<Root>,
    /// The VMID its invalidations are for.
    vmid: u16,
    registers: Stage2Registers,
    is_synchronized: bool,
    /// Tables it has looked at in its read section.
    looked_at: BTreeSet<u64>,
}

#[derive(Clone, Copy, Default)]
struct Held {
    by: Option<u16>,
    brings: Clock,
}

/// A TLBI on its way.
struct Issued {
    cpu: u16,
    coverage: Coverage,
    vmid: u16,
    reaches: Mask,
    is_local: bool,
    at: u64,
    /// What walkers surely saw when it was issued, by CPU.
    seen: Vec<Clock>,
    /// The roots that were in a VTTBR_EL2 since.
    roots: Vec<(u16, Root)>,
}

impl Checker {
    /// A machine on which nothing has happened.
    pub fn new(options: Options) -> Self {
        let entries = options.shape.entries();
        Self {
            options,
            memory: Memory::new(entries),
            tlb: Tlb::new(options.shape),
            cpus: std::vec![Cpu::default(); options.cpus.min(MAX_CPUS)],
            done: Clock::default(),
            issued: Vec::new(),
            locks: HashMap::new(),
            roots: BTreeMap::new(),
            now: 0,
            trail: Trail::default(),
            violations: Vec::new(),
            events: 0,
        }
    }

    /// What was wrong so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Table pages that were given out and not given back.
    pub fn live_tables(&self) -> usize {
        self.memory.live()
    }

    /// `cpu` has done this. An event of a CPU there is not is passed over.
    pub fn step(&mut self, cpu: u16, event: Event) {
        if usize::from(cpu) >= self.cpus.len() {
            return;
        }
        self.now += 1;
        self.events += 1;
        if !matches!(event, Event::Look { .. }) {
            self.trail.push(self.now, cpu, event);
        }
        match event {
            Event::TableGiven { table, order } => self.given(cpu, table.raw(), order),
            Event::TableFreed { table, order } => self.freed(cpu, table.raw(), order),
            Event::Look { table, index, acquire } => self.looked(cpu, table.raw(), index, acquire),
            Event::Store { table, index, old, new, release } => self.stored(cpu, table.raw(), index, old, new, release),
            Event::Updated { table, index, new } => self.updated(cpu, table.raw(), index, new),
            Event::Fence => self.fence(cpu),
            Event::Dsb(barrier) => self.barrier(cpu, barrier),
            Event::Isb => self.cpu(cpu).is_synchronized = true,
            Event::Tlbi(operation) => self.invalidate(cpu, operation),
            Event::Registers { registers, walks } => self.load(cpu, registers, walks),
            Event::Locked(lock) => self.locked(cpu, lock),
            Event::Unlocked(lock) => self.unlocked(cpu, lock),
            Event::SectionEnded => self.cpu(cpu).looked_at.clear(),
            Event::FrameFreed { frame, bytes } => self.frame_freed(frame.raw(), bytes),
            Event::Copied { ipa } => self.copied(ipa),
        }
    }

    /// Notes something wrong that the one who drives the machine has seen.
    pub(super) fn blame(&mut self, kind: Kind, what: String) {
        self.violation(kind, what, |_| true);
    }

    fn violation(&mut self, kind: Kind, what: String, concerns: impl Fn(&Event) -> bool) {
        let trail = self.trail.of(concerns);
        self.violations.push(Violation { kind, what, trail });
    }

    fn cpu(&mut self, cpu: u16) -> &mut Cpu {
        &mut self.cpus[usize::from(cpu)]
    }

    // Knowledge.

    fn next_write(&mut self, cpu: u16) -> Write {
        let state = self.cpu(cpu);
        state.stores += 1;
        let write = Write { cpu, nth: state.stores };
        state.ordered.add(write);
        write
    }

    /// From here on what this CPU has read from is before what it stores.
    fn release(&mut self, cpu: u16) {
        let state = self.cpu(cpu);
        let acquired = core::mem::take(&mut state.acquired);
        state.ordered.join(&acquired);
    }

    fn fence(&mut self, cpu: u16) {
        self.release(cpu);
        let state = self.cpu(cpu);
        state.fenced = state.ordered;
    }

    fn locked(&mut self, cpu: u16, lock: Lock) {
        let held = self.locks.entry(lock).or_default();
        let (before, brings) = (held.by.replace(cpu), held.brings);
        self.cpu(cpu).acquired.join(&brings);
        if let Some(before) = before {
            self.violation(Kind::LockNotExclusive, format!("{lock:x?} taken while cpu {before} holds it"), |_| true);
        }
    }

    fn unlocked(&mut self, cpu: u16, lock: Lock) {
        self.release(cpu);
        let brings = self.cpu(cpu).ordered;
        let held = self.locks.entry(lock).or_default();
        held.brings.join(&brings);
        if held.by.take() != Some(cpu) {
            self.violation(Kind::LockNotExclusive, format!("{lock:x?} given back by who does not hold it"), |_| true);
        }
    }

    fn looked(&mut self, cpu: u16, table: u64, index: usize, acquire: bool) {
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

    // Tables.

    fn given(&mut self, cpu: u16, table: u64, order: u32) {
        for page in pages(table, order, self.options.shape) {
            let zeroed = self.next_write(cpu);
            self.memory.give(page, zeroed);
        }
    }

    fn freed(&mut self, cpu: u16, table: u64, order: u32) {
        for page in pages(table, order, self.options.shape) {
            self.one_freed(cpu, page);
        }
    }

    fn one_freed(&mut self, cpu: u16, table: u64) {
        let Some(page) = self.memory.page_mut(table).filter(|page| !page.is_free) else {
            let what = format!("table {table:#x} is given back, and nobody has it");
            return self.violation(Kind::FreedTwice, what, of_table(table));
        };
        page.is_free = true;
        page.is_linked = false;
        if let Some((place, _)) = self.tlb.leading_to_table(table).first() {
            let what = format!("table {table:#x} is given back while {place:x?} may be in a walk cache");
            self.violation(Kind::TableFreedWhileCached, what, of_table(table));
        }
        if let Some(loaded) = self.cpus.iter().position(|state| self.is_root_of(state, table)) {
            let what = format!("table {table:#x} is given back while it is a root of cpu {loaded}");
            self.violation(Kind::TableFreedWhileCached, what, of_table(table));
        }
        let reader = self.cpus.iter().position(|state| state.looked_at.contains(&table));
        if let Some(reader) = reader.filter(|&reader| reader != usize::from(cpu)) {
            let what =
                format!("table {table:#x} is given back in a read section of cpu {reader} that has looked at it");
            self.violation(Kind::TableFreedWhileRead, what, of_table(table));
        }
    }

    fn is_root_of(&self, state: &Cpu, table: u64) -> bool {
        state.root.is_some_and(|root| {
            let bytes = root.tables(self.options.shape) << self.options.shape.page_shift;
            (root.pa..root.pa + bytes).contains(&table)
        })
    }

    fn stored(&mut self, cpu: u16, table: u64, index: usize, old: u64, new: u64, release: bool) {
        if !self.options.locks {
            let everything = self.everything();
            self.cpu(cpu).ordered.join(&everything);
        }
        if release {
            self.release(cpu);
        }
        let write = self.next_write(cpu);
        let state = &self.cpus[usize::from(cpu)];
        let mut brings = if release { state.ordered } else { state.fenced };
        brings.add(write);
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
    fn updated(&mut self, cpu: u16, table: u64, index: usize, new: u64) {
        let write = self.next_write(cpu);
        let mut brings = self.cpus[usize::from(cpu)].fenced;
        brings.add(write);
        if self.memory.page(table).is_some_and(|page| page.is_free) {
            let what = format!("the hardware stores {new:#x} to entry {index} of the freed table {table:#x}");
            self.violation(Kind::FreedTableUsed, what, of_table(table));
        }
        self.note_store(table, index, Version::new(new, write, brings));
    }

    /// The value may be seen, and cached, from now on.
    fn note_store(&mut self, table: u64, index: usize, version: Version) {
        self.memory.store(table, index, version);
        for (at, mask) in self.contexts(table) {
            let Some(fetched) = at.entry(index, version.value, version.brings, self.options.shape) else { continue };
            cpus(mask).for_each(|cpu| self.fetch(cpu, fetched, EVERYWHERE, Conflicts::AreWrong));
        }
    }

    /// A marker stands for an entry until no TLB holds it any more.
    fn look_for_settled(&mut self, table: u64, index: usize, old: u64, new: u64) {
        let old = Descriptor::from_raw(old);
        if old.is_valid() || old.is_none() || !Descriptor::from_raw(new).is_none() {
            return;
        }
        if let Some((place, cached)) = self.tlb.read_from(table, index) {
            let what = format!("{place:x?} holds nothing any more while {:#x} may be cached", cached.value);
            self.violation(Kind::SettledWhileCached, what, of_table(table));
        }
    }

    fn is_shared(&self, frame: u64) -> bool {
        self.options.shared_frames.is_some_and(|(first, end)| (first.raw()..end.raw()).contains(&frame))
    }

    // Walks.

    /// Where a table is reachable, and for which CPUs.
    fn contexts(&self, table: u64) -> Vec<(Context, Mask)> {
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

    fn root_context(&self, cpu: u16, root: Root, nth: u64) -> Context {
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
    fn fetch(&mut self, cpu: u16, fetched: Fetched, range: (u64, u64), conflicts: Conflicts) {
        let shape = self.options.shape;
        let is_new = self.tlb.insert(cpu, &fetched);
        if is_new && conflicts == Conflicts::AreWrong {
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
        self.walk(cpu, at, range, conflicts);
    }

    /// `cpu` may fetch everything of this table that is valid, within `range`.
    fn walk(&mut self, cpu: u16, at: Context, range: (u64, u64), conflicts: Conflicts) {
        let shape = self.options.shape;
        let shift = shape.shift(at.level);
        let end = at.base + ((shape.entries() as u64) << shift) - 1;
        let (first, last) = (range.0.max(at.base), range.1.min(end));
        if first > last {
            return;
        }
        let (first, last) = (((first - at.base) >> shift) as usize, ((last - at.base) >> shift) as usize);
        let mut found: Vec<Fetched> = Vec::new();
        for index in self.memory.stored(at.table, first, last) {
            let versions = self.memory.visible(at.table, index, &at.seen);
            found.extend(versions.filter_map(|version| at.entry(index, version.value, version.brings, shape)));
        }
        found.into_iter().for_each(|fetched| self.fetch(cpu, fetched, range, conflicts));
    }

    fn walk_root(&mut self, cpu: u16, root: Root, seen: Option<&Clock>, range: (u64, u64), conflicts: Conflicts) {
        for nth in 0..root.tables(self.options.shape) {
            let mut at = self.root_context(cpu, root, nth);
            if let Some(page) = self.memory.page_mut(at.table) {
                page.is_linked = true;
            }
            at.seen = seen.copied().unwrap_or(at.seen);
            self.walk(cpu, at, range, conflicts);
        }
    }

    /// What `cpu` may have cached beside this entry must not be of another mind.
    fn look_for_conflicts(&mut self, cpu: u16, fetched: &Fetched) {
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

    fn look_for_reuse(&mut self, place: Place, frame: u64, table: u64) {
        let bytes = 1 << self.options.shape.shift(place.level);
        let is_elsewhere = |other: &Place| other.root != place.root || other.ipa != place.ipa;
        let cached = self.tlb.leading_to_frame(frame, bytes).find(|(other, _)| is_elsewhere(other));
        let Some((other, cached)) = cached.filter(|(other, _)| other.root != place.root || other.level == place.level)
        else {
            return;
        };
        if self.is_shared(frame) {
            return;
        }
        let there = self.memory.current(cached.table, cached.index).map(|version| version.value);
        let is_mapped = there.map(|value| meaning(value, other.level, self.options.shape))
            == Some(meaning(cached.value, other.level, self.options.shape));
        let kind = if is_mapped { Kind::FrameMappedTwice } else { Kind::FrameReusedWhileCached };
        let what = format!("frame {frame:#x} is mapped at {place:x?} while {other:x?} may be cached");
        self.violation(kind, what, move |event| of_table(table)(event) || of_table(cached.table)(event));
    }

    // Registers, barriers, invalidations.

    fn load(&mut self, cpu: u16, registers: Stage2Registers, walks: bool) {
        let root = Root::of(registers, self.options.shape);
        let state = self.cpu(cpu);
        state.is_synchronized &= state.registers == registers;
        state.registers = registers;
        state.vmid = root.map_or(0, |root| root.vmid);
        if !walks || state.root == root {
            return;
        }
        state.root = root;
        let Some(root) = root else { return };
        self.roots.insert(root.pa, root);
        self.issued.iter_mut().for_each(|issued| issued.roots.push((cpu, root)));
        let loaded =
            self.cpus.iter().filter_map(|state| state.root).find(|it| it.vmid == root.vmid && it.pa != root.pa);
        let cached = self.tlb.roots(root.vmid).into_iter().find(|&(other, _)| other != root.pa);
        if let Some(other) = loaded.map(|it| it.pa).or(cached.map(|(other, _)| other)) {
            let what = format!("VMID {} stands for the roots {:#x} and {other:#x}", root.vmid, root.pa);
            self.violation(Kind::VmidInUseTwice, what, |event| matches!(event, Event::Registers { .. }));
        }
        self.walk_root(cpu, root, None, EVERYWHERE, Conflicts::AreWrong);
    }

    fn everything(&self) -> Clock {
        let mut all = Clock::default();
        for (cpu, state) in self.cpus.iter().enumerate() {
            all.add(Write { cpu: cpu as u16, nth: state.stores });
        }
        all
    }

    fn barrier(&mut self, cpu: u16, barrier: Dsb) {
        let is_full = matches!(barrier, Dsb::Ish | Dsb::Nsh);
        if is_full {
            self.release(cpu);
        }
        if !self.options.locks {
            let everything = self.everything();
            self.cpu(cpu).ordered.join(&everything);
        }
        let before = self.cpu(cpu).ordered;
        self.cpu(cpu).fenced = before;
        match barrier {
            Dsb::Ish | Dsb::Ishst => self.done.join(&before),
            Dsb::Nsh | Dsb::Nshst => self.cpu(cpu).done.join(&before),
        }
        if is_full {
            self.complete(cpu, barrier == Dsb::Nsh);
        }
        if self.issued.is_empty() {
            let done = self.done;
            self.memory.settle(&done);
        }
    }

    fn invalidate(&mut self, cpu: u16, operation: Invalidate) {
        let state = &self.cpus[usize::from(cpu)];
        let coverage = Coverage::of(operation, self.options.shape);
        let is_local = operation.scope == Scope::Local;
        if !state.is_synchronized && coverage != Coverage::All {
            let what = format!("{operation:x?} before an ISB");
            self.violation(Kind::ContextNotSynchronized, what, |_| true);
        }
        let seen = self.cpus.iter().map(|state| self.done.joined(&state.done)).collect();
        let roots = self.cpus.iter().enumerate();
        let roots = roots.filter_map(|(cpu, state)| Some((cpu as u16, state.root?))).collect();
        self.issued.push(Issued {
            cpu,
            coverage,
            vmid: self.cpus[usize::from(cpu)].vmid,
            reaches: if is_local { 1 << cpu } else { Mask::MAX },
            is_local,
            at: self.now,
            seen,
            roots,
        });
    }

    /// The invalidations that `cpu` has issued are complete: all of them, or the local ones.
    fn complete(&mut self, cpu: u16, only_local: bool) {
        let is_complete = |issued: &mut Issued| issued.cpu == cpu && (issued.is_local || !only_local);
        let complete: Vec<Issued> = self.issued.extract_if(.., is_complete).collect();
        for issued in complete {
            self.complete_one(&issued);
        }
    }

    fn complete_one(&mut self, issued: &Issued) {
        let vmid = (issued.coverage != Coverage::All).then_some(issued.vmid);
        let range = match issued.coverage {
            Coverage::Nothing => return,
            Coverage::Combined => return self.tlb.drop_combined(vmid, issued.reaches, issued.at),
            Coverage::Vmid | Coverage::All => EVERYWHERE,
            Coverage::Range { first, last, .. } => (first, last),
        };
        let shape = self.options.shape;
        let places = self.tlb.places(vmid, range.0, range.1);
        let covered = |place: Place, cached: &Cached| {
            if issued.coverage.covers(place, cached, shape) { issued.reaches } else { 0 }
        };
        self.tlb.drop_stage2(&places, self.now, covered);
        self.fetch_again(issued, vmid, range, &places);
        if range == EVERYWHERE {
            // Both forms at once: what cannot be made anew since is gone.
            self.tlb.drop_combined(vmid, issued.reaches, self.now);
        }
        self.tlb.sweep(&places);
    }

    /// What the CPUs may have cached again since `issued`: from their roots, and from what they have kept of walks.
    fn fetch_again(&mut self, issued: &Issued, vmid: Option<u16>, range: (u64, u64), places: &[Place]) {
        let is_meant = |of: u16| vmid.is_none_or(|vmid| vmid == of);
        for &(cpu, root) in issued.roots.iter().filter(|(_, root)| is_meant(root.vmid)) {
            let seen = issued.seen[usize::from(cpu)];
            self.walk_root(cpu, root, Some(&seen), range, Conflicts::WereSeen);
        }
        let mut kept: Vec<(u16, Context)> = Vec::new();
        for &place in places {
            for cached in self.tlb.at(place) {
                if let Meaning::Table(table) = meaning(cached.value, place.level, self.options.shape) {
                    let (level, base) = (place.level + 1, place.ipa);
                    kept.extend(cpus(cached.stage2).map(|cpu| {
                        // It sees what it saw when it was cached, and what all see.
                        let seen = cached.seen.joined(&issued.seen[usize::from(cpu)]);
                        (cpu, Context { place, level, table, base, seen })
                    }));
                }
            }
        }
        for (cpu, at) in kept {
            self.walk(cpu, at, range, Conflicts::WereSeen);
        }
    }

    // Oracles.

    fn frame_freed(&mut self, frame: u64, bytes: u64) {
        let cached = self.tlb.leading_to_frame(frame, bytes).next();
        if let Some((place, cached)) = cached {
            let what = format!("frame {frame:#x} is given back while {place:x?} may be cached");
            self.violation(Kind::FrameFreedWhileCached, what, of_table(cached.table));
        }
    }

    /// No CPU may store to the page at `ipa` unseen: where one may, the tables say that it is dirty.
    fn copied(&mut self, ipa: u64) {
        let shape = self.options.shape;
        let vmids = self.tlb.vmids();
        for (vmid, level) in vmids.into_iter().flat_map(|vmid| (1..=shape::LEAF).map(move |level| (vmid, level))) {
            let found = self.tlb.over(vmid, level, ipa, ipa);
            let leaves = found.filter(|(_, cached)| matches!(meaning(cached.value, level, shape), Meaning::Leaf(_)));
            let writable = leaves
                .map(|(place, cached)| (place, *cached))
                .find(|(_, cached)| Leaf::new(cached.value).permits(Access::Store));
            let Some((place, cached)) = writable else { continue };
            let is_dirty = self.current_leaf(place.root, ipa).is_some_and(Descriptor::is_dirty);
            if !is_dirty {
                let what = format!("{ipa:#x} is copied, clean, while {place:x?} may be cached writable");
                self.violation(Kind::WriteLost, what, of_table(cached.table));
            }
        }
    }

    /// The translations that an access of `cpu` to `ipa` may use.
    pub(super) fn translations(&self, cpu: u16, ipa: u64) -> Vec<Translation> {
        let shape = self.options.shape;
        let mut possible = Vec::new();
        let Some(root) = self.cpus.get(usize::from(cpu)).and_then(|state| state.root) else { return possible };
        for level in root.level..=shape::LEAF {
            let cached = self.tlb.over(root.vmid, level, ipa, ipa).map(|(_, cached)| cached);
            let mine = cached.filter(|cached| (cached.stage2 | cached.combined) & 1 << cpu != 0);
            let leaves = mine.filter(|cached| matches!(meaning(cached.value, level, shape), Meaning::Leaf(_)));
            possible.extend(leaves.map(|cached| Translation {
                leaf: Some(Leaf::new(cached.value)),
                table: cached.table,
                index: cached.index,
                shift: shape.shift(level),
                updates: root.updates,
            }));
        }
        if self.may_end_nowhere(cpu, root, ipa) {
            possible.push(Translation { leaf: None, table: 0, index: 0, shift: 0, updates: root.updates });
        }
        possible
    }

    /// Whether a walk of `ipa` may find no valid leaf: from the root, or from a table entry it has kept.
    fn may_end_nowhere(&self, cpu: u16, root: Root, ipa: u64) -> bool {
        let shape = self.options.shape;
        let nth = ipa >> (shape.shift(root.level) + shape.index_bits);
        if nth >= root.tables(shape) || self.ends_nowhere(self.root_context(cpu, root, nth), ipa) {
            return true;
        }
        (root.level..shape::LEAF).any(|level| {
            let kept = self.tlb.over(root.vmid, level, ipa, ipa).filter(|(_, cached)| cached.stage2 & 1 << cpu != 0);
            let mut below = kept.filter_map(|(place, cached)| match meaning(cached.value, level, shape) {
                Meaning::Table(table) => {
                    Some(Context { place, level: level + 1, table, base: place.ipa, seen: cached.seen })
                }
                _ => None,
            });
            below.any(|at| self.ends_nowhere(at, ipa))
        })
    }

    fn ends_nowhere(&self, at: Context, ipa: u64) -> bool {
        let shape = self.options.shape;
        let index = (ipa >> shape.shift(at.level)) as usize & (shape.entries() - 1);
        let mut versions = self.memory.visible(at.table, index, &at.seen).peekable();
        if versions.peek().is_none() {
            return true;
        }
        versions.any(|version| match meaning(version.value, at.level, shape) {
            Meaning::Invalid => true,
            Meaning::Leaf(_) => false,
            Meaning::Table(table) => {
                let Some(place) = at.place(index, shape) else { return true };
                let seen = at.seen.joined(&version.brings);
                self.ends_nowhere(Context { place, level: at.level + 1, table, base: place.ipa, seen }, ipa)
            }
        })
    }

    /// Whether the tables, as software sees them, permit this access to who has loaded them.
    pub(super) fn is_permitted(&self, cpu: u16, ipa: u64, access: Access) -> bool {
        let Some(root) = self.cpus.get(usize::from(cpu)).and_then(|state| state.root) else { return false };
        self.current_leaf(root.pa, ipa).is_some_and(|leaf| leaf.is_valid() && Leaf::new(leaf.raw()).permits(access))
    }

    /// What software sees at the end of the walk of `ipa` from a root that some CPU has, or had.
    pub(super) fn current_leaf(&self, root: u64, ipa: u64) -> Option<Descriptor> {
        let shape = self.options.shape;
        let found = self.roots.get(&root)?;
        let nth = ipa >> (shape.shift(found.level) + shape.index_bits);
        let mut table = root + (nth << shape.page_shift);
        for level in found.level..=shape::LEAF {
            let index = (ipa >> shape.shift(level)) as usize & (shape.entries() - 1);
            let value = self.memory.current(table, index)?.value;
            match Descriptor::from_raw(value).next_table(level_of(level)) {
                Some(child) => table = child.raw(),
                None => return Some(Descriptor::from_raw(value)),
            }
        }
        None
    }
}

/// A translation that an access may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Translation {
    /// `None`: the walk finds nothing.
    pub(super) leaf: Option<Leaf>,
    /// Where the leaf was read.
    pub(super) table: u64,
    pub(super) index: usize,
    /// log2 of the bytes it translates.
    pub(super) shift: u32,
    /// HA and HD.
    pub(super) updates: (bool, bool),
}

/// All addresses.
const EVERYWHERE: (u64, u64) = (0, u64::MAX >> 8);

/// A table on a walk.
#[derive(Clone, Copy)]
struct Context {
    /// The entry that led to it; of a root, the root itself.
    place: Place,
    level: u8,
    table: u64,
    base: u64,
    seen: Clock,
}

impl Context {
    fn place(&self, index: usize, shape: Shape) -> Option<Place> {
        let ipa = self.base.checked_add((index as u64) << shape.shift(self.level))?;
        Some(Place { level: self.level, ipa, ..self.place })
    }

    /// The entry at `index`, if `value` is valid.
    fn entry(&self, index: usize, value: u64, brings: Clock, shape: Shape) -> Option<Fetched> {
        let place = self.place(index, shape)?;
        let seen = self.seen.joined(&brings);
        let is_valid = meaning(value, self.level, shape) != Meaning::Invalid;
        is_valid.then_some(Fetched { place, value, table: self.table, index, seen })
    }
}

/// Whether a conflict with what is cached is news.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conflicts {
    AreWrong,
    /// When both were cached first.
    WereSeen,
}

fn level_of(level: u8) -> Level {
    match level {
        0 => Level::L0,
        1 => Level::L1,
        2 => Level::L2,
        _ => Level::L3,
    }
}

fn pages(table: u64, order: u32, shape: Shape) -> impl Iterator<Item = u64> {
    (0..1u64 << order).map(move |nth| table + (nth << shape.page_shift))
}

/// Events of a table, and those that order and invalidate.
fn of_table(table: u64) -> impl Fn(&Event) -> bool {
    move |event| match *event {
        Event::TableGiven { table: at, .. } | Event::TableFreed { table: at, .. } => at.raw() == table,
        Event::Store { table: at, new, .. } => at.raw() == table || new & 0x0000_ffff_ffff_f000 == table,
        Event::Locked(lock) | Event::Unlocked(lock) => lock == Lock::Table(Pa::new(table)),
        _ => true,
    }
}
