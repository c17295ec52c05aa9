//! The phases of a run, one after the other:
//!
//! 1. *before*: nothing is logged; blocks come in on demand, are cut and joined;
//! 2. *logging*: a log is started under the guest, and all of memory is migrated to the replica several times. Nothing is torn to
//!    pieces that could not be joined again;
//! 3. *joining*: the log is off; what is in pieces is put together, and blocks are joined again, a few at a time;
//! 4. *after*: as before;
//! 5. *last*: another log, begun the other way, until the guest has ended: its last migration.

use core::time::Duration;

use stage2::{Reader, dirty::Initial};
use stage2_platform::timer::Alarm;

use super::{
    housekeeper::{House, Treatment, Trouble},
    joiner::Joiner,
    migration::Session,
    report,
    schedule::{LAST_FROM, LOGGING_FROM, LOGGING_UNTIL},
    share::Share,
    shared::{Ending, Shared},
    throughput::Meter,
};

/// Migrations while the first log is on.
const MIGRATIONS: u64 = 4;

/// The house while the guest is in it.
pub(super) struct Keeping<'a, 's, 'h, 'r> {
    pub(super) house: &'a mut House<'h>,
    pub(super) shared: &'s Shared<'h>,
    pub(super) reader: &'a mut Reader<'r>,
    pub(super) alarm: &'a mut Alarm,
}

impl<'s, 'h> Keeping<'_, 's, 'h, '_> {
    /// All phases, as far as the guest lives; then its last migration.
    pub(super) fn keep(mut self) -> Result<(), Trouble> {
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
        while self.lives() && !self.house.joiner.is_done() {
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
        self.house.round(self.shared, self.reader, self.alarm, treatment)?;
        self.house.report(phase, self.shared);
        Ok(())
    }
}
