//! Guests of the modelled machine: accesses through whatever a TLB may hold.
//!
//! Which of several possible translations an access uses is the seed's choice: a stale entry that no completed invalidation has
//! surely taken is as good as the tables. Hardware updates (HA, HD) are one atomic step on the descriptor the entry was read
//! from, wherever that is now, and happen only if it still says the same.
//!
//! A fault is reported with no more than the architecture promises: the level is anyone's guess, and HPFAR_EL2 holds garbage where it is
//! not valid.

use std::format;

use super::checker::{Access, Event, Kind, Leaf, Translation};
use super::frames::Through;
use super::mmu::{ModelMmu, State};
use crate::addr::{Ipa, Pa};
use crate::fault::Syndrome;
use crate::geometry::granule::Granule;
use crate::memory::model::ModelMemory;
use crate::sync::probe::this_cpu;

/// Faults in a row, on a permission that the tables give, that are too many.
const STUBBORN: u32 = 16;

impl ModelMmu {
    /// Makes the guest's stage 1 translate the page of `va` to the page of `ipa`; elsewhere it is the identity.
    pub fn map_stage1(&self, va: u64, ipa: Ipa) {
        self.0.state().stage1.insert(va >> 12, ipa.align_down(12));
    }

    /// The guest that this CPU has loaded loads from `va`.
    ///
    /// # Errors
    /// What the CPU reports of the fault.
    pub fn load<G: Granule>(&self, memory: &ModelMemory<G>, va: u64, through: Through) -> Result<u64, Syndrome> {
        let pa = self.access(memory, va, Access::Load)?;
        let mut state = self.0.state();
        if through == Through::Memory && state.frames.is_stale(pa) {
            state.checker.blame(Kind::StaleMemory, format!("the guest reads {pa} behind what is in the caches"));
        }
        let value = state.frames.load(pa, through);
        self.0.judge(state);
        Ok(value)
    }

    /// It stores `value` to `va`.
    ///
    /// # Errors
    /// What the CPU reports of the fault.
    pub fn store<G: Granule>(
        &self,
        memory: &ModelMemory<G>,
        va: u64,
        value: u64,
        through: Through,
    ) -> Result<(), Syndrome> {
        let mut state = self.0.state();
        // One step: a store that has been translated is done before an invalidation completes.
        let pa = self.access_in(&mut state, memory, va, Access::Store);
        if let Ok(pa) = pa {
            state.frames.store(pa, value, through);
        }
        self.0.judge(state);
        pa.map(|_| ())
    }

    /// It fetches an instruction from `va`; fetches see what is in the caches if the CPUs' instruction side is coherent.
    ///
    /// # Errors
    /// What the CPU reports of the fault.
    pub fn fetch<G: Granule>(&self, memory: &ModelMemory<G>, va: u64, through: Through) -> Result<(), Syndrome> {
        let pa = self.access(memory, va, Access::Fetch)?;
        let mut state = self.0.state();
        if through == Through::Memory && state.frames.is_stale_to_fetches(pa) {
            state.checker.blame(Kind::StaleMemory, format!("the guest fetches from {pa} what was there before"));
        }
        self.0.judge(state);
        Ok(())
    }

    /// It tries an access of which only the translation matters.
    ///
    /// # Errors
    /// What the CPU reports of the fault.
    pub fn access<G: Granule>(&self, memory: &ModelMemory<G>, va: u64, access: Access) -> Result<Pa, Syndrome> {
        let mut state = self.0.state();
        let result = self.access_in(&mut state, memory, va, access);
        self.0.judge(state);
        result
    }

    /// The hypervisor stores to a frame.
    pub fn fill(&self, frame: Pa, value: u64) {
        self.0.state().frames.store(frame, value, Through::Caches);
    }

    /// The hypervisor loads from a frame.
    pub fn content(&self, frame: Pa) -> u64 {
        self.0.state().frames.load(frame, Through::Caches)
    }

