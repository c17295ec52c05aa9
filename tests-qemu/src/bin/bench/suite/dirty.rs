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
    dirty::{Content, DirtyLog},
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
    meter::Meter,
    report::Cost,
    tracking::Mode,
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
    for mode in Mode::all(&features) {
        let bench = Bench { mmu: &mmu, features: &features, memory: &guest, meter: &meter, mode };
        bench.pages(&mut reader)?;
        bench.blocks(&reader)?;
    }
    Ok(())
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h MachineMmu<'h>,
    features: &'a Features,
    memory: &'a GuestMemory,
    meter: &'a Meter,
    mode: Mode,
}

impl<'h> Bench<'_, 'h> {
    /// A log from its start to its end, of a guest with pages.
    fn pages(&self, reader: &mut Reader<'_>) -> Result<(), String> {
        let tree = self.memory.tree(self.mmu, self.features, self.mode.options(), RAM_BYTES)?;
        self.memory.map_code(&tree, reader)?;
        self.memory.map_pages(&tree, reader, RAM_BYTES)?;
        let mut guest = Guest::new(&tree, reader)?;

        let (log, instructions) = self.meter.count(|| self.mode.start(&tree, reader));
        let mut log = log?;
        self.report("enable_logging_4k", PAGES, instructions)?;

        self.harvest(&mut log, reader, ["scan_clean", "rearm_clean"], 0)?;
        self.store(&mut guest, reader, SPARSE)?;
        self.harvest(&mut log, reader, ["scan_sparse", "rearm_sparse"], PAGES / SPARSE)?;
        self.store(&mut guest, reader, 1)?;
        self.harvest(&mut log, reader, ["scan_dense", "rearm_dense"], PAGES)?;

        log.stop();
        let all = range(RAM, RAM_BYTES)?;
        let (collapsed, instructions) = self.meter.count(|| tree.collapse(reader, all));
        expect("tables that were collapsed", collapsed.or_say("collapse")?, RAM_BYTES / BLOCK_BYTES)?;
        self.report("collapse", PAGES, instructions)?;

        drop(guest);
        tear_down(tree, reader)
    }

    /// The start of a log, of a guest with blocks. No frames stand behind them, as nobody accesses them: they are a device's, so that no
    /// cache maintenance is due to them.
    fn blocks(&self, reader: &Reader<'_>) -> Result<(), String> {
        let tree = self.memory.tree(self.mmu, self.features, self.mode.options(), LARGE_BYTES)?;
        let all = range(RAM, LARGE_BYTES)?;
        tree.map(reader, all, NOWHERE, Attributes::device(true), Content::New).or_say("map")?;
        let (log, instructions) = self.meter.count(|| self.mode.start(&tree, reader));
        log?.stop();
        self.report("enable_logging_2m", LARGE_BYTES / PAGE_BYTES, instructions)?;
        tear_down(tree, reader)
    }

    /// Has the guest store to each page of `stride`. Nothing faults where the hardware tracks.
    fn store(&self, guest: &mut Guest<'_, 'h>, reader: &mut Reader<'_>, stride: u64) -> Result<(), String> {
        let pages = PAGES / stride;
        let faults = guest.store(reader, RAM, stride * PAGE_BYTES, pages)?;
        expect("faults", faults, if self.mode == Mode::WriteProtect { pages } else { 0 })
    }

    /// A scan and a rearm of what it found.
    fn harvest(
        &self,
        log: &mut Log<'_, 'h>,
        reader: &Reader<'_>,
        [scan, rearm]: [&'static str; 2],
        dirty: u64,
    ) -> Result<(), String> {
        let all = range(RAM, RAM_BYTES)?;
        let mut bitmap = [0; WORDS];
        let (found, instructions) = self.meter.count(|| log.scan(reader, all, &mut bitmap));
        expect("pages found", found.or_say("scan")?, dirty)?;
        self.report(scan, PAGES, instructions)?;
        let (rearmed, instructions) = self.meter.count(|| log.rearm(reader, all, &bitmap));
        expect("pages cleaned", rearmed.or_say("rearm")?.cleaned, dirty)?;
        self.report(rearm, PAGES, instructions)
    }

    fn report(&self, name: &'static str, pages: u64, instructions: u32) -> Result<(), String> {
        Cost::new(name, self.mode.name(), "page", pages, u64::from(instructions)).emit()
    }
}
