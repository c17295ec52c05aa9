//! Round trips from a guest into the hypervisor and back: what the guest itself counts between the instruction before and the one after.
//!
//! All of it is in there: the vector, the guest's registers kept and put back, what the library does, and what an embedder adds to it that
//! has every page at hand. The guest's own instructions are taken off: round trips that do not trap say how many there are.

use alloc::{format, string::String};

use stage2::{
    Ipa, Level, Pa, Reader,
    descriptor::{Attributes, Permissions},
    dirty::{Content, Initial, Tracking},
    fault::{Backing, Page, Region, Unavailable},
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
    guest::{Ends, Guest, Mapped, Trips},
    guest_code::Program,
    lab::{BLOCK_BYTES, GuestMemory, Memory, RAM, SLOTS, range, tear_down},
    meter::{Meter, Sum},
    report::Cost,
    tracking,
};

/// Tables of pages in a tree here.
const TABLES: u64 = 4;
const BYTES: u64 = TABLES * BLOCK_BYTES;
/// The pages of a table, but for the first: that one is mapped from the start, so that there is a table.
const REST: u64 = BLOCK_BYTES / PAGE_BYTES - 1;
/// An emulated device.
const DEVICE: u64 = 0x4000_0000;
/// Round trips that need no page.
const CALLS: u64 = 1000;

/// Measures this group.
pub(crate) fn measure() -> Result<(), String> {
    let features = machine::features();
    let Memory { tables, guest } = Memory::take()?;
    // SAFETY: called this once; the reader below is this CPU's.
    let mmu = unsafe { machine::mmu(tables, features, &SLOTS) };
    let mut reader = mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    let meter = Meter::new()?;
    let mut bench = Bench { mmu: &mmu, features: &features, memory: &guest, meter: &meter, own: 0 };
    bench.exits(&mut reader)?;
    for (mode, largest) in [("pages", Level::LEAF), ("blocks", Level::L2)] {
        bench.map_faults(&mut reader, mode, largest)?;
    }
    for mode in tracking::modes(&features).filter(|&mode| mode != Tracking::Hardware) {
        bench.write_protect_faults(&mut reader, mode)?;
    }
    bench.denied_faults(&mut reader)
}

/// What is measured with.
struct Bench<'a, 'h> {
    mmu: &'h MachineMmu<'h>,
    features: &'a Features,
    memory: &'a GuestMemory,
    meter: &'a Meter,
    /// A guest's own instructions in a round trip.
    own: u64,
}

/// A backing whose pages are in hand: the frames from `first` on. There is an emulated device.
struct InHand {
    first: Pa,
}

impl Backing for InHand {
    fn region(&self, ipa: Ipa) -> Region {
        match ipa.raw() {
            RAM.. => Region::Memory(Attributes::normal(Permissions::RW)),
            _ => Region::Emulated,
        }
    }

    fn page(&self, ipa: Ipa, _: bool) -> Result<Page, Unavailable> {
        Ok(Page { frame: self.first.offset(ipa.raw() - RAM), content: Content::New })
    }

    fn unused(&self, _: Ipa, _: Page) {}
}

