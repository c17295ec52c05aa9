//! How costs grow: with the guest's size, with its live tables, with what is mapped in them.
//!
//! One thing grows along each axis and the rest stays. What an operation has to touch at each point is said along with it: tables of pages,
//! descriptors of the tables above them, descriptors of the tables of pages, pages. The frames are nowhere, and a device's: nobody
//! accesses them.

use alloc::string::String;

use stage2::{
    Level, Pa, Reader,
    descriptor::Attributes,
    dirty::{Content, Initial, Tracking},
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
    lab::{BLOCK_BYTES, GuestMemory, MOST_BYTES, Memory, RAM, SLOTS, range, tear_down},
    meter::{Meter, Sum},
    report::{Point, Touched},
    tracking,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const NOWHERE: Pa = Pa::new(0x10_0000_0000);
/// The pages of a table.
const FULL: u64 = BLOCK_BYTES / PAGE_BYTES;
/// The tables of a guest that grows in size: where it is large they are far apart.
const SPREAD: u64 = 64;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, &SLOTS) };
    let reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let meter = Meter::new()?;
    let bitmap = guest.take_bitmap()?;
    let mut bench = Bench { mmu: &mmu, features: &features, memory: &guest, meter: &meter, reader: &reader, bitmap };
    for bytes in [MIB, 16 * MIB, 256 * MIB, 4 * GIB, MOST_BYTES] {
        let tables = SPREAD.min(bytes.div_ceil(BLOCK_BYTES));
        bench.scene(Scene { axis: "guest bytes, 64 tables at most", at: bytes, bytes, tables, pages: 1 })?;
    }
    for tables in [1, 8, 64, GIB / BLOCK_BYTES] {
        bench.scene(Scene { axis: "live tables of a GiB", at: tables, bytes: GIB, tables, pages: 1 })?;
    }
    for pages in [1, 8, 64, FULL] {
        bench.scene(Scene {
            axis: "pages mapped in each of 64 tables",
            at: pages,
            bytes: SPREAD * BLOCK_BYTES,
            tables: SPREAD,
            pages,
        })?;
    }
    Ok(())
}

/// A guest.
#[derive(Clone, Copy)]
struct Scene {
    axis: &'static str,
    at: u64,
    /// How much memory it might have.
    bytes: u64,
    /// Tables of pages in that, as far apart as may be.
    tables: u64,
    /// The pages that are mapped in each.
    pages: u64,
}

impl Scene {
    /// The bytes from one table's first page to the next one's.
    fn stride(&self) -> u64 {
        (self.bytes / self.tables).max(BLOCK_BYTES)
    }

    /// The descriptors above the tables of pages that are in live tables and in the memory's range.
    fn upper(&self) -> u64 {
        let gibs = self.bytes.div_ceil(GIB);
        gibs + gibs.min(self.tables) * self.bytes.min(GIB).div_ceil(BLOCK_BYTES)
    }

    /// The descriptors of the tables of pages that are in the memory's range.
    fn lower(&self) -> u64 {
        self.tables * FULL.min(self.bytes / PAGE_BYTES)
    }
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h MachineMmu<'h>,
    features: &'a Features,
    memory: &'a GuestMemory,
    meter: &'a Meter,
    reader: &'a Reader<'h>,
    bitmap: &'static mut [u64],
}

impl<'h> Bench<'_, 'h> {
    fn scene(&mut self, scene: Scene) -> Result<(), String> {
        let all = range(RAM, scene.bytes)?;
        let mapped = scene.tables * scene.pages;
        let (tables, upper, lower) = (scene.tables, scene.upper(), scene.lower());
        let tree = self.tree(scene)?;
        self.map(&tree, scene)?;
        let (log, sum) = self.meter.count(|| tree.start_logging(self.reader, Initial::Clean));
        let mut log = log.or_say("start")?;
        point("start logging", scene, [tables, upper, lower, mapped], &sum)?;
        let (found, sum) = self.meter.count(|| log.scan(self.reader, all, self.bitmap));
        expect("pages found", found.or_say("scan")?, 0)?;
        point("scan, clean", scene, [tables, upper, 0, 0], &sum)?;
        log.stop();
        tear_down(tree, self.reader)?;

        let tree = self.tree(scene)?;
        let mut log = tree.start_logging(self.reader, Initial::Clean).or_say("start")?;
        // What is mapped now is dirty.
        self.map(&tree, scene)?;
        let (found, sum) = self.meter.count(|| log.scan(self.reader, all, self.bitmap));
        expect("pages found", found.or_say("scan")?, mapped)?;
        point("scan, dirty", scene, [tables, upper, 0, mapped], &sum)?;
        self.bitmap.fill(0);
        log.stop();
        let (unmapped, sum) = self.meter.count(|| tree.unmap(self.reader, all));
        expect("leaves", unmapped.or_say("unmap")?.peek().leaves, mapped)?;
        point("unmap", scene, [tables, upper, lower, mapped], &sum)?;
        tear_down(tree, self.reader)?;

        let tree = self.tree(scene)?;
        self.map(&tree, scene)?;
        // Of the tables above, all descriptors: whole tables are given back.
        let live = self.mmu.memory().usage().live;
        let (torn_down, sum) = self.meter.count(|| tear_down(tree, self.reader));
        torn_down?;
        point("teardown", scene, [live, (live - tables) * FULL, 0, 0], &sum)
    }

    /// An empty tree. It has a VMID.
    fn tree(&self, scene: Scene) -> Result<GuestStage2<'h>, String> {
        let options = tracking::options(Tracking::WriteProtect);
        let tree = self.memory.tree(self.mmu, self.features, options, scene.bytes)?.with_largest_leaf(Level::LEAF);
        drop(tree.load(self.reader).or_say("load")?);
        Ok(tree)
    }

    /// Maps the guest's pages.
    fn map(&self, tree: &GuestStage2<'h>, scene: Scene) -> Result<(), String> {
        for table in 0..scene.tables {
            let pages = range(RAM + table * scene.stride(), scene.pages * PAGE_BYTES)?;
            tree.map(self.reader, pages, NOWHERE, Attributes::device(true), Content::New).or_say("map")?;
        }
        Ok(())
    }
}

fn point(curve: &'static str, scene: Scene, touched: Touched, sum: &Sum<'_>) -> Result<(), String> {
    Point::new(curve, scene.axis, scene.at, touched, sum).emit()
}
