//! 8-bit VMIDs, more guests than there are of them, and CPUs that enter guests, flush, make guests and tear them down all at
//! once, through rollovers. The machine judges each instruction as it is issued.
//!
//! - A VMID that some CPU has in VTTBR_EL2, to run under or to invalidate, is one tree's.
//! - A VMID that is loaded is in no TLB for another tree: since that ran under it, it was invalidated.
//! - A guest that is loaded through a rollover keeps its VMID.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use stage2::addr::Pa;
use stage2::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};
use stage2::cpu::CpuIndex;
use stage2::descriptor::Permissions;
use stage2::geometry::Granule4K;
use stage2::model::ModelMemory;
use stage2::quiescence::Reader;
use stage2::stage2::Stage2;

use crate::support::*;

const WORKERS: u16 = 3;
/// Their CPUs, one that a guest never leaves, and one that goes in and out of another.
const CPUS: usize = WORKERS as usize + 2;
const GUESTS: usize = 300;
const VMIDS: usize = 256;
const STEPS: u32 = 6_000;
const TIME: Duration = Duration::from_secs(3);

type Tree = Stage2<'static, Judge, ModelMemory<Granule4K>>;

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// A CPU's VTTBR_EL2, without VMID: whose tree it is.
type Root = u64;

#[derive(Clone, Copy, Default)]
struct Cpu {
    /// What the guest runs under.
    loaded: Option<(Root, usize)>,
    /// What is in VTTBR_EL2 for the time of an invalidation.
    entered: Option<(Root, usize)>,
    /// Issued, and not complete.
    pending: Option<Tlbi>,
}

/// The machine.
struct State {
    cpus: [Cpu; CPUS],
    /// Whose entries each VMID may have in some TLB.
    cached: [Option<Root>; VMIDS],
}

/// See the [module](self).
struct Judge {
    state: Mutex<State>,
    rollovers: AtomicU64,
}

fn split(registers: Stage2Registers) -> (Root, usize) {
    (registers.vttbr & ((1 << 48) - 1), (registers.vttbr >> 48) as usize)
}

impl State {
    /// This CPU begins to use a VMID for a tree.
    fn claim(&self, (root, vmid): (Root, usize)) {
        assert!((1..VMIDS).contains(&vmid), "VMID {vmid} is none of 8 bits, or nobody's");
        for (other, cpu) in self.cpus.iter().enumerate() {
            for (its_root, its_vmid) in [cpu.loaded, cpu.entered].into_iter().flatten() {
                assert!(vmid != its_vmid || root == its_root, "VMID {vmid} is another tree's on cpu {other}");
            }
        }
    }

    /// The CPU has it to run a guest under.
    fn load(&mut self, cpu: usize, (root, vmid): (Root, usize)) {
        self.claim((root, vmid));
        let loaded = self.cpus.iter().filter_map(|cpu| cpu.loaded);
        assert!(
            loaded.into_iter().all(|(its_root, its_vmid)| its_root != root || its_vmid == vmid),
            "two VMIDs for a tree"
        );
        let cached = self.cached[vmid].replace(root);
        assert!(cached.is_none_or(|cached| cached == root), "VMID {vmid} has entries of another tree");
        self.cpus[cpu].loaded = Some((root, vmid));
    }
}

impl Judge {
    fn with<T>(&self, f: impl FnOnce(&mut State, usize) -> T) -> T {
        // Who finds a fault panics, and unloads its guest on the way out.
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), CPU.get())
    }
}

impl Arch for Judge {
    fn dsb(&self, barrier: Dsb) {
        if barrier != Dsb::Ish {
            return;
        }
        self.with(|state, cpu| match state.cpus[cpu].pending.take() {
            Some(Tlbi::Alle1 { .. }) => {
                state.cached = [None; VMIDS];
                // Who runs meanwhile fills the TLBs at once.
                for (root, vmid) in state.cpus.iter().filter_map(|cpu| cpu.loaded).collect::<Vec<_>>() {
                    state.cached[vmid] = Some(root);
                }
                self.rollovers.fetch_add(1, Relaxed);
            }
            Some(Tlbi::Vmalls12e1 { .. }) => {
                let (root, vmid) = state.cpus[cpu].entered.expect("a VMID to invalidate");
                let still = state.cpus.iter().any(|cpu| cpu.loaded == Some((root, vmid)));
                state.cached[vmid] = still.then_some(root);
            }
            _ => {}
        });
    }

    fn isb(&self) {}

    fn tlbi(&self, operation: Tlbi) {
        // Long enough for others to come in between.
        std::thread::yield_now();
        self.with(|state, cpu| {
            if !matches!(operation, Tlbi::Alle1 { .. }) {
                assert!(state.cpus[cpu].entered.is_some(), "{operation:?} of whatever VTTBR_EL2 holds");
            }
            if matches!(operation, Tlbi::Alle1 { .. } | Tlbi::Vmalls12e1 { .. }) {
                state.cpus[cpu].pending = Some(operation);
            }
        });
    }

    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext {
        let entered = split(registers);
        self.with(|state, cpu| {
            state.claim(entered);
            state.cpus[cpu].entered = Some(entered);
        });
        std::thread::yield_now();
        SavedContext::default()
    }

    fn leave_vmid(&self, _: SavedContext) {
        std::thread::yield_now();
        self.with(|state, cpu| state.cpus[cpu].entered = None);
    }

