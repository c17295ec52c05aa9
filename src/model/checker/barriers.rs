//! Registers, barriers, and the TLB invalidations that a barrier completes.

use std::format;
use std::vec::Vec;

use super::clock::{Clock, Write};
use super::invalidate::Coverage;
use super::shape::{Meaning, Root, meaning};
use super::tlb::{Cached, Mask, Place, cpus};
use super::walks::{Context, EVERYWHERE, Fetching};
use super::{Checker, Event, Invalidate, Issued, Kind, of_table};
use crate::arch::{Dsb, Scope, Stage2Registers};

impl Checker {
    pub(super) fn load(&mut self, cpu: u16, registers: Stage2Registers, walks: bool) {
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
        let cached = || self.tlb.other_root(root.vmid, root.pa);
        if let Some(other) = loaded.map(|it| it.pa).or_else(cached) {
            let what = format!("VMID {} stands for the roots {:#x} and {other:#x}", root.vmid, root.pa);
            self.violation(Kind::VmidInUseTwice, what, |event| matches!(event, Event::Registers { .. }));
        }
        if let Some((place, cached, kind)) = self.tlb.doomed(cpu, root.vmid) {
            let what =
                format!("cpu {cpu} takes up a VMID under which it may have cached {:#x} at {place:x?}", cached.value);
            self.violation(kind, what, of_table(cached.table));
        }
        self.walk_root(cpu, root, None, EVERYWHERE, Fetching::Anew);
    }

    pub(super) fn everything(&self) -> Clock {
        let mut all = Clock::default();
        for (cpu, state) in self.cpus.iter().enumerate() {
            all.add(Write { cpu: cpu as u16, nth: state.stores });
        }
        all
    }

    pub(super) fn barrier(&mut self, cpu: u16, barrier: Dsb) {
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

    pub(super) fn invalidate(&mut self, cpu: u16, operation: Invalidate) {
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
    pub(super) fn complete(&mut self, cpu: u16, only_local: bool) {
        let is_complete = |issued: &mut Issued| issued.cpu == cpu && (issued.is_local || !only_local);
        let complete: Vec<Issued> = self.issued.extract_if(.., is_complete).collect();
        for issued in complete {
            self.complete_one(&issued);
        }
    }

    pub(super) fn complete_one(&mut self, issued: &Issued) {
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
    pub(super) fn fetch_again(&mut self, issued: &Issued, vmid: Option<u16>, range: (u64, u64), places: &[Place]) {
        let is_meant = |of: u16| vmid.is_none_or(|vmid| vmid == of);
        for &(cpu, root) in issued.roots.iter().filter(|(_, root)| is_meant(root.vmid)) {
            let seen = issued.seen[usize::from(cpu)];
            self.walk_root(cpu, root, Some(&seen), range, Fetching::Again);
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
            self.walk(cpu, at, range, Fetching::Again);
        }
    }
}
