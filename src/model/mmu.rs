//! The modelled MMU: a machine whose CPUs are threads, watched by a [`Checker`].
//!
//! A thread becomes a CPU by [`ModelMmu::cpu`]. From then on what the library does on it is noted as it happens: stores to tables
//! and locks by the words and locks themselves, barriers and invalidations by the `arch` seam, pages of table memory by
//! [`ModelMmu::memory`]. What must never happen ends the test, with the trail of events that led to it.
//!
//! Guests run on it, too ([`guest`](super::guest)): their accesses go through whatever translation some TLB may hold.

use core::sync::atomic::Ordering;
use std::collections::BTreeMap;
use std::string::ToString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use rustc_hash::FxHashMap;

use super::checker::{Checker, Event, Kind, Lock, MAX_CPUS, Options, Shape, Violation};
use super::frames::Frames;
use crate::addr::{Ipa, Pa};
use crate::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};
use crate::geometry::granule::Granule;
use crate::memory::model::{ModelMemory, TableWatcher, WatchedMemory};
use crate::sync::probe::{Seat, Watcher, this_cpu};

/// A modelled machine. Clones are the same machine.
#[derive(Clone)]
pub struct ModelMmu(pub(super) Arc<Machine>);

/// What the clones share.
pub(super) struct Machine {
    state: Mutex<State>,
    /// What is wrong ends the test at once.
    is_strict: bool,
}

pub(super) struct State {
    pub(super) checker: Checker,
    pub(super) cpus: Vec<Registers>,
    pub(super) frames: Frames,
    /// The guest's stage 1: pages of virtual addresses. Where there is none it is the identity.
    pub(super) stage1: BTreeMap<u64, Ipa>,
    /// Table memory, the latest last.
    memories: Vec<WatchedMemory>,
    /// Whose a lock is.
    locks: FxHashMap<usize, Pa>,
    /// For choices: which of several translations is used, what a register holds that the architecture leaves unknown.
    random: u64,
}

/// A CPU's registers.
#[derive(Clone, Copy, Default)]
pub(super) struct Registers {
    pub(super) stage2: Stage2Registers,
    /// Accesses to a page that have faulted on a permission that the tables give.
    pub(super) stubborn: (u64, u32),
}

impl ModelMmu {
    /// A machine of `cpus` CPUs with tables of granule `G`. It ends the test at the first thing that must not happen.
    /// `seed` decides what hardware is free to decide.
    pub fn new<G: Granule>(cpus: usize, seed: u64) -> Self {
        Self::with_options(
            Options {
                shape: Shape { page_shift: G::PAGE_SHIFT, index_bits: G::INDEX_BITS },
                cpus,
                locks: true,
                shared_frames: None,
            },
            seed,
            true,
        )
    }

    /// A machine with these options; if not `is_strict`, what must not happen is only noted: [`Self::violations`].
    pub fn with_options(options: Options, seed: u64, is_strict: bool) -> Self {
        let state = State {
            checker: Checker::new(options),
            cpus: std::vec![Registers::default(); options.cpus.min(MAX_CPUS)],
            frames: Frames::default(),
            stage1: BTreeMap::new(),
            memories: Vec::new(),
            locks: FxHashMap::default(),
            random: seed | 1,
        };
        Self(Arc::new(Machine { state: Mutex::new(state), is_strict }))
    }

    /// Table memory of `pages` pages that this machine's walkers walk.
    pub fn memory<G: Granule>(&self, pages: usize) -> ModelMemory<G> {
        ModelMemory::watched(pages, self.0.clone())
    }

    /// This thread is `cpu` until what it gets is dropped.
    pub fn cpu(&self, cpu: u16) -> Seat {
        Seat::take(cpu, self.0.clone())
    }

    /// What must not have happened.
    pub fn violations(&self) -> Vec<Violation> {
        self.0.state().checker.violations().to_vec()
    }

    /// Events noted so far.
    pub fn events(&self) -> u64 {
        self.0.state().checker.events()
    }

    /// A frame is given back: no TLB may lead to it.
    pub fn free_frame(&self, frame: Pa, bytes: u64) {
        self.0.tell(Event::FrameFreed { frame, bytes });
    }

    /// The page at `ipa` is copied after a rearm: no store may pass unseen from now on.
    pub fn copied(&self, ipa: Ipa) {
        self.0.tell(Event::Copied { ipa: ipa.raw() });
    }

    /// Nothing must be left: to be called when all guests are torn down.
    pub fn assert_nothing_leaked(&self) {
        let mut state = self.0.state();
        let live = state.checker.live_tables();
        if live != 0 {
            state.checker.blame(Kind::Leaked, std::format!("{live} table pages were not given back"));
        }
        self.0.judge(state);
    }
}

impl Machine {
    /// The state, also after a test has failed: it must fail by its own violation.
    #[inline]
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Panics
    /// If something was wrong and the machine is strict.
    #[inline]
    pub(super) fn judge(&self, state: MutexGuard<'_, State>) {
        if self.is_strict && !state.checker.violations().is_empty() {
            Self::end(state);
        }
    }

    /// # Panics
    /// By what was wrong last, unless the test has panicked by that before.
    #[cold]
    fn end(state: MutexGuard<'_, State>) {
        let wrong = state.checker.violations().last().map(ToString::to_string).unwrap_or_default();
        drop(state);
        if !std::thread::panicking() {
            panic!("{wrong}");
        }
    }

