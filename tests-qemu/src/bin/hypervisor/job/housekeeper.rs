//! The last CPU: moves the guest's memory, logs and copies it, joins blocks, reclaims tables and reports, while the guest runs;
//! freezes it now and then, and at its end, and compares.
//!
//! A run has phases:
//!
//! 1. *before*: nothing is logged; blocks come in on demand, are cut and joined;
//! 2. *logging*: a log is started under the guest, and all of memory is migrated to the replica several times. Nothing is torn to pieces
//!    that could not be joined again;
//! 3. *joining*: the log is off, and blocks are joined again, a few at a time;
//! 4. *after*: as before;
//! 5. *last*: another log, begun the other way, until the guest has ended: its last migration.
//!
//! Between two rounds it sleeps, offline: no grace period waits for it.

use core::{sync::atomic::AtomicU64, time::Duration};

use smccc::psci;
use stage2::{IpaRange, Reader, dirty::Initial, error::ArgumentError, fault::Unavailable};
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
    replica::Replica,
    report,
    schedule::{LAST_FROM, LOGGING_FROM, LOGGING_UNTIL, Schedule},
    share::Share,
    shared::{Ending, Shared},
    throughput::Meter,
};

/// How long the guest is left alone between two rounds.
const PERIOD: Duration = Duration::from_millis(2);
/// Ranges that a round unmaps and leaves where they are, beside the one it moves.
const DROPS: u32 = 4;
/// Migrations while the first log is on.
const MIGRATIONS: u64 = 4;
/// Tables looked at in one go.
const RECLAIM_BUDGET: u32 = 64;
/// How often the host hears of us.
const PROGRESS: Duration = Duration::from_millis(250);

/// Why housekeeping stopped.
#[derive(Debug, defmt::Format)]
enum Trouble {
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
    joiner: Joiner,
    schedule: Schedule,
    /// Whether the first log begins with everything clean, and the last one dirty; or the other way.
    begins_clean: bool,
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

/// The house while the guest is in it.
struct Keeping<'a, 's, 'h, 'r> {
    house: &'a mut House<'h>,
    shared: &'s Shared<'h>,
    reader: &'a mut Reader<'r>,
    alarm: &'a mut Alarm,
}

/// What the guest's memory goes through in a round.
enum Treatment<'a, 's, 'h> {
    /// It is moved, torn and joined.
    Free,
    /// It is logged, and moved so that it can be joined.
    Logged(&'a mut Session<'s, 'h>),
    /// It is joined, and left alone otherwise.
    Joined,
}

impl<'s, 'h> Keeping<'_, 's, 'h, '_> {
    /// All phases, as far as the guest lives; then its last migration.
    fn keep(&mut self) -> Result<(), Trouble> {
        let mut session = match self.phases()? {
            Some(session) => session,
            // It has ended between two logs: then the harvest is all of memory.
            None => self.start(Initial::Dirty)?,
        };
        report::progress("comparing", self.shared, self.house);
        self.shared.psci.shutdown();
        self.finish(&mut session, || self.shared.all_left())?;
        self.house.migrations.stop(self.shared, session);
        Ok(())
    }

    /// The phases, until the guest has ended; the log that is on then.
    fn phases(&mut self) -> Result<Option<Session<'s, 'h>>, Trouble> {
        while self.lives() && !self.house.schedule.has_begun(self.shared) {
            self.round("boot", Treatment::Free)?;
        }
        let meter = Meter::start(self.shared);
        while self.lives() && !self.house.schedule.is_past(LOGGING_FROM) {
            self.round("before", Treatment::Free)?;
        }
        if !self.lives() {
            return Ok(None);
        }
        self.house.rates[0] = meter.rate(self.shared);
        self.house.shares[0] = Share::measure(self.shared, self.reader).by_blocks();

        let (first, other) = match self.house.begins_clean {
            true => (Initial::Clean, Initial::Dirty),
            false => (Initial::Dirty, Initial::Clean),
        };
        let mut session = self.start(first)?;
        let mut meter = Meter::start(self.shared);
        for nth in 1..=MIGRATIONS {
            let until = LOGGING_FROM + (LOGGING_UNTIL - LOGGING_FROM) * nth / MIGRATIONS;
            while self.lives() && !self.house.schedule.is_past(until) {
                self.round("logging", Treatment::Logged(&mut session))?;
            }
            if !self.lives() {
                return Ok(Some(session));
            }
            meter.note_frozen(self.finish(&mut session, || true)?);
        }
        self.house.rates[1] = meter.rate(self.shared);
        self.house.migrations.stop(self.shared, session);

        self.house.joiner = Joiner::default();
        while self.lives() && self.house.joiner.passes == 0 {
            self.round("joining", Treatment::Joined)?;
        }
        if !self.lives() {
            return Ok(None);
        }
        self.house.shares[1] = Share::measure(self.shared, self.reader).by_blocks();
        let meter = Meter::start(self.shared);
        while self.lives() && !self.house.schedule.is_past(LAST_FROM) {
            self.round("after", Treatment::Free)?;
        }
        if !self.lives() {
            return Ok(None);
        }
        self.house.rates[2] = meter.rate(self.shared);

        let mut session = self.start(other)?;
        while self.lives() {
            self.round("last", Treatment::Logged(&mut session))?;
        }
        Ok(Some(session))
    }

    fn lives(&self) -> bool {
        self.shared.ending() == Ending::None
    }

    fn start(&mut self, initial: Initial) -> Result<Session<'s, 'h>, Trouble> {
        self.house.migrations.start(self.shared, self.reader, initial).map_err(Trouble::Migration)
    }

    fn finish(&mut self, session: &mut Session<'s, 'h>, has_ended: impl Fn() -> bool) -> Result<Duration, Trouble> {
        let migrations = &mut self.house.migrations;
        migrations.finish(self.shared, self.reader, session, self.alarm, has_ended).map_err(Trouble::Migration)
    }

    fn round(&mut self, phase: &'static str, treatment: Treatment<'_, 's, 'h>) -> Result<(), Trouble> {
        let (shared, reader) = (self.shared, &mut *self.reader);
        reader.offline(|| self.alarm.sleep(PERIOD));
        self.house.beat(shared)?;
        let may_scatter = matches!(treatment, Treatment::Free);
        let is_moved = !matches!(treatment, Treatment::Joined);
        match treatment {
            Treatment::Logged(session) => {
                self.house.migrations.round(shared, reader, session).map_err(Trouble::Migration)?;
            }
            Treatment::Free | Treatment::Joined => self.house.joiner.step(shared, reader).map_err(Trouble::Join)?,
        }
        if is_moved {
            self.house.mover.move_one(shared, reader, may_scatter).map_err(Trouble::Move)?;
        }
        self.house.reclaim(shared, reader)?;
        // At once, before chance takes a stale entry out of some TLB.
        self.house.mover.poll();
        for _ in 0..if is_moved { DROPS } else { 0 } {
            self.house.mover.drop_one(shared, reader).map_err(Trouble::Move)?;
            self.house.reclaim(shared, reader)?;
        }
        if timer::now() >= self.house.report_at {
            self.house.report_at = timer::now() + PROGRESS;
            report::progress(phase, shared, self.house);
        }
        Ok(())
    }
}

impl<'h> House<'h> {
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
