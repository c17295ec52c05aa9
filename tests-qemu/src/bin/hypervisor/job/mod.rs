//! From the arguments to the report.
//!
//! [`run`] cuts up RAM, builds the tree and gives the CPUs their parts: all but the last a vCPU ([`vcpu`]), the last one
//! housekeeping ([`housekeeper`]). When the guest has ended it tears everything down and counts what came back.

mod arguments;
mod backing;
mod builtin;
mod devices;
mod guest;
mod housekeeper;
mod joiner;
mod migration;
mod mover;
mod phases;
mod replica;
mod report;
mod schedule;
mod share;
mod shared;
mod throughput;
mod vcpu;

use spin::Mutex;
use stage2::{
    Level, Reader,
    cpu::CpuSlot,
    dirty::{DirtyBitmap, Tracking},
    geometry::{Geometry, GeometryError, GeometryOptions, HardwareUpdate},
    quiescence::ClaimError,
    stage2::{CreateError, InUse},
};
use stage2_platform::{
    ExitCode,
    cpus::{self, MAX_CPUS},
    psci::Start,
    ram::{self, Region},
};
use stage2_tests_qemu::{
    frames::{Frames, RUN_BYTES},
    machine::{self, GuestStage2, MachineMmu},
    memory::{self, PAGE_BYTES},
};

use arguments::{Arguments, BadArguments};
use backing::{GuestMemory, Words};
use devices::Devices;
use guest::{Guest, GuestError};
use housekeeper::House;
use mover::{MoveError, Mover};
use report::Report;
use shared::Shared;

/// For tables: 2 MiB of them map 1 GiB with pages. The rest is for those that wait.
const TABLE_BYTES: u64 = 8 << 20;
/// The guest's IPA space: enough for all of QEMU's devices and 4 GiB of RAM.
const IPA_BITS: u8 = 36;

static SLOTS: [CpuSlot; MAX_CPUS] = machine::slots();

/// Why the job could not be done.
#[derive(Debug, defmt::Format)]
enum Failure {
    Arguments(BadArguments),
    /// The machine has too little RAM for the guest, its replica and the tables.
    NoMemory,
    Guest(GuestError),
    Geometry(GeometryError),
    Create(CreateError),
    Reader(ClaimError),
}

/// The main function.
pub(crate) fn run() -> ExitCode {
    match job() {
        Ok(true) => ExitCode::Good,
        Ok(false) => ExitCode::Violation,
        Err(Failure::Arguments(error)) => {
            defmt::error!("{}", error);
            ExitCode::BadArguments
        }
        Err(failure) => {
            defmt::error!("{}", failure);
            ExitCode::Violation
        }
    }
}

