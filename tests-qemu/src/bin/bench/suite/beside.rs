//! What a fault costs while another CPU scans the log: exactly what it costs alone, as a scan takes no lock and stores nothing.
//!
//! The faults are permission faults of clean pages under a log. Their syndromes are made by hand, so that all that is counted is
//! the library's. The scanning CPU has its turns in the midst of each fault ([`turns`](super::turns)).

use alloc::{format, string::String};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;
use stage2::{
    arch::Aarch64,
    dirty::DirtyLog,
    fault::{Outcome, Syndrome},
    geometry::Features,
};
use stage2_platform::{
    cpus::{self, CpuIndex},
    partition::{self, Controls},
    vcpu,
};
use stage2_tests_qemu::{
    machine::{self, Tables},
    memory::PAGE_BYTES,
    say::{OrSay, expect},
};

use super::{
    guest::Mapped,
    lab::{BLOCK_BYTES, GuestMemory, LabMmu, LabStage2, Memory, RAM, SLOTS, range, tear_down},
    meter::Meter,
    report::Cost,
    tracking::Mode,
    turns::Turns,
};

/// Leaf tables of the guest's memory.
const TABLES: u64 = 4;
const BYTES: u64 = TABLES * BLOCK_BYTES;
const WORDS: usize = (BYTES / PAGE_BYTES).div_ceil(u64::BITS as u64) as usize;
/// Faults, by turns in each table.
const FAULTS: u64 = TABLES * 64;
/// The pages from one to the next of a table.
const STRIDE: u64 = 7;
/// QEMU now and then ends a turn where it likes. A run in which it did is none. It also ends the turn of a fault that waits, in every run.
const TRIES: u32 = 8;

type TurnsTables = Turns<Tables>;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; each CPU claims the reader that is its own.
    let mmu = unsafe { machine::mmu(Turns::new(tables), features, &SLOTS) };
    let meter = Meter::new()?;
    let bench = Bench { mmu: &mmu, features: &features, memory: &guest, meter: &meter };
    for mode in Mode::all(&features).filter(|mode| mode.faults()) {
        for (name, beside) in [("fault_alone", false), ("fault_beside_scan", true)] {
            let runs = (0..TRIES).map(|_| bench.run(mode, beside)).find_map(Result::transpose);
            let instructions = runs.or_say("each fault waits for the scan, or QEMU has ended turns in every run")??;
            Cost::new(name, mode.name(), "fault", FAULTS, instructions).emit()?;
        }
    }
    Ok(())
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h LabMmu<'h, TurnsTables>,
    features: &'a Features,
    memory: &'a GuestMemory,
    meter: &'a Meter,
}

/// What both CPUs know of the scan.
#[derive(Default)]
struct Scan {
    /// How often all was scanned.
    rounds: AtomicU64,
    /// It is not needed any more.
    over: AtomicBool,
    failed: AtomicBool,
}

impl<'h> Bench<'_, 'h> {
    /// What the faults cost in a new tree that is logged; `None` if they were disturbed.
    fn run(&self, mode: Mode, beside: bool) -> Result<Option<u64>, String> {
        let tree = self.memory.tree(self.mmu, self.features, mode.options(), BYTES)?;
        let log = {
            let reader = self.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
            self.memory.map_pages(&tree, &reader, BYTES)?;
            Mutex::new(mode.start(&tree, &reader)?)
        };
        let scan = Scan::default();
        let results = Mutex::new((Err("there were no faults".into()), Ok(())));
        cpus::scope(1 + usize::from(beside), |cpu| {
            if cpu == CpuIndex::BOOT {
                let counted = self.resolve(&tree, beside.then_some(&scan));
                scan.over.store(true, Ordering::Release);
                results.lock().0 = counted;
            } else {
                let scanned = self.scan(&mut log.lock(), cpu, &scan);
                scan.failed.store(scanned.is_err(), Ordering::Release);
                results.lock().1 = scanned;
            }
        });
        drop(log);
        let (counted, scanned) = results.into_inner();
        scanned?;
        let reader = self.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        tear_down(tree, &reader)?;
        counted
    }

    /// The measured CPU: takes every fault, beside a scan that is at work.
    fn resolve(&self, tree: &LabStage2<'h, TurnsTables>, scan: Option<&Scan>) -> Result<Option<u64>, String> {
        let turns = self.mmu.memory();
        let reader = self.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        partition::prepare(Controls::default());
        let loaded = tree.load(&reader).or_say("load")?;
        let rounds = || scan.map_or(0, |scan| scan.rounds.load(Ordering::Acquire));
        while scan.is_some_and(|scan| rounds() == 0 && !scan.failed.load(Ordering::Acquire)) {
            cpus::yield_now();
        }
        let before = rounds();
        turns.begin(scan.is_some());
        let mut instructions = 0;
        let mut resolved = Ok(());
        for fault in 0..FAULTS {
            let ipa = RAM + fault % TABLES * BLOCK_BYTES + fault / TABLES * STRIDE * PAGE_BYTES;
            let elsewhere = turns.elsewhere();
            let (outcome, counted) = self.meter.count(|| loaded.resolve(&reader, &Mapped, write_to(ipa)));
            instructions += u64::from(counted - turns.elsewhere().wrapping_sub(elsewhere));
            resolved = outcome.or_say("resolve").and_then(|outcome| expect("it", outcome, Outcome::Resumed));
            if resolved.is_err() {
                break;
            }
        }
        let undisturbed = turns.end();
        resolved?;
        if scan.is_some() && rounds() == before {
            return Err(format!("nothing was scanned within {FAULTS} faults"));
        }
        Ok(undisturbed.then_some(instructions))
    }

    /// The other one: scans until it is not needed any more.
    fn scan(&self, log: &mut DirtyLog<'_, 'h, Aarch64, TurnsTables>, cpu: CpuIndex, scan: &Scan) -> Result<(), String> {
        let reader = self.mmu.reader(machine::index(cpu)).or_say("reader")?;
        let all = range(RAM, BYTES)?;
        while !scan.over.load(Ordering::Acquire) {
            log.scan(&reader, all, &mut [0; WORDS]).or_say("scan")?;
            scan.rounds.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }
}

/// What the CPU would say of a store to a page that is write-protected, by a guest whose stage 1 is off.
const fn write_to(ipa: u64) -> Syndrome {
    const INSTRUCTION_LENGTH_32: u64 = 1 << 25;
    const WRITE: u64 = 1 << 6;
    const PERMISSION_LEVEL_3: u64 = 0b00_1111;
    let esr = vcpu::Syndrome::DATA_ABORT << 26 | INSTRUCTION_LENGTH_32 | WRITE | PERMISSION_LEVEL_3;
    Syndrome { esr, far: ipa, hpfar: 0 }
}