    fn access_in<G: Granule>(
        &self,
        state: &mut State,
        memory: &ModelMemory<G>,
        va: u64,
        access: Access,
    ) -> Result<Pa, Syndrome> {
        let stage1 = match access {
            Access::Stage1Walk | Access::Stage1Update => None,
            _ => state.stage1.get(&(va >> 12)).map(|ipa| ipa.raw() | va & 0xfff),
        };
        let (cpu, ipa) = (this_cpu().unwrap_or(0), stage1.unwrap_or(va));
        // Hardware that finds the descriptor changed under it looks again.
        for _ in 0..STUBBORN {
            let mut possible = state.checker.translations(cpu, ipa);
            let chosen = state.choose(possible.len());
            let Some(translation) = (!possible.is_empty()).then(|| possible.swap_remove(chosen)) else { break };
            match attempt(state, memory, cpu, translation, access) {
                Attempt::Passes(frame) => {
                    state.cpus[usize::from(cpu)].stubborn = (0, 0);
                    return Ok(frame.offset(ipa & ((1 << translation.shift) - 1)));
                }
                Attempt::Again => {}
                Attempt::Fails(code) => return Err(self.fault(state, cpu, (va, ipa), access, code)),
            }
        }
        Err(self.fault(state, cpu, (va, ipa), access, TRANSLATION))
    }

    fn fault(&self, state: &mut State, cpu: u16, (va, ipa): (u64, u64), access: Access, code: u64) -> Syndrome {
        const INSTRUCTION_ABORT: u64 = 0x20 << 26;
        const DATA_ABORT: u64 = 0x24 << 26;
        const S1PTW: u64 = 1 << 7;
        const WNR: u64 = 1 << 6;
        let class = if access == Access::Fetch { INSTRUCTION_ABORT } else { DATA_ABORT };
        let walk = matches!(access, Access::Stage1Walk | Access::Stage1Update);
        let write = access == Access::Store || walk && state.choose(2) == 0;
        let level = 1 + state.choose(3) as u64;
        let esr = class | code | level | if walk { S1PTW } else { 0 } | if write { WNR } else { 0 };
        let is_valid = walk || code != PERMISSION;
        let hpfar = if is_valid { ipa >> 12 << 4 } else { (state.choose(usize::MAX) as u64) << 4 };
        if code == PERMISSION {
            self.count_stubborn(state, cpu, ipa, access);
        }
        Syndrome { esr, far: va, hpfar }
    }

    /// An access that fails on a permission that the tables give: sooner or later it has to pass.
    fn count_stubborn(&self, state: &mut State, cpu: u16, ipa: u64, access: Access) {
        let is_given = state.checker.is_permitted(cpu, ipa, access);
        let (page, count) = &mut state.cpus[usize::from(cpu)].stubborn;
        *count = if is_given && *page == ipa >> 12 { *count + 1 } else { 0 };
        *page = ipa >> 12;
        if *count > STUBBORN {
            let what = format!("cpu {cpu} faults for ever at {ipa:#x}: {access:?} is permitted by the tables");
            state.checker.blame(Kind::FaultsForEver, what);
        }
    }
}

/// Codes of ESR_EL2 without their level.
const TRANSLATION: u64 = 0b00_0100;
const ACCESS_FLAG: u64 = 0b00_1000;
const PERMISSION: u64 = 0b00_1100;

enum Attempt {
    Passes(Pa),
    Fails(u64),
    /// The descriptor has changed: the walk starts over.
    Again,
}

/// What becomes of an access that uses `translation`.
fn attempt<G: Granule>(
    state: &mut State,
    memory: &ModelMemory<G>,
    cpu: u16,
    translation: Translation,
    access: Access,
) -> Attempt {
    let Some(leaf) = translation.leaf else { return Attempt::Fails(TRANSLATION) };
    let mut updated = leaf;
    if !leaf.is_accessed() {
        if !translation.updates.0 {
            return Attempt::Fails(ACCESS_FLAG);
        }
        updated = updated.with_accessed();
    }
    if !leaf.permits(access) {
        if !(access.writes() && leaf.has_dbm() && translation.updates.1) {
            return Attempt::Fails(PERMISSION);
        }
        updated = updated.with_write();
    }
    if updated != leaf && !update(state, memory, cpu, &translation, updated) {
        return Attempt::Again;
    }
    Attempt::Passes(Pa::new(leaf.frame(translation.shift)))
}

/// The hardware's own store: atomic, and only if the descriptor still says what was cached.
fn update<G: Granule>(
    state: &mut State,
    memory: &ModelMemory<G>,
    cpu: u16,
    translation: &Translation,
    updated: Leaf,
) -> bool {
    let Translation { leaf: Some(leaf), table, index, .. } = *translation else { return false };
    let same = |old| leaf.is_the_same_but_for_updates(old).then_some(old | updated.raw());
    let Some(new) = memory.update(Pa::new(table), index, same) else { return false };
    state.checker.step(cpu, Event::Updated { table: Pa::new(table), index, new });
    true
}