    /// This CPU did `event`. Nobody's events are nobody's concern.
    pub(super) fn tell(&self, event: Event) {
        if let Some(cpu) = this_cpu() {
            let mut state = self.state();
            state.checker.step(cpu, event);
            self.judge(state);
        }
    }

    fn with_cpu<T>(&self, f: impl FnOnce(u16, &mut State) -> T) -> T
    where
        T: Default,
    {
        let Some(cpu) = this_cpu() else { return T::default() };
        let mut state = self.state();
        if usize::from(cpu) >= state.cpus.len() {
            return T::default();
        }
        let result = f(cpu, &mut state);
        self.judge(state);
        result
    }
}

impl State {
    /// Where the word at this address is.
    fn word(&self, address: usize) -> Option<(Pa, usize)> {
        self.memories.iter().rev().find_map(|memory| memory.word(address))
    }

    fn lock(&self, address: usize) -> Lock {
        self.locks.get(&address).map_or(Lock::Other(address as u64), |&table| Lock::Table(table))
    }

    /// One of `count`, as hardware likes (xorshift).
    pub(super) fn choose(&mut self, count: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as usize % count.max(1)
    }

    fn set_registers(&mut self, cpu: u16, registers: Stage2Registers, walks: bool) {
        self.cpus[usize::from(cpu)].stage2 = registers;
        self.checker.step(cpu, Event::Registers { registers, walks });
        self.checker.step(cpu, Event::Isb);
    }
}

impl TableWatcher for Machine {
    fn watch(&self, memory: WatchedMemory) {
        let mut state = self.state();
        state.locks.extend(memory.locks.iter().copied());
        state.memories.push(memory);
    }

    fn given(&self, table: Pa, order: u32) {
        self.tell(Event::TableGiven { table, order });
    }

    fn freed(&self, table: Pa, order: u32) {
        self.tell(Event::TableFreed { table, order });
    }
}

impl Watcher for Machine {
    fn look(&self, cpu: u16, word: usize, ordering: Ordering, load: &mut dyn FnMut() -> u64) -> u64 {
        let mut state = self.state();
        let value = load();
        if let Some((table, index)) = state.word(word) {
            let acquire = matches!(ordering, Ordering::Acquire | Ordering::SeqCst);
            state.checker.look(cpu, table, index, acquire);
        }
        self.judge(state);
        value
    }

    fn change(
        &self,
        cpu: u16,
        word: usize,
        ordering: Ordering,
        new: &mut dyn FnMut(u64) -> Option<u64>,
        change: &mut dyn FnMut() -> u64,
    ) -> u64 {
        let mut state = self.state();
        let old = change();
        if let (Some((table, index)), Some(new)) = (state.word(word), new(old)) {
            let release = matches!(ordering, Ordering::Release | Ordering::AcqRel | Ordering::SeqCst);
            state.checker.step(cpu, Event::Store { table, index, old, new, release });
        }
        self.judge(state);
        old
    }

    fn fence(&self, cpu: u16) {
        let mut state = self.state();
        state.checker.step(cpu, Event::Fence);
        self.judge(state);
    }

    fn locked(&self, cpu: u16, lock: usize) {
        let mut state = self.state();
        let lock = state.lock(lock);
        state.checker.step(cpu, Event::Locked(lock));
        self.judge(state);
    }

    fn unlocks(&self, cpu: u16, lock: usize) {
        let mut state = self.state();
        let lock = state.lock(lock);
        state.checker.step(cpu, Event::Unlocked(lock));
        self.judge(state);
    }

    fn section_ended(&self, cpu: u16) {
        let mut state = self.state();
        state.checker.step(cpu, Event::SectionEnded);
        self.judge(state);
    }
}

impl Arch for ModelMmu {
    fn dsb(&self, barrier: Dsb) {
        self.0.tell(Event::Dsb(barrier));
    }

    fn isb(&self) {
        self.0.tell(Event::Isb);
    }

    fn tlbi(&self, operation: Tlbi) {
        self.0.tell(Event::Tlbi(operation.into()));
    }

    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext {
        self.0.with_cpu(|cpu, state| {
            let saved = SavedContext { registers: state.cpus[usize::from(cpu)].stage2, ..SavedContext::default() };
            state.set_registers(cpu, registers, false);
            saved
        })
    }

    fn leave_vmid(&self, saved: SavedContext) {
        self.0.with_cpu(|cpu, state| state.set_registers(cpu, saved.registers, false));
    }

    fn load(&self, registers: Stage2Registers) {
        self.0.with_cpu(|cpu, state| state.set_registers(cpu, registers, true));
    }

    fn unload(&self) {
        self.0.with_cpu(|cpu, state| state.set_registers(cpu, Stage2Registers::default(), true));
    }

    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }

    fn is_loaded(&self, registers: Stage2Registers) -> bool {
        self.0.with_cpu(|cpu, state| state.cpus[usize::from(cpu)].stage2 == registers)
    }

    fn translate_stage1(&self, address: u64, _access: Stage1Access) -> u64 {
        let state = self.0.state();
        state.stage1.get(&(address >> 12)).map_or(address & !0xfff, |ipa| ipa.raw())
    }

    fn clean_invalidate_to_poc(&self, start: Pa, bytes: u64) {
        self.0.state().frames.clean_invalidate(start, bytes);
    }

    fn synchronize_instructions(&self, start: Pa, bytes: u64, clean: bool, invalidate: bool) {
        self.0.state().frames.synchronize_instructions(start, bytes, clean, invalidate);
    }
}
