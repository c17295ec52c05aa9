//! The last CPU: moves the guest's memory, logs and copies it, joins blocks, reclaims tables and reports, while the guest runs;
//! freezes it now and then, and at its end, and compares.
//!
//! What it does in a round, and how it stops; [`phases`](super::phases) has the order. Between two rounds it sleeps, offline: no
//! grace period waits for it.

use core::{sync::atomic::AtomicU64, time::Duration};

use smccc::psci;
use stage2::{IpaRange, Reader, error::ArgumentError, fault::Unavailable};
use stage2_platform::{
    cpus::CpuIndex,
    psci::Start,
    timer::{self, Alarm},
};
use stage2_tests_qemu::memory::PAGE_BYTES;

use super::{
    arguments::Arguments,
    guest,
    joiner::{JoinError, Joiner},
    migration::{MigrationError, Migrations, Session},
    mover::{MoveError, Mover},
    phases::Keeping,
    replica::Replica,
    report,
    schedule::Schedule,
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

/// Why housekeeping stopped.
#[derive(Debug, defmt::Format)]
pub(super) enum Trouble {
    PowerOn(#[defmt(Debug2Format)] psci::Error),
    /// There is no frame for the heartbeat.
    Beat(Unavailable),
    Mark(ArgumentError),
    Migration(MigrationError),
    Move(MoveError),
    Join(JoinError),
    Reclaim(ArgumentError),
}

/// What the housekeeper works with.
pub(crate) struct House<'h> {
    pub(crate) migrations: Migrations,
    pub(crate) mover: Mover<'h>,
    pub(super) joiner: Joiner,
    pub(super) schedule: Schedule,
    /// Whether the first log begins with everything clean, and the last one dirty; or the other way.
    pub(super) begins_clean: bool,
    /// How much blocks map: before the first log, and when it was off and blocks were joined again.
    pub(crate) shares: [f32; 2],
    /// The guest's work in a second: before, during and after the first log.
    pub(crate) rates: [f32; 3],
    /// Tables that waited for a grace period when the guest ended.
    pub(crate) waiting: u32,
    beats: u64,
    report_at: Duration,
}

/// Starts the guest at `start` and keeps house until it has ended and all vCPUs have left it.
pub(crate) fn run<'h>(shared: &Shared<'h>, mut reader: Reader<'_>, start: Start, house: &mut House<'h>) {
    // Before the guest's first instruction: afterwards the GIC is the guest's.
    let mut alarm = Alarm::new();
    let power_on = shared.psci.power_on(CpuIndex::BOOT, start).map_err(Trouble::PowerOn);
    if let Err(trouble) =
        power_on.and_then(|()| Keeping { house, shared, reader: &mut reader, alarm: &mut alarm }.keep())
    {
        defmt::error!("housekeeping: {}", trouble);
        shared.violation();
        shared.end(Ending::Stopped);
        shared.psci.shutdown();
    }
}

impl<'h> House<'h> {
    pub(crate) fn new(arguments: &Arguments, replica: &'static [AtomicU64], mover: Mover<'h>) -> Self {
        Self {
            migrations: Migrations::new(Replica::new(replica), arguments.tracking),
            mover,
            joiner: Joiner::default(),
            schedule: Schedule::new(arguments.seconds),
            begins_clean: !arguments.seed.is_multiple_of(2),
            shares: [0.0; 2],
            rates: [0.0; 3],
            waiting: 0,
            beats: 0,
            report_at: Duration::ZERO,
        }
    }
}

/// What the guest's memory goes through in a round.
pub(super) enum Treatment<'a, 's, 'h> {
    /// It is moved, torn and joined.
    Free,
    /// It is logged, and moved so that it can be joined.
    Logged(&'a mut Session<'s, 'h>),
    /// It is joined; what is in pieces is put together for that.
    Joined,
}

impl<'h> House<'h> {
    /// A round, after a pause.
    pub(super) fn round(
        &mut self,
        shared: &Shared<'h>,
        reader: &mut Reader<'_>,
        alarm: &mut Alarm,
        treatment: Treatment<'_, '_, 'h>,
    ) -> Result<(), Trouble> {
        reader.offline(|| alarm.sleep(PERIOD));
        self.beat(shared)?;
        let may_scatter = matches!(treatment, Treatment::Free);
        let is_moved = !matches!(treatment, Treatment::Joined);
        match treatment {
            Treatment::Logged(session) => {
                self.migrations.round(shared, reader, session).map_err(Trouble::Migration)?;
            }
            Treatment::Free | Treatment::Joined => self.joiner.step(shared, reader).map_err(Trouble::Join)?,
        }
        let moved = match is_moved {
            true => self.mover.move_one(shared, reader, may_scatter),
            false => self.mover.mend_one(shared, reader),
        };
        moved.map_err(Trouble::Move)?;
        self.reclaim(shared, reader)?;
        // At once, before chance takes a stale entry out of some TLB.
        self.mover.poll();
        for _ in 0..if is_moved { DROPS } else { 0 } {
            self.mover.drop_one(shared, reader).map_err(Trouble::Move)?;
            self.reclaim(shared, reader)?;
        }
        Ok(())
    }

    /// Tells the host now and then.
    pub(super) fn report(&mut self, phase: &'static str, shared: &Shared<'h>) {
        if timer::now() >= self.report_at {
            self.report_at = timer::now() + PROGRESS;
            report::progress(phase, shared, self);
        }
    }

    /// Stores to guest memory behind the tables' back, and tells the log.
    fn beat(&mut self, shared: &Shared<'h>) -> Result<(), Trouble> {
        let heartbeat = guest::heartbeat(shared.memory.ram());
        self.beats += 1;
        shared.memory.store(heartbeat, self.beats).map_err(Trouble::Beat)?;
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
}