    fn load(&self, registers: Stage2Registers) {
        self.with(|state, cpu| {
            // What was loaded here before is not any more.
            state.cpus[cpu].loaded = None;
            state.load(cpu, split(registers));
        });
        std::thread::yield_now();
    }

    fn unload(&self) {
        self.with(|state, cpu| state.cpus[cpu].loaded = None);
    }

    fn translate_stage1(&self, _: u64, _: Stage1Access) -> u64 {
        unreachable!("no fault is taken here")
    }

    fn clean_invalidate_to_poc(&self, _: Pa, _: u64) {}

    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }

    fn is_loaded(&self, registers: Stage2Registers) -> bool {
        self.with(|state, cpu| state.cpus[cpu].loaded == Some(split(registers)))
    }

    fn synchronize_instructions(&self, _: Pa, _: u64, _: bool, _: bool) {}
}

/// A worker: a CPU that does what hypervisors do, with guests that are everybody's and some of its own.
fn work(cpu: u16, mmu: &'static Machine<Judge>, guests: &[Tree], failed: &AtomicBool) {
    CPU.set(usize::from(cpu));
    let mut reader = mmu.reader(CpuIndex(cpu)).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 >> cpu;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % limit) as usize
    };
    let until = Instant::now() + TIME;
    for _ in 0..STEPS {
        let guest = &guests[below(GUESTS as u64)];
        match below(8) {
            0..=3 => {
                let mut loaded = guest.load(&reader).unwrap();
                for _ in 0..below(3) {
                    loaded.run(&mut reader, std::thread::yield_now).unwrap();
                }
            }
            // Flushes of a tree that another CPU may run, load for the first time or have lost the VMID of.
            4 => guest.protect(&reader, range(0, PAGE), Permissions::R).unwrap(),
            5 => guest.protect(&reader, range(0, PAGE), Permissions::RW).unwrap(),
            6 => {
                let mut loaded = guest.load(&reader).unwrap();
                guests[below(GUESTS as u64)].write_protect(&reader, range(0, PAGE)).unwrap();
                loaded.run(&mut reader, || {}).unwrap();
            }
            _ => {
                let own: Tree = Stage2::new(mmu, geometry(40), None).unwrap();
                drop(own.load(&reader).unwrap());
                assert!(own.teardown(&reader).is_ok());
            }
        }
        reader.quiescent();
        if failed.load(Relaxed) || Instant::now() > until {
            break;
        }
    }
}

/// In a guest until `done`; its registers are loaded once.
fn reside(cpu: usize, reader: &mut Reader<'static>, guest: &Tree, mut until: impl FnMut() -> bool) {
    CPU.set(cpu);
    let mut loaded = guest.load(reader).unwrap();
    let registers = || guest.mmu().arch().with(|state, cpu| state.cpus[cpu].loaded);
    let first = registers();
    loop {
        let done = loaded.run(reader, &mut until).unwrap();
        assert_eq!(registers(), first, "another VMID, though it never left");
        if done {
            break;
        }
    }
}

#[test]
fn no_two_trees_use_one_vmid_through_rollovers_on_five_cpus_with_300_guests() {
    let arch = Judge {
        state: Mutex::new(State { cpus: [Cpu::default(); CPUS], cached: [None; VMIDS] }),
        rollovers: AtomicU64::new(0),
    };
    let mmu = machine_of::<_, Granule4K>(arch, CPUS, 2048, features().without_vmid16());
    let setup = reader(mmu, 0);
    let guests: Vec<Tree> = (0..GUESTS + 2).map(|_| guest(mmu)).collect();
    for guest in &guests {
        map(guest, &setup, 0, PAGE);
    }
    drop(setup);
    let (failed, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (guests, residents) = guests.split_at(GUESTS);
        let (failed, done) = (&failed, &done);
        let over = || done.load(Relaxed) || failed.load(Relaxed);
        let mut others = Vec::new();
        // One enters once and stays in the guest; one goes in and out all the time.
        others.push(scope.spawn(move || {
            let mut reader = mmu.reader(CpuIndex(3)).unwrap();
            reside(3, &mut reader, &residents[0], || {
                while !over() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                true
            });
        }));
        others.push(scope.spawn(move || {
            let mut reader = mmu.reader(CpuIndex(4)).unwrap();
            reside(4, &mut reader, &residents[1], || {
                std::thread::yield_now();
                over()
            });
        }));
        let workers: Vec<_> = (0..WORKERS).map(|cpu| scope.spawn(move || work(cpu, mmu, guests, failed))).collect();
        let mut results: Vec<_> = Vec::new();
        for worker in workers {
            let result = worker.join();
            failed.fetch_or(result.is_err(), Relaxed);
            results.push(result);
        }
        done.store(true, Relaxed);
        results.extend(others.into_iter().map(|other| other.join()));
        results.into_iter().for_each(|result| result.expect("a CPU whose VMIDs were its own"));
    });
    let rollovers = mmu.vmids().rollovers();
    assert!(rollovers >= 5, "{rollovers}");
    assert_eq!(mmu.arch().rollovers.load(Relaxed), rollovers + 1, "each, and the first VMID's");
    CPU.set(0);
    let reader = reader(mmu, 0);
    for guest in guests {
        assert!(guest.teardown(&reader).is_ok());
    }
    assert_eq!(mmu.memory().live(), 0);
}
