//! What a fault costs while another CPU scans the log: exactly what it costs alone, as a scan takes no lock and stores nothing.
//!
//! The faults are permission faults of clean pages under a log. Their syndromes are made by hand, so that all that is counted is
//! the library's. The scanning CPU has its turns in the midst of each fault ([`turns`](super::turns)).

use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use stage2::{
    Reader,
    arch::Aarch64,
    dirty::{DirtyLog, Initial, Tracking},
    fault::{Outcome, Syndrome},
    geometry::Features,
    stage2::Loaded,
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
    lab::{BLOCK_BYTES, GuestMemory, LabMmu, LabStage2, Memory, RAM, RAM_BYTES, SLOTS, range, tear_down},
    meter::Meter,
    report::Cost,
    tracking,
    turns::Turns,
};

/// The words of a bitmap over the most there is.
const MOST_WORDS: usize = (RAM_BYTES / PAGE_BYTES).div_ceil(u64::BITS as u64) as usize;
/// The pages from one that faults to the next of a table.
const STRIDE: u64 = 7;
/// QEMU now and then ends a turn where it likes. A run in which it did is none. It also ends the turn of a fault that waits, in every run.
const TRIES: u32 = 3;

type TurnsTables = Turns<Tables>;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; each CPU claims the reader that is its own.
    let mmu = unsafe { machine::mmu(Turns::new(tables), features, &SLOTS) };
    let bench = Bench { mmu: &mmu, features: &features, memory: &guest };
    for mode in tracking::modes(&features).filter(|mode| Faults::of(*mode).count() != 0) {
        for (name, beside) in [("fault_alone", false), ("fault_beside_scan", true)] {
            let runs = (0..TRIES).map(|_| bench.run(mode, beside)).find_map(Result::transpose);
            let instructions = runs.or_say("each fault waits for the scan, or QEMU has ended turns in every run")??;
            Cost::beside(name, tracking::name(mode), "fault", Faults::of(mode).count(), instructions).emit()?;
        }
    }
    Ok(())
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h LabMmu<'h, TurnsTables>,
    features: &'a Features,
    memory: &'a GuestMemory,
}

/// Which pages fault: some of each table, by turns.
#[derive(Clone, Copy)]
struct Faults {
    tables: u64,
    each: u64,
}

impl Faults {
    /// Few tables, so that it is one that is being scanned as often as may be; and so many faults that the two meet.
    const fn of(mode: Tracking) -> Self {
        match mode {
            Tracking::WriteProtect => Self { tables: 4, each: 64 },
            // The first store to a table arms all of it.
            Tracking::Adaptive => Self { tables: 32, each: 1 },
            Tracking::Hardware => Self { tables: 0, each: 0 },
        }
    }

    const fn count(self) -> u64 {
        self.tables * self.each
    }

    const fn address(self, fault: u64) -> u64 {
        RAM + fault % self.tables * BLOCK_BYTES + fault / self.tables * STRIDE * PAGE_BYTES
    }
}

/// What both CPUs know of the scan.
#[derive(Default)]
struct Scan {
    /// All was scanned once, or cannot be.
    is_begun: AtomicBool,
    /// It is not needed any more.
    is_over: AtomicBool,
}

impl<'h> Bench<'_, 'h> {
    /// What the faults cost in a new tree that is logged; `None` if they were disturbed.
    fn run(&self, mode: Tracking, beside: bool) -> Result<Option<u64>, String> {
        let faults = Faults::of(mode);
        let bytes = faults.tables * BLOCK_BYTES;
        let tree = self.memory.tree(self.mmu, self.features, tracking::options(mode), bytes)?;
        let log = {
            let reader = self.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
            self.memory.map_pages(&tree, &reader, bytes)?;
            Mutex::new(tree.start_logging_with(&reader, Initial::Clean, mode).or_say("start")?)
        };
        let scan = Scan::default();
        let results = Mutex::new((Err("there were no faults".into()), Ok(())));
        cpus::scope(1 + usize::from(beside), |cpu| {
            if cpu == CpuIndex::BOOT {
                let counted = self.resolve(&tree, faults, beside.then_some(&scan));
                scan.is_over.store(true, Ordering::Release);
                results.lock().0 = counted;
            } else {
                let scanned = self.scan(&mut log.lock(), bytes, cpu, &scan);
                scan.is_begun.store(true, Ordering::Release);
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
    fn resolve(
        &self,
        tree: &LabStage2<'h, TurnsTables>,
        faults: Faults,
        scan: Option<&Scan>,
    ) -> Result<Option<u64>, String> {
        let turns = self.mmu.memory();
        let reader = self.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        partition::prepare(Controls::default());
        let loaded = tree.load(&reader).or_say("load")?;
        // Anew: a CPU that has waited for others was off, and its counter with it.
        let meter = Meter::new()?;
        while scan.is_some_and(|scan| !scan.is_begun.load(Ordering::Acquire)) {
            cpus::yield_now();
        }
        turns.begin(scan.is_some());
        let counted = self.count(&meter, &reader, &loaded, faults);
        turns.end();
        if scan.is_some() && turns.steps() == 0 {
            return Err("the scan made no step beside the faults".into());
        }
        counted
    }

    /// Counts all faults; `None` once they were disturbed.
    fn count(
        &self,
        meter: &Meter,
        reader: &Reader<'_>,
        loaded: &Loaded<'_, 'h, Aarch64, TurnsTables>,
        faults: Faults,
    ) -> Result<Option<u64>, String> {
        let turns = self.mmu.memory();
        let mut sum = 0;
        for fault in 0..faults.count() {
            let syndrome = write_to(faults.address(fault));
            let elsewhere = turns.elsewhere();
            let (outcome, counted) = meter.count(|| loaded.resolve(reader, &Mapped, syndrome));
            expect("a fault's outcome", outcome.or_say("resolve")?, Outcome::Resumed)?;
            let own = counted.instructions.checked_sub(u64::from(turns.elsewhere().wrapping_sub(elsewhere)));
            sum += own.or_say("less was counted than what was counted elsewhere")?;
            if turns.is_disturbed() {
                return Ok(None);
            }
        }
        Ok(Some(sum))
    }

    /// The other one: scans until it is not needed any more.
    fn scan(
        &self,
        log: &mut DirtyLog<'_, 'h, Aarch64, TurnsTables>,
        bytes: u64,
        cpu: CpuIndex,
        scan: &Scan,
    ) -> Result<(), String> {
        let reader = self.mmu.reader(machine::index(cpu)).or_say("reader")?;
        let all = range(RAM, bytes)?;
        let mut bitmap = [0; MOST_WORDS];
        while !scan.is_over.load(Ordering::Acquire) {
            log.scan(&reader, all, &mut bitmap).or_say("scan")?;
            scan.is_begun.store(true, Ordering::Release);
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