/// Whether the run was good.
fn job() -> Result<bool, Failure> {
    let arguments = Arguments::read().map_err(Failure::Arguments)?;
    let features = machine::features();
    defmt::info!("{}", features);
    let hardware = features.hardware_update();
    if let Some(tracking @ (Tracking::Hardware | Tracking::Adaptive)) = arguments.tracking
        && hardware != HardwareUpdate::AccessFlagAndDirty
    {
        return Err(Failure::Arguments(BadArguments::NoHardwareState(tracking)));
    }

    let mut free = ram::take_free().ok_or(Failure::NoMemory)?;
    let guest = Guest::new(&arguments, &mut free).map_err(Failure::Guest)?;
    let pages = arguments.memory / PAGE_BYTES;
    let memory = Memory::cut(free, pages).ok_or(Failure::NoMemory)?;
    let frames = Frames::new(memory.frames, arguments.seed).ok_or(Failure::NoMemory)?;
    if (frames.total() as u64) < pages + mover::RETIRED as u64 {
        return Err(Failure::NoMemory);
    }

    // SAFETY: called this once; `run_guest` and the teardown claim the reader of the CPU they run on.
    let mmu = unsafe { machine::mmu(machine::tables(memory.tables), features, &SLOTS) };
    let options = GeometryOptions::default().with_hardware_update(hardware);
    let geometry = Geometry::new(IPA_BITS, &features, options).map_err(Failure::Geometry)?;
    let log = DirtyBitmap { base: guest.ram.start(), words: memory::log_words(memory.log) };
    let stage2 = GuestStage2::new(&mmu, geometry, Some(log)).map_err(Failure::Create)?;
    let stage2 = if arguments.blocks { stage2.with_largest_leaf(Level::L2) } else { stage2 };
    let words = Words { pages: memory::words(memory.pages), stretches: memory::words(memory.stretches) };
    let backing = GuestMemory::new(guest.ram, &frames, words, &guest.contents, arguments.blocks);
    let shared = Shared::new(stage2, backing, Devices::new(&arguments), arguments.vcpus);
    let mover = Mover::new(&frames, arguments.seed);
    let mut house = House::new(&arguments, memory::words(memory.replica), mover);

    run_guest(&mmu, &shared, guest.start, &mut house);
    let mut report = Report::new(&arguments, &shared, &house);
    let reader = mmu.reader(machine::index(cpus::current())).map_err(Failure::Reader)?;
    if let Err(failure) = tear_down(shared, reader, &mut house.mover, &frames) {
        defmt::error!("teardown: {}", failure);
        report.add_violation();
    }
    let tables = mmu.memory().usage().live;
    let missing = (frames.total() - frames.free()) as u64;
    if tables + missing != 0 {
        defmt::error!("{=u64} tables and {=u64} frames did not come back", tables, missing);
        report.add_leaked(tables + missing);
    }
    report.emit();
    Ok(report.is_good())
}

/// Gives each CPU its part, until all are done with it.
fn run_guest<'h>(mmu: &'h MachineMmu<'h>, shared: &Shared<'h>, start: Start, house: &mut House<'h>) {
    let house = Mutex::new(house);
    let housekeeper = shared.psci.vcpus();
    cpus::scope(housekeeper + 1, |cpu| match mmu.reader(machine::index(cpu)) {
        Ok(reader) if cpu.get() == housekeeper => housekeeper::run(shared, reader, start, &mut house.lock()),
        Ok(reader) => vcpu::run(shared, reader),
        Err(error) => {
            defmt::error!("{}: {}", cpu, error);
            shared.violation();
        }
    });
}

/// Why something is left of the guest.
#[derive(Debug, defmt::Format)]
enum TeardownFailure {
    Unmap(MoveError),
    InUse(InUse),
}

/// Takes all memory from a guest that no CPU runs any more, and its tables.
fn tear_down<'h>(
    shared: Shared<'h>,
    mut reader: Reader<'_>,
    mover: &mut Mover<'h>,
    frames: &Frames,
) -> Result<(), TeardownFailure> {
    mover.remove_all(&shared, &mut reader).map_err(TeardownFailure::Unmap)?;
    shared.memory.take_all(|frame| frames.give_back(frame));
    shared.stage2.teardown(&reader).map_err(|(_, in_use)| TeardownFailure::InUse(in_use))
}

/// RAM, cut up.
struct Memory {
    tables: Region,
    /// The side log: a bit a page.
    log: Region,
    /// The backing's word for each page.
    pages: Region,
    /// The backing's word for each stretch.
    stretches: Region,
    replica: Region,
    /// What is left.
    frames: Region,
}

impl Memory {
    fn cut(mut free: Region, pages: u64) -> Option<Self> {
        let mut take = |bytes: u64| free.take(bytes.next_multiple_of(PAGE_BYTES), PAGE_BYTES);
        Some(Self {
            tables: take(TABLE_BYTES)?,
            log: take(pages.div_ceil(8))?,
            pages: take(pages * size_of::<u64>() as u64)?,
            stretches: take(pages * PAGE_BYTES / RUN_BYTES * size_of::<u64>() as u64)?,
            replica: take(pages * PAGE_BYTES)?,
            frames: free,
        })
    }
}
