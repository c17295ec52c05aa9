//! What an embedder's calls cost: of one page, of a range of pages and of blocks.
//!
//! Each operation is done as often as there are pages in some tables, so that what comes once a table is in the figures of ranges by as
//! much as it is there. Tables are there already: they are warm.

use alloc::string::String;

use stage2::{
    Ipa, IpaRange, Level, Pa, Reader,
    descriptor::{Attributes, Permissions},
    dirty::{Content, Tracking},
    geometry::Features,
};
use stage2_platform::{
    cpus,
    partition::{self, Controls},
};
use stage2_tests_qemu::{
    machine::{self, GuestStage2, MachineMmu},
    memory::PAGE_BYTES,
    say::{OrSay, expect},
};

use super::{
    lab::{BLOCK_BYTES, GuestMemory, Memory, RAM, RAM_BYTES, SLOTS, range, tear_down},
    meter::{Meter, Sum},
    report::Cost,
    tracking,
};

/// Pages that are done one by one: those of two tables.
const SINGLES: u64 = 2 * BLOCK_BYTES / PAGE_BYTES;
/// The pages of a range.
const PAGES: u64 = RAM_BYTES / PAGE_BYTES;
/// A range of blocks, none of which has frames behind it: nobody accesses them, and a device's need no cache maintenance.
const LARGE_BYTES: u64 = 1 << 30;
const BLOCKS: u64 = LARGE_BYTES / BLOCK_BYTES;
const NOWHERE: Pa = Pa::new(0x10_0000_0000);

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, &SLOTS) };
    let reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let meter = Meter::new()?;
    let bench = Bench { mmu: &mmu, features: &features, memory: &guest, meter: &meter, reader: &reader };
    bench.singles()?;
    bench.ranges()?;
    bench.blocks()?;
    bench.gibibyte()
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h MachineMmu<'h>,
    features: &'a Features,
    memory: &'a GuestMemory,
    meter: &'a Meter,
    reader: &'a Reader<'h>,
}

const RW: Attributes = Attributes::normal(Permissions::RW);

