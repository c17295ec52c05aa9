//! What tables take of memory: per GiB, and of a guest that touches and gives back.

use alloc::string::String;

use stage2::{
    Level, Pa, Reader,
    descriptor::Attributes,
    dirty::{Content, Tracking},
    memory::TableMeta,
};
use stage2_platform::{
    cpus,
    partition::{self, Controls},
};
use stage2_tests_qemu::{
    machine::{self, GuestStage2},
    memory::PAGE_BYTES,
    say::OrSay,
};

use super::{
    lab::{self, BLOCK_BYTES, RAM, SLOTS, range, tear_down},
    report::Memory,
    tracking,
};

const GIB: u64 = 1 << 30;
const NOWHERE: Pa = Pa::new(0x10_0000_0000);
/// As in the cover letter of Linux's PT_RECLAIM.
const TOUCHED: u64 = 50 * GIB;
/// Every so many steps the reclaimer is called, for no more tables than that.
const RECLAIM_EVERY: u64 = 16;
const BUDGET: u32 = 32;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let lab::Memory { tables, guest } = lab::Memory::take()?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, &SLOTS) };
    let mut reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let options = tracking::options(Tracking::WriteProtect);
    let tree = |bytes| Ok::<_, String>(guest.tree(&mmu, &features, options, bytes)?.with_largest_leaf(Level::LEAF));
    let live = || mmu.memory().usage().live;

    let full = tree(GIB)?;
    let root = live();
    map(&full, &reader, 0, GIB)?;
    let tables_per_gib = live() - root;
    tear_down(full, &reader)?;

    let touching = tree(TOUCHED)?;
    drop(touching.load(&reader).or_say("load")?);
    let mut peak = 0;
    for step in 0..TOUCHED / BLOCK_BYTES {
        let offset = step * BLOCK_BYTES;
        // One page stands for all of its table: the table is what is counted.
        map(&touching, &reader, offset, PAGE_BYTES)?;
        drop(touching.unmap(&reader, range(RAM + offset, BLOCK_BYTES)?).or_say("unmap")?);
        peak = peak.max(live());
        reader.quiescent();
        if step % RECLAIM_EVERY == 0 {
            touching.reclaim(&reader, BUDGET).or_say("reclaim")?;
        }
    }
    let left = live();
    tear_down(touching, &reader)?;
    let memory = Memory {
        event: "memory",
        tables_per_gib,
        metadata_bytes: size_of::<TableMeta>() as u64,
        touched_bytes: TOUCHED,
        peak_table_bytes: peak * PAGE_BYTES,
        table_bytes: left * PAGE_BYTES,
    };
    memory.emit()
}

fn map(tree: &GuestStage2<'_>, reader: &Reader<'_>, offset: u64, bytes: u64) -> Result<(), String> {
    let part = range(RAM + offset, bytes)?;
    tree.map(reader, part, NOWHERE, Attributes::device(true), Content::New).or_say("map")
}
