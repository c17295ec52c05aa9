//! What comes beside the operations: tables on their way back, teardown, quiescent states and grace periods.

use alloc::{string::String, vec::Vec};

use stage2::{
    Ipa, Level, Pa, Reader,
    cpu::{CpuIndex, CpuSlot},
    descriptor::{Attributes, Permissions},
    dirty::{Content, Tracking},
    geometry::Features,
    quiescence::Quiescence,
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
    meter::Meter,
    report::Cost,
    tracking,
};

/// Tables that are emptied, and taken back by so many at a time.
const EMPTIED: u64 = 256;
const BATCH: u32 = 32;
/// A tree that is torn down is full: so many tables of pages. The frames behind them are nowhere, and a device's.
const FULL_BYTES: u64 = 1 << 30;
const NOWHERE: Pa = Pa::new(0x10_0000_0000);
/// What lies above the tables of pages of that: a table, and the root.
const UPPER: u64 = 2;
/// How often what costs a few instructions is done.
const TIMES: u64 = 1000;
/// The readers of the larger of the two domains.
const MANY: usize = 64;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, &SLOTS) };
    let mut reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let meter = Meter::new()?;
    let bench = Bench { mmu: &mmu, features: &features, memory: &guest, meter: &meter };
    bench.reclaim(&mut reader)?;
    bench.teardown(&reader)?;
    bench.sections(&mut reader)?;
    bench.grace_period::<4>("4_readers")?;
    bench.grace_period::<MANY>("64_readers")
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h MachineMmu<'h>,
    features: &'a Features,
    memory: &'a GuestMemory,
    meter: &'a Meter,
}

impl<'h> Bench<'_, 'h> {
    /// Tables that an unmap has emptied, from there until they are table memory again.
    fn reclaim(&self, reader: &mut Reader<'_>) -> Result<(), String> {
        let tree = self.tree(reader)?;
        for table in 0..EMPTIED {
            let page = range(RAM + table * BLOCK_BYTES, PAGE_BYTES)?;
            tree.map(reader, page, NOWHERE, Attributes::device(true), Content::New).or_say("map")?;
        }
        drop(tree.unmap(reader, range(RAM, EMPTIED * BLOCK_BYTES)?).or_say("unmap")?);
        let mut sum = self.meter.sum();
        let mut freed = 0;
        // Each batch: hints that become idle, an unlinking, a freeing.
        for _ in 0..4 * EMPTIED / u64::from(BATCH) {
            reader.quiescent();
            let progress = sum.count(|| tree.reclaim(reader, BATCH)).or_say("reclaim")?;
            freed += u64::from(progress.freed);
        }
        // The table above them is empty then, too.
        expect("tables freed", freed, EMPTIED + 1)?;
        Cost::new("reclaim_table", "batches_of_32", "table", freed, &sum).emit()?;
        tear_down(tree, reader)
    }

    /// A tree with all of its tables full; then one with a page in each.
    #[expect(clippy::result_large_err, reason = "the tree is given back by value, if it is in use")]
    fn teardown(&self, reader: &Reader<'_>) -> Result<(), String> {
        for (mode, bytes) in [("full", BLOCK_BYTES), ("sparse", PAGE_BYTES)] {
            let tree = self.tree(reader)?;
            for table in (0..FULL_BYTES).step_by(BLOCK_BYTES as usize) {
                let part = range(RAM + table, bytes)?;
                tree.map(reader, part, NOWHERE, Attributes::device(true), Content::New).or_say("map")?;
            }
            let (torn_down, sum) = self.meter.count(|| tree.teardown(reader));
            torn_down.map_err(|_| "teardown")?;
            Cost::new("teardown_table", mode, "table", FULL_BYTES / BLOCK_BYTES + UPPER, &sum).emit()?;
        }
        Ok(())
    }

    /// Announcing a quiescent state; and what a read section takes on top of the looks in it.
    fn sections(&self, reader: &mut Reader<'_>) -> Result<(), String> {
        let tree = self.tree(reader)?;
        let page = range(RAM, PAGE_BYTES)?;
        let frame = self.memory.first_frame();
        tree.map(reader, page, frame, Attributes::normal(Permissions::RW), Content::New).or_say("map")?;
        let mut quiescent = self.meter.sum();
        for _ in 0..TIMES {
            quiescent.count(|| reader.quiescent());
        }
        Cost::new("quiescent", "announced", "operation", TIMES, &quiescent).emit()?;
        let mut looks = self.meter.sum();
        let mut sections = self.meter.sum();
        for _ in 0..TIMES {
            looks.count(|| look(&tree, reader));
            // It lasts from one announcement to the next: those are counted above.
            reader.quiescent();
            sections.count(|| look(&tree, reader));
            reader.quiescent();
        }
        let both = [&sections, &looks];
        let section = Cost::difference("read_section", "on_top_of_its_looks", "operation", TIMES, both);
        section.or_say("a section takes less than nothing")?.emit()?;
        tear_down(tree, reader)
    }

    /// A grace period of so many readers, all of which have announced a quiescent state: begun, and seen to be over.
    fn grace_period<const READERS: usize>(&self, mode: &'static str) -> Result<(), String> {
        let slots = [const { CpuSlot::new() }; READERS];
        let domain = Quiescence::new(&slots);
        // They are CPUs that do nothing else, and so all of this one.
        let claims = (0..READERS).map(|cpu| domain.claim(CpuIndex(cpu as u16)));
        let mut readers = claims.collect::<Result<Vec<_>, _>>().or_say("claim")?;
        let mut begun = self.meter.sum();
        let mut polled = self.meter.sum();
        for _ in 0..TIMES {
            let period = begun.count(|| domain.begin());
            readers.iter_mut().for_each(Reader::quiescent);
            polled.count(|| domain.poll(period)).or_say("poll")?;
        }
        Cost::new("grace_period_begin", mode, "operation", TIMES, &begun).emit()?;
        Cost::new("grace_period_poll", mode, "operation", TIMES, &polled).emit()
    }

    /// An empty tree that has a VMID.
    fn tree(&self, reader: &Reader<'_>) -> Result<GuestStage2<'h>, String> {
        let options = tracking::options(Tracking::WriteProtect);
        let tree = self.memory.tree(self.mmu, self.features, options, RAM_BYTES)?.with_largest_leaf(Level::LEAF);
        drop(tree.load(reader).or_say("load")?);
        Ok(tree)
    }
}

/// A look, which is the same code wherever it is done.
#[inline(never)]
fn look(tree: &GuestStage2<'_>, reader: &Reader<'_>) -> bool {
    tree.query(reader, Ipa::new(RAM)).is_ok()
}
