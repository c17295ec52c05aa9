//! VMIDs: what it takes to load a tree that has one, one that is to be given one, and one for which all have to be given out anew.
//!
//! Of the 8 bits that every CPU has: all of them can be in use here.

use alloc::{string::String, vec::Vec};

use stage2::{Level, Reader, dirty::Tracking, geometry::Features};
use stage2_platform::{
    cpus,
    partition::{self, Controls},
};
use stage2_tests_qemu::{
    machine::{self, GuestStage2, MachineMmu},
    say::{OrSay, expect},
};

use super::{
    lab::{BLOCK_BYTES, GuestMemory, Memory, SLOTS, tear_down},
    meter::{Meter, Sum},
    report::Cost,
    tracking,
};

/// The VMIDs of 8 bits but for 0.
const VMIDS: usize = 255;
/// How often a tree is loaded that has one.
const TIMES: u64 = 100;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    // As if there were a CPU that has no more.
    let features = machine::features().without_vmid16();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, &SLOTS) };
    let reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let meter = Meter::new()?;
    let bench = Bench { mmu: &mmu, features: &features, memory: &guest, reader: &reader };

    let mut trees = (0..=VMIDS).map(|_| bench.tree()).collect::<Result<Vec<_>, String>>()?;
    let last = trees.pop().or_say("no tree")?;
    let (first, others) = trees.split_first().or_say("no tree")?;
    // The first to ask begins the first generation.
    drop(first.load(&reader).or_say("load")?);
    let mut again = meter.sum();
    for _ in 0..TIMES {
        bench.load(first, &mut again)?;
    }
    Cost::new("load_tree", "has_a_vmid", "operation", TIMES, &again).emit()?;
    let mut given = meter.sum();
    for tree in others {
        bench.load(tree, &mut given)?;
    }
    Cost::new("vmid_allocation", "8_bit", "operation", others.len() as u64, &given).emit()?;
    expect("rollovers", mmu.vmids().rollovers(), 0)?;
    let mut rolled = meter.sum();
    bench.load(&last, &mut rolled)?;
    expect("rollovers", mmu.vmids().rollovers(), 1)?;
    Cost::new("vmid_rollover", "8_bit", "operation", 1, &rolled).emit()?;
    tear_down(last, &reader)?;
    trees.into_iter().try_for_each(|tree| tear_down(tree, &reader))
}

struct Bench<'a, 'h> {
    mmu: &'h MachineMmu<'h>,
    features: &'a Features,
    memory: &'a GuestMemory,
    reader: &'a Reader<'h>,
}

impl<'h> Bench<'_, 'h> {
    fn tree(&self) -> Result<GuestStage2<'h>, String> {
        let options = tracking::options(Tracking::WriteProtect);
        Ok(self.memory.tree(self.mmu, self.features, options, BLOCK_BYTES)?.with_largest_leaf(Level::LEAF))
    }

    /// Counts the loading; it is unloaded again.
    fn load(&self, tree: &GuestStage2<'h>, sum: &mut Sum<'_>) -> Result<(), String> {
        let loaded = sum.count(|| tree.load(self.reader)).or_say("load")?;
        drop(loaded);
        Ok(())
    }
}
