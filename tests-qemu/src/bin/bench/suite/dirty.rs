//! What dirty logging costs per page, for each way to track writes.
//!
//! The pages are 64 MiB of 4K pages, as in the figures that are compared with. They are made dirty by a guest's own stores: by faults
//! or by the hardware, as the log would have it. Each harvest has to find what was stored, and each store to fault where the log
//! relies on it; otherwise the figures would be those of something else.

use alloc::string::String;

use stage2::{
    Pa, Reader,
    arch::Aarch64,
    descriptor::Attributes,
    dirty::{Content, DirtyLog, Initial, Tracking},
    geometry::Features,
};
use stage2_platform::{
    cpus,
    partition::{self, Controls},
};
use stage2_tests_qemu::{
    machine::{self, MachineMmu, Tables},
    memory::PAGE_BYTES,
    say::{OrSay, expect},
};

use super::{
    guest::Guest,
    lab::{BLOCK_BYTES, GuestMemory, Memory, RAM, RAM_BYTES, SLOTS, range, tear_down},
    meter::{Meter, Sum},
    report::Cost,
    tracking,
};

const PAGES: u64 = RAM_BYTES / PAGE_BYTES;
/// Of so many pages one is dirty where few are.
const SPARSE: u64 = 64;
/// The words of a bitmap over the pages.
const WORDS: usize = PAGES.div_ceil(u64::BITS as u64) as usize;

/// Of a guest that is mapped by blocks.
const LARGE_BYTES: u64 = 4 << 30;
/// Where the frames of that would be.
const NOWHERE: Pa = Pa::new(0x10_0000_0000);

/// The log of a guest here.
type Log<'s, 'h> = DirtyLog<'s, 'h, Aarch64, Tables>;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, &SLOTS) };
    let mut reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let meter = Meter::new()?;
    for mode in tracking::modes(&features) {
        let bench = Bench { mmu: &mmu, features: &features, memory: &guest, meter: &meter, mode };
        bench.pages(&mut reader)?;
        bench.blocks(&reader)?;
    }
    Ok(())
}

/// Whether a log has seen stores before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Yes,
    No,
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h MachineMmu<'h>,
    features: &'a Features,
    memory: &'a GuestMemory,
    meter: &'a Meter,
    mode: Tracking,
}

impl<'h> Bench<'_, 'h> {
    /// A log from its start to its end, of a guest with pages.
    fn pages(&self, reader: &mut Reader<'_>) -> Result<(), String> {
        let tree = self.memory.tree(self.mmu, self.features, tracking::options(self.mode), RAM_BYTES)?;
        self.memory.map_code(&tree, reader)?;
        self.memory.map_pages(&tree, reader, RAM_BYTES)?;
        let mut guest = Guest::new(&tree, reader)?;

        let (log, sum) = self.meter.count(|| tree.start_logging_with(reader, Initial::Clean, self.mode));
        let mut log = log.or_say("start")?;
        self.report("enable_logging_4k", PAGES, &sum)?;

        let clean = self.harvest(&mut log, reader, 0)?;
        self.report_harvest(["scan_clean", "rearm_clean"], clean)?;
        // Where the first store to a table arms it, that is not what every round costs.
        self.store(&mut guest, reader, SPARSE, First::Yes)?;
        self.harvest(&mut log, reader, PAGES / SPARSE)?;
        self.store(&mut guest, reader, SPARSE, First::No)?;
        let sparse = self.harvest(&mut log, reader, PAGES / SPARSE)?;
        self.report_harvest(["scan_sparse", "rearm_sparse"], sparse)?;
        self.store(&mut guest, reader, 1, First::No)?;
        let dense = self.harvest(&mut log, reader, PAGES)?;
        self.report_harvest(["scan_dense", "rearm_dense"], dense)?;

        log.stop();
        let all = range(RAM, RAM_BYTES)?;
        let (collapsed, sum) = self.meter.count(|| tree.collapse(reader, all));
        expect("tables that were collapsed", collapsed.or_say("collapse")?, RAM_BYTES / BLOCK_BYTES)?;
        self.report("collapse", PAGES, &sum)?;

        drop(guest);
        tear_down(tree, reader)
    }

    /// The start of a log, of a guest with blocks. No frames stand behind them, as nobody accesses them: they are a device's, so that no
    /// cache maintenance is due to them.
    fn blocks(&self, reader: &Reader<'_>) -> Result<(), String> {
        let tree = self.memory.tree(self.mmu, self.features, tracking::options(self.mode), LARGE_BYTES)?;
        let all = range(RAM, LARGE_BYTES)?;
        tree.map(reader, all, NOWHERE, Attributes::device(true), Content::New).or_say("map")?;
        let (log, sum) = self.meter.count(|| tree.start_logging_with(reader, Initial::Clean, self.mode));
        log.or_say("start")?.stop();
        self.report("enable_logging_2m", LARGE_BYTES / PAGE_BYTES, &sum)?;
        tear_down(tree, reader)
    }

    /// Has the guest store to each page of `stride`, the `first` time or again. Only what the log has to see faults.
    fn store(
        &self,
        guest: &mut Guest<'_, 'h>,
        reader: &mut Reader<'_>,
        stride: u64,
        first: First,
    ) -> Result<(), String> {
        let pages = PAGES / stride;
        let faults = guest.store(reader, RAM, stride * PAGE_BYTES, pages)?;
        let expected = match (self.mode, first) {
            (Tracking::WriteProtect, _) => pages,
            (Tracking::Adaptive, First::Yes) => RAM_BYTES / BLOCK_BYTES,
            (Tracking::Adaptive, First::No) | (Tracking::Hardware, _) => 0,
        };
        expect("faults", faults, expected)
    }

    /// A scan and a rearm of what it found, and what they cost.
    fn harvest(&self, log: &mut Log<'_, 'h>, reader: &Reader<'_>, dirty: u64) -> Result<[Sum<'_>; 2], String> {
        let all = range(RAM, RAM_BYTES)?;
        let mut bitmap = [0; WORDS];
        let (found, scan) = self.meter.count(|| log.scan(reader, all, &mut bitmap));
        expect("pages found", found.or_say("scan")?, dirty)?;
        let (rearmed, rearm) = self.meter.count(|| log.rearm(reader, all, &bitmap));
        expect("pages cleaned", rearmed.or_say("rearm")?.cleaned, dirty)?;
        Ok([scan, rearm])
    }

    fn report_harvest(&self, [scan, rearm]: [&'static str; 2], sums: [Sum<'_>; 2]) -> Result<(), String> {
        self.report(scan, PAGES, &sums[0])?;
        self.report(rearm, PAGES, &sums[1])
    }

    fn report(&self, name: &'static str, pages: u64, sum: &Sum<'_>) -> Result<(), String> {
        Cost::new(name, tracking::name(self.mode), "page", pages, sum).emit()
    }
}