impl<'h> Bench<'_, 'h> {
    /// What needs no page; and first of all what is a guest's own.
    fn exits(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        let tree = self.tree(reader, tracking::options(Tracking::WriteProtect), Level::LEAF)?;
        self.memory.map_pages(&tree, reader, PAGE_BYTES)?;
        let mut guest = Guest::new(&tree, reader)?;
        let trips = |program, first| Trips { program, first, stride: 0, count: CALLS };
        self.own = guest.own(reader, self.meter, RAM)?;
        let mut sum = self.meter.sum();
        let ends = guest.travel(reader, trips(Program::Call, RAM), &Mapped, &mut sum, |_, _| ())?;
        expect("calls", ends, Ends { calls: CALLS, ..Ends::default() })?;
        self.report("null_exit", "pages", CALLS, sum)?;

        for (mode, program) in [("load", Program::Load), ("store", Program::Store)] {
            let mut sum = self.meter.sum();
            let ends = guest.travel(reader, trips(program, DEVICE), &self.in_hand(), &mut sum, |_, _| ())?;
            expect("accesses", ends, Ends { emulated: CALLS, ..Ends::default() })?;
            self.report("fault_mmio", mode, CALLS, sum)?;
        }
        drop(guest);
        tear_down(tree, reader)
    }

    /// Pages that are missing and in hand, where the table is there already; and those that another CPU has just mapped.
    fn map_faults(&self, reader: &mut Reader<'_>, mode: &'static str, largest: Level) -> Result<(), String> {
        let tree = self.tree(reader, tracking::options(Tracking::WriteProtect), largest)?;
        for table in 0..TABLES {
            self.memory.map_page(&tree, reader, table * BLOCK_BYTES)?;
        }
        let mut guest = Guest::new(&tree, reader)?;
        let of_table = |table| RAM + table * BLOCK_BYTES + PAGE_BYTES;
        let trips = |first| Trips { program: Program::Store, first, stride: PAGE_BYTES, count: REST };
        let all = Ends { resumed: REST, ..Ends::default() };
        let mut sum = self.meter.sum();
        for table in 0..TABLES - 1 {
            let ends = guest.travel(reader, trips(of_table(table)), &self.in_hand(), &mut sum, |_, _| ())?;
            expect("faults", ends, all)?;
        }
        self.report("fault_map", mode, (TABLES - 1) * REST, sum)?;

        let mut sum = self.meter.sum();
        let next = core::cell::Cell::new(of_table(TABLES - 1) - RAM);
        let other_cpu = |sum: &mut Sum<'_>, reader: &Reader<'_>| {
            sum.leave_out(|| {
                // A fault that is not spurious then ends the measurement: the backing has no page.
                let _ = self.memory.map_page(&tree, reader, next.get());
                next.set(next.get() + PAGE_BYTES);
            });
        };
        let ends = guest.travel(reader, trips(of_table(TABLES - 1)), &Mapped, &mut sum, other_cpu)?;
        expect("faults", ends, all)?;
        self.report("fault_spurious", mode, REST, sum)?;
        drop(guest);
        tear_down(tree, reader)
    }

    /// The first store to each page under a log; or to each table, where that arms it.
    fn write_protect_faults(&self, reader: &mut Reader<'_>, mode: Tracking) -> Result<(), String> {
        let tree = self.tree(reader, tracking::options(mode), Level::LEAF)?;
        self.memory.map_pages(&tree, reader, BYTES)?;
        let log = tree.start_logging_with(reader, Initial::Clean, mode).or_say("start")?;
        let mut guest = Guest::new(&tree, reader)?;
        let (stride, count) = match mode {
            Tracking::Adaptive => (BLOCK_BYTES, TABLES),
            Tracking::WriteProtect | Tracking::Hardware => (PAGE_BYTES, BYTES / PAGE_BYTES),
        };
        let mut sum = self.meter.sum();
        let trips = Trips { program: Program::Store, first: RAM, stride, count };
        let ends = guest.travel(reader, trips, &self.in_hand(), &mut sum, |_, _| ())?;
        expect("faults", ends, Ends { resumed: count, ..Ends::default() })?;
        self.report("fault_write_protect", tracking::name(mode), count, sum)?;
        drop(guest);
        log.stop();
        tear_down(tree, reader)
    }

    /// Stores to pages that are read-only: the guest gets an abort, and the round trip ends in its vector.
    fn denied_faults(&self, reader: &mut Reader<'_>) -> Result<(), String> {
        let tree = self.tree(reader, tracking::options(Tracking::WriteProtect), Level::LEAF)?;
        self.memory.map_pages(&tree, reader, BLOCK_BYTES)?;
        tree.protect(reader, range(RAM, BLOCK_BYTES)?, Permissions::R).or_say("protect")?;
        let mut guest = Guest::new(&tree, reader)?;
        let mut sum = self.meter.sum();
        let trips = Trips { program: Program::Store, first: RAM, stride: PAGE_BYTES, count: REST };
        let ends = guest.travel(reader, trips, &self.in_hand(), &mut sum, |_, _| ())?;
        expect("faults", ends, Ends { reflected: REST, ..Ends::default() })?;
        self.report("fault_permission", "denied", REST, sum)?;
        drop(guest);
        tear_down(tree, reader)
    }

    fn tree(
        &self,
        reader: &Reader<'_>,
        options: stage2::geometry::GeometryOptions,
        largest: Level,
    ) -> Result<GuestStage2<'h>, String> {
        let tree = self.memory.tree(self.mmu, self.features, options, BYTES)?.with_largest_leaf(largest);
        self.memory.map_code(&tree, reader)?;
        Ok(tree)
    }

    fn in_hand(&self) -> InHand {
        InHand { first: self.memory.first_frame() }
    }

    fn report(&self, name: &'static str, mode: &'static str, trips: u64, mut sum: Sum<'_>) -> Result<(), String> {
        // An access that is emulated is not executed by the guest.
        let own = trips * if name == "fault_mmio" { self.own - 1 } else { self.own };
        let rest = sum.instructions.checked_sub(own).ok_or_else(|| format!("{name}: less than a guest's own"))?;
        sum.instructions = rest;
        Cost::new(name, mode, "operation", trips, &sum).emit()
    }
}
