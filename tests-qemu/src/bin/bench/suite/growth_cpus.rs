//! How costs grow with the number of CPUs: on this one, the others being there and off.
//!
//! Under `-icount` CPUs take turns, so that what they take from one another is not to be seen. What is: how much an operation looks at that
//! there is once a CPU, and how many lines it writes that others may touch.

use alloc::string::String;
use core::cell::Cell;

use stage2::{
    Ipa, Level,
    descriptor::{Attributes, Permissions},
    dirty::{Content, Tracking},
    fault::{Backing, Page, Region, Unavailable},
};
use stage2_platform::{
    cpus,
    partition::{self, Controls},
};
use stage2_tests_qemu::{
    machine,
    memory::PAGE_BYTES,
    say::{OrSay, expect},
};

use super::{
    guest::{Ends, Guest, Trips},
    guest_code::Program,
    lab::{BLOCK_BYTES, Memory, RAM, SLOTS, range, tear_down},
    meter::{Meter, Sum},
    report::Point,
    tracking,
};

const AXIS: &str = "CPUs";
/// Round trips, and grace periods.
const TIMES: u64 = 256;

/// A backing with one frame for all pages.
struct OneFrame(stage2::Pa);

impl Backing for OneFrame {
    fn region(&self, _: Ipa) -> Region {
        Region::Memory(Attributes::normal(Permissions::RW))
    }

    fn page(&self, _: Ipa, _: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: self.0, content: Content::New })
    }

    fn unused(&self, _: Ipa, _: Page) {}
}

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let count = cpus::count();
    let Memory { tables, guest: memory } = Memory::take()?;
    let slots = SLOTS.get(..count).or_say("too many CPUs")?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, slots) };
    let mut reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let meter = Meter::new()?;
    let options = tracking::options(Tracking::WriteProtect);
    let tree = memory.tree(&mmu, &features, options, BLOCK_BYTES)?.with_largest_leaf(Level::LEAF);
    memory.map_code(&tree, &reader)?;
    memory.map_page(&tree, &reader, 0)?;
    let mut guest = Guest::new(&tree, &reader)?;

    let own = guest.own(&mut reader, &meter, RAM)?;
    let mut faults = meter.sum();
    let trips = Trips { program: Program::Store, first: RAM + PAGE_BYTES, stride: PAGE_BYTES, count: TIMES };
    let ends = guest.travel(&mut reader, trips, &OneFrame(memory.first_frame()), &mut faults, |_, _| ())?;
    expect("faults", ends, Ends { resumed: TIMES, ..Ends::default() })?;
    faults.add((TIMES * own).wrapping_neg());
    point("map fault", count, 1, &faults)?;
    drop(guest);

    let mut periods = meter.sum();
    for _ in 0..TIMES {
        let begun = periods.count(|| mmu.quiescence().begin());
        reader.quiescent();
        periods.count(|| mmu.quiescence().poll(begun)).or_say("poll")?;
    }
    point("grace period", count, count as u64, &periods)?;

    let unmap = meter.count(|| tree.unmap(&reader, range(RAM, BLOCK_BYTES)?).or_say("unmap"));
    drop(unmap.0?);
    point("unmap", count, 1, &unmap.1)?;
    let mut reclaim = meter.sum();
    let freed = Cell::new(0);
    for _ in 0..4 {
        reader.quiescent();
        let progress = reclaim.count(|| tree.reclaim(&reader, 32)).or_say("reclaim")?;
        freed.set(freed.get() + progress.freed);
    }
    point("reclaim", count, count as u64, &reclaim)?;
    let (torn_down, teardown) = meter.count(|| tear_down(tree, &reader));
    torn_down?;
    point("teardown", count, count as u64, &teardown)
}

fn point(curve: &'static str, cpus: usize, touched: u64, sum: &Sum<'_>) -> Result<(), String> {
    Point::new(curve, AXIS, cpus as u64, [touched, 0, 0, 0], sum).emit()
}
