//! The last CPU: harvests, moves, reclaims and reports while the guest runs; freezes it at its end, and compares.
//!
//! Between two rounds it sleeps, offline: no grace period waits for it.

use core::time::Duration;

use smccc::psci;
use stage2::{
    IpaRange, Reader,
    arch::Aarch64,
    dirty::{DirtyLog, Initial, StartError},
    error::ArgumentError,
    fault::Unavailable,
    stage2::{FreezeError, UnmapError},
};
use stage2_platform::{
    cpus::CpuIndex,
    psci::Start,
    timer::{self, Alarm},
};
use stage2_tests_qemu::{machine::Tables, memory::PAGE_BYTES};

use super::{
    guest,
    mover::Mover,
    replica::{Comparison, HarvestError, Replica},
    report,
    shared::{Ending, Shared},
};

/// How long the guest is left alone between two rounds.
const PERIOD: Duration = Duration::from_millis(2);
/// Ranges that a round unmaps and leaves where they are, beside the one it moves.
const DROPS: u32 = 4;
/// Tables looked at in one go.
const RECLAIM_BUDGET: u32 = 64;
/// How often the host hears of us.
const PROGRESS: Duration = Duration::from_millis(250);
/// How long vCPUs may take to leave a guest that is frozen.
const LEAVE: Duration = Duration::from_secs(10);

/// Why housekeeping stopped.
#[derive(Debug, defmt::Format)]
enum Trouble {
    Logging(StartError),
    PowerOn(#[defmt(Debug2Format)] psci::Error),
    /// There is no frame for the heartbeat.
    Beat(Unavailable),
    Mark(ArgumentError),
    Harvest(HarvestError),
    Unmap(UnmapError),
    Reclaim(ArgumentError),
    Freeze(FreezeError),
    /// vCPUs did not leave the frozen guest.
    Stuck,
    Thaw(ArgumentError),
}

/// What the housekeeper works with.
pub(crate) struct House<'h> {
    pub(crate) replica: Replica,
    pub(crate) mover: Mover<'h>,
    /// What the comparison at the end found; `None` if it did not come that far.
    pub(crate) comparison: Option<Comparison>,
    /// Tables that waited for a grace period when the guest ended.
    pub(crate) waiting: u32,
}

/// Starts the guest at `start` and keeps house until it has ended and all vCPUs have left it.
pub(crate) fn run<'h>(shared: &Shared<'h>, mut reader: Reader<'_>, start: Start, house: &mut House<'h>) {
    // Before the guest's first instruction: afterwards the GIC is the guest's.
    let mut alarm = Alarm::new();
    let mut work = || -> Result<(), Trouble> {
        let mut log = shared.stage2.start_logging(&reader, Initial::Clean).map_err(Trouble::Logging)?;
        shared.psci.power_on(CpuIndex::BOOT, start).map_err(Trouble::PowerOn)?;
        let kept = house.keep(shared, &mut reader, &mut log, &mut alarm);
        kept.and(house.end(shared, &mut reader, &mut log, &mut alarm))
    };
    if let Err(trouble) = work() {
        defmt::error!("housekeeping: {}", trouble);
        shared.violation();
        shared.end(Ending::Stopped);
        shared.psci.shutdown();
    }
}

type Log<'s, 'h> = DirtyLog<'s, 'h, Aarch64, Tables>;

impl<'h> House<'h> {
    /// Round after round, until the guest has ended.
    fn keep(
        &mut self,
        shared: &Shared<'h>,
        reader: &mut Reader<'_>,
        log: &mut Log<'_, 'h>,
        alarm: &mut Alarm,
    ) -> Result<(), Trouble> {
        let mut report_at = timer::now();
        while shared.ending() == Ending::None {
            reader.offline(|| alarm.sleep(PERIOD));
            self.beat(shared)?;
            self.replica.harvest(shared, log, reader).map_err(Trouble::Harvest)?;
            self.mover.move_one(shared, reader).map_err(Trouble::Unmap)?;
            self.reclaim(shared, reader)?;
            // At once, before chance takes a stale entry out of some TLB.
            self.mover.poll();
            for _ in 0..DROPS {
                self.mover.drop_one(shared, reader).map_err(Trouble::Unmap)?;
                self.reclaim(shared, reader)?;
            }
            if timer::now() >= report_at {
                report_at += PROGRESS;
                report::progress("guest", shared, self);
            }
        }
        Ok(())
    }

    /// Stores to guest memory behind the tables' back, and tells the log.
    fn beat(&mut self, shared: &Shared<'h>) -> Result<(), Trouble> {
        let heartbeat = guest::heartbeat(shared.memory.ram());
        shared.memory.store(heartbeat, self.replica.rounds + 1).map_err(Trouble::Beat)?;
        match IpaRange::new(heartbeat, PAGE_BYTES) {
            Some(page) => shared.stage2.mark_dirty(page).map_err(Trouble::Mark),
            None => Ok(()),
        }
    }

    /// Twice, with a quiescent state between: what was just emptied has its idle period then, and is unlinked if no other
    /// CPU held it up.
    fn reclaim(&mut self, shared: &Shared<'h>, reader: &mut Reader<'_>) -> Result<(), Trouble> {
        for _ in 0..2 {
            reader.quiescent();
            let progress = shared.stage2.reclaim(reader, RECLAIM_BUDGET).map_err(Trouble::Reclaim)?;
            self.waiting = progress.waiting;
            if let Some(cpu) = progress.stalled_by {
                defmt::warn!("reclaiming is held up by CPU {}", cpu.0);
            }
        }
        Ok(())
    }

    /// Freezes the guest, waits until nobody is in it, takes the last harvest and compares.
    fn end(
        &mut self,
        shared: &Shared<'h>,
        reader: &mut Reader<'_>,
        log: &mut Log<'_, 'h>,
        alarm: &mut Alarm,
    ) -> Result<(), Trouble> {
        report::progress("comparing", shared, self);
        let frozen = shared.stage2.freeze(reader).map_err(Trouble::Freeze)?;
        shared.psci.shutdown();
        let deadline = timer::now() + LEAVE;
        loop {
            reader.offline(|| alarm.sleep(PERIOD));
            if shared.all_left() && frozen.is_settled().is_ok() {
                break;
            }
            if timer::now() > deadline {
                return Err(Trouble::Stuck);
            }
        }
        self.replica.harvest(shared, log, reader).map_err(Trouble::Harvest)?;
        let comparison = self.replica.compare(&shared.memory);
        if comparison.different != 0 {
            defmt::error!("the replica differs: {}", comparison);
            shared.violation();
        }
        self.comparison = Some(comparison);
        frozen.thaw(reader).map_err(|(_, error)| Trouble::Thaw(error))
    }
}