impl<'h> Bench<'_, 'h> {
    /// One page at a time.
    fn singles(&self) -> Result<(), String> {
        let tree = self.tree(Level::LEAF)?;
        self.warm(&tree, SINGLES * PAGE_BYTES)?;
        let frame = |page: IpaRange| self.memory.first_frame().offset(page.start().raw() - RAM);
        self.each("map_page", "pages", |page| {
            tree.map(self.reader, page, frame(page), RW, Content::New).or_say("map")
        })?;
        self.each("query", "pages", |page| {
            let found = tree.query(self.reader, page.start()).or_say("query")?;
            if found.is_some() { Ok(()) } else { Err("nothing is mapped".into()) }
        })?;
        self.each("protect_page", "pages", |page| tree.protect(self.reader, page, Permissions::R).or_say("protect"))?;
        self.each("unmap_page", "by_region", |page| {
            let unmapped = tree.unmap(self.reader, page).or_say("unmap")?;
            expect("leaves", unmapped.peek().leaves, 1)
        })?;
        self.each("map_page", "again", |page| {
            tree.map(self.reader, page, frame(page), RW, Content::New).or_say("map")
        })?;
        self.each("unmap_page", "one_by_one", |page| {
            let mut handed = 0;
            tree.unmap_with(self.reader, page, |_| handed += 1).or_say("unmap")?;
            expect("frames", handed, 1)
        })?;
        tear_down(tree, self.reader)
    }

    /// All of the memory at a time, page by page.
    fn ranges(&self) -> Result<(), String> {
        let tree = self.tree(Level::LEAF)?;
        self.warm(&tree, RAM_BYTES)?;
        let all = range(RAM, RAM_BYTES)?;
        let map = || tree.map(self.reader, all, self.memory.first_frame(), RW, Content::New);
        let (mapped, sum) = self.meter.count(map);
        mapped.or_say("map")?;
        self.report("map_range", "pages", "page", PAGES, &sum)?;
        let (protected, sum) = self.meter.count(|| tree.protect(self.reader, all, Permissions::R));
        protected.or_say("protect")?;
        self.report("protect_range", "pages", "page", PAGES, &sum)?;
        let (unmapped, sum) = self.meter.count(|| tree.unmap(self.reader, all));
        expect("leaves", unmapped.or_say("unmap")?.peek().leaves, PAGES)?;
        self.report("unmap_range", "by_region", "page", PAGES, &sum)?;
        map().or_say("map")?;
        let mut handed = 0;
        let (unmapped, sum) = self.meter.count(|| tree.unmap_with(self.reader, all, |_| handed += 1));
        expect("leaves", unmapped.or_say("unmap")?.leaves, PAGES)?;
        expect("frames", handed, PAGES)?;
        self.report("unmap_range", "one_by_one", "page", PAGES, &sum)?;
        tear_down(tree, self.reader)
    }

    /// Blocks of 2 MiB.
    fn blocks(&self) -> Result<(), String> {
        let tree = self.tree(Level::L2)?;
        let all = range(RAM, LARGE_BYTES)?;
        let device = Attributes::device(true);
        let map = || tree.map(self.reader, all, NOWHERE, device, Content::New);
        map().or_say("map")?;
        // Nobody has copied from the frames.
        drop(tree.unmap(self.reader, all).or_say("unmap")?);
        let (mapped, sum) = self.meter.count(map);
        mapped.or_say("map")?;
        self.report("map_range", "blocks", "block", BLOCKS, &sum)?;
        let (protected, sum) = self.meter.count(|| tree.protect(self.reader, all, Permissions::R));
        protected.or_say("protect")?;
        self.report("protect_range", "blocks", "block", BLOCKS, &sum)?;
        let (unmapped, sum) = self.meter.count(|| tree.unmap(self.reader, all));
        expect("leaves", unmapped.or_say("unmap")?.peek().leaves, BLOCKS)?;
        self.report("unmap_range", "blocks", "block", BLOCKS, &sum)?;
        map().or_say("map")?;
        let (split, sum) = self.meter.count(|| tree.split(self.reader, all));
        expect("blocks", split.or_say("split")?, BLOCKS)?;
        self.report("split_block", "blocks", "block", BLOCKS, &sum)?;
        tear_down(tree, self.reader)
    }

    /// A GiB of pages at a time: what it takes of TLB invalidations.
    fn gibibyte(&self) -> Result<(), String> {
        let tree = self.tree(Level::LEAF)?;
        let all = range(RAM, LARGE_BYTES)?;
        tree.map(self.reader, all, NOWHERE, Attributes::device(true), Content::New).or_say("map")?;
        // So that it has a VMID, under which there is something to invalidate.
        drop(tree.load(self.reader).or_say("load")?);
        let (protected, sum) = self.meter.count(|| tree.write_protect(self.reader, all));
        protected.or_say("write-protect")?;
        self.report("write_protect_1gib", "pages", "operation", 1, &sum)?;
        let (unmapped, sum) = self.meter.count(|| tree.unmap(self.reader, all));
        expect("leaves", unmapped.or_say("unmap")?.peek().leaves, LARGE_BYTES / PAGE_BYTES)?;
        self.report("unmap_1gib", "pages", "operation", 1, &sum)?;
        tear_down(tree, self.reader)
    }

    fn tree(&self, largest: Level) -> Result<GuestStage2<'h>, String> {
        let options = tracking::options(Tracking::WriteProtect);
        Ok(self.memory.tree(self.mmu, self.features, options, RAM_BYTES)?.with_largest_leaf(largest))
    }

    /// Has tables made for the first `bytes` of the memory. They stay, though nothing is in them; and there is a VMID.
    fn warm(&self, tree: &GuestStage2<'h>, bytes: u64) -> Result<(), String> {
        let all = range(RAM, bytes)?;
        tree.map(self.reader, all, self.memory.first_frame(), RW, Content::New).or_say("map")?;
        // Nobody has copied from the frames.
        drop(tree.unmap(self.reader, all).or_say("unmap")?);
        drop(tree.load(self.reader).or_say("load")?);
        Ok(())
    }

    /// Does `operation` to one page after the other.
    fn each(
        &self,
        name: &'static str,
        mode: &'static str,
        mut operation: impl FnMut(IpaRange) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut sum = self.meter.sum();
        for page in 0..SINGLES {
            let page = IpaRange::new(Ipa::new(RAM + page * PAGE_BYTES), PAGE_BYTES).or_say("no such range")?;
            sum.count(|| operation(page))?;
        }
        self.report(name, mode, "page", SINGLES, &sum)
    }

    fn report(
        &self,
        name: &'static str,
        mode: &'static str,
        per: &'static str,
        units: u64,
        sum: &Sum<'_>,
    ) -> Result<(), String> {
        Cost::new(name, mode, per, units, sum).emit()
    }
}
