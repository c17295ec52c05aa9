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

mod accesses;
mod barriers;
mod clock;
mod event;
mod invalidate;
mod knowledge;
mod memory;
mod shape;
mod tables;
#[cfg(test)]
mod tests;
mod tlb;
mod trail;
mod violation;
mod walks;

pub(in crate::model) use accesses::Translation;
pub use clock::MAX_CPUS;
pub use event::{Event, Instruction, Invalidate, Lock};
pub(in crate::model) use shape::Leaf;
pub use shape::{Access, Shape};
pub use violation::{Kind, Violation};

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec::Vec;

use rustc_hash::FxHashMap;

use crate::addr::Pa;
use crate::arch::Stage2Registers;
use clock::Clock;
use invalidate::Coverage;
use knowledge::LookedAt;
use memory::Memory;
use shape::Root;
use tlb::{Cached, Mask, Place, Tlb};
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
    locks: FxHashMap<Lock, Held>,
    /// Every root that a CPU ever had.
    roots: BTreeMap<u64, Root>,
    /// The number of the latest event.
    now: u64,
    trail: Trail,
    violations: Vec<Violation>,
}

/// What is known of a CPU.
#[derive(Clone, Default)]
struct Cpu {
    stores: u32,
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
    looked_at: LookedAt,
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
            locks: FxHashMap::default(),
            roots: BTreeMap::new(),
            now: 0,
            trail: Trail::default(),
            violations: Vec::new(),
        }
    }

    /// What was wrong so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.now
    }

    /// Table pages that were given out and not given back.
    pub fn live_tables(&self) -> usize {
        self.memory.live()
    }

    /// `cpu` has done this. An event of a CPU there is not is passed over.
    pub fn step(&mut self, cpu: u16, event: Event) {
        if let Event::Look { table, index, acquire } = event {
            return self.look(cpu, table, index, acquire);
        }
        if usize::from(cpu) >= self.cpus.len() {
            return;
        }
        self.now += 1;
        self.trail.push(self.now, cpu, event);
        match event {
            Event::TableGiven { table, order } => self.given(cpu, table.raw(), order),
            Event::TableFreed { table, order } => self.freed(cpu, table.raw(), order),
            Event::Look { .. } => {}
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

    /// `cpu` has looked at a descriptor: most events are this, and no story tells them.
    pub(in crate::model) fn look(&mut self, cpu: u16, table: Pa, index: usize, acquire: bool) {
        if usize::from(cpu) < self.cpus.len() {
            self.now += 1;
            self.looked(cpu, table.raw(), index, acquire);
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

    /// Nobody may use what is in `cached` any more. It is wrong if a CPU that has it runs under that VMID; else it will be, should
    /// one do so before it is invalidated.
    fn must_not_be_cached(&mut self, kind: Kind, thing: impl Fn() -> String, cached: Vec<(Place, Cached)>) {
        for (place, cached) in cached {
            let runs = self.cpus.iter().enumerate().filter(|(_, cpu)| cpu.root.is_some_and(|it| it.vmid == place.vmid));
            let runs = runs.fold(0, |mask, (cpu, _)| mask | 1 << cpu);
            if (cached.stage2 | cached.combined) & runs == 0 {
                self.tlb.doom(place, &cached, kind);
                continue;
            }
            let thing = thing();
            let what = format!("{thing} while {:#x} at {place:x?} may be cached", cached.value);
            self.violation(kind, what, of_table(cached.table));
        }
    }

    fn cpu(&mut self, cpu: u16) -> &mut Cpu {
        &mut self.cpus[usize::from(cpu)]
    }
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
