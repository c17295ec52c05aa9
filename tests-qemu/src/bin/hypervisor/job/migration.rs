//! Migrations into the replica: a log, its harvests, and the moment at which the guest is frozen and the replica equal.

use core::time::Duration;

use stage2::{
    IpaRange, Reader,
    arch::Aarch64,
    dirty::{DirtyLog, Initial, StartError, Tracking},
    error::{ArgumentError, ChangeCause, Stopped},
    stage2::{FreezeError, SplitError},
};
use stage2_platform::timer::{self, Alarm};
use stage2_tests_qemu::{frames::RUN_BYTES, machine::Tables};

use super::{
    replica::{Comparison, HarvestError, Replica},
    shared::Shared,
};

/// How long it may take until a guest that is frozen stands still.
const LEAVE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// Blocks that are split at once.
const SPLITS: u64 = 32;

/// Why there was no migration.
#[derive(Debug, defmt::Format)]
pub(crate) enum MigrationError {
    Start(StartError),
    Harvest(HarvestError),
    Split(SplitError),
    Freeze(FreezeError),
    /// vCPUs did not leave the frozen guest.
    Stuck,
    Thaw(ArgumentError),
}

/// A log that is on.
pub(crate) struct Session<'s, 'h> {
    log: DirtyLog<'s, 'h, Aarch64, Tables>,
    /// Permission faults before it was on.
    faults: u64,
    /// Bytes from the start of RAM to where blocks are split next.
    split: u64,
}

/// The replica, and what came of all migrations into it.
pub(crate) struct Migrations {
    pub(crate) replica: Replica,
    /// How often the replica was equal.
    pub(crate) equal: u64,
    /// What the last comparison found, or the first that was not equal.
    pub(crate) comparison: Comparison,
    /// How stores were tracked.
    pub(crate) mode: Option<Tracking>,
    /// Permission faults while a log was on.
    pub(crate) faults: u64,
    /// Tables that scans have passed over.
    pub(crate) tables_skipped: u64,
    tracking: Option<Tracking>,
}

impl Migrations {
    /// None so far, tracked that way or as the library chooses.
    pub(crate) fn new(replica: Replica, tracking: Option<Tracking>) -> Self {
        let comparison = Comparison::default();
        Self { replica, equal: 0, comparison, mode: None, faults: 0, tables_skipped: 0, tracking }
    }

    /// Starts a log, and copies all of memory if the log does not name it.
    pub(crate) fn start<'s, 'h>(
        &mut self,
        shared: &'s Shared<'h>,
        reader: &mut Reader<'_>,
        initial: Initial,
    ) -> Result<Session<'s, 'h>, MigrationError> {
        let tracking = self.tracking.unwrap_or_else(|| shared.stage2.default_tracking());
        let faults = permission_faults(shared);
        let log = shared.stage2.start_logging_with(reader, initial, tracking).map_err(MigrationError::Start)?;
        self.mode = Some(log.tracking());
        if initial == Initial::Clean {
            self.replica.copy_all(shared, reader).map_err(MigrationError::Harvest)?;
        }
        Ok(Session { log, faults, split: 0 })
    }

    /// One harvest while the guest runs.
    pub(crate) fn round(
        &mut self,
        shared: &Shared<'_>,
        reader: &mut Reader<'_>,
        session: &mut Session<'_, '_>,
    ) -> Result<(), MigrationError> {
        if session.log.tracking() == Tracking::Hardware {
            session.split_some(shared, reader).map_err(MigrationError::Split)?;
        }
        self.replica.harvest(shared, &mut session.log, reader).map_err(MigrationError::Harvest)
    }

    /// Freezes the guest, waits until it stands still and `has_ended`, takes the last harvest, compares, and lets it go on.
    /// How long it stood.
    pub(crate) fn finish(
        &mut self,
        shared: &Shared<'_>,
        reader: &mut Reader<'_>,
        session: &mut Session<'_, '_>,
        alarm: &mut Alarm,
        has_ended: impl Fn() -> bool,
    ) -> Result<Duration, MigrationError> {
        let begun = timer::now();
        let frozen = shared.stage2.freeze(reader).map_err(MigrationError::Freeze)?;
        while !(has_ended() && frozen.is_settled().is_ok()) {
            if timer::now() - begun > LEAVE {
                return Err(MigrationError::Stuck);
            }
            reader.offline(|| alarm.sleep(LOOK));
        }
        self.replica.harvest(shared, &mut session.log, reader).map_err(MigrationError::Harvest)?;
        let found = self.replica.compare(&shared.memory);
        if self.comparison.different == 0 {
            self.comparison = found;
        }
        if found.different == 0 {
            self.equal += 1;
        } else {
            defmt::error!("the replica differs: {}", found);
            shared.violation();
        }
        frozen.thaw(reader).map_err(|(_, error)| MigrationError::Thaw(error))?;
        Ok(timer::now() - begun)
    }

    /// Ends the log.
    pub(crate) fn stop(&mut self, shared: &Shared<'_>, session: Session<'_, '_>) {
        self.tables_skipped += session.log.progress().tables_skipped;
        session.log.stop();
        self.faults += permission_faults(shared) - session.faults;
    }
}

impl Session<'_, '_> {
    /// Splits a few blocks before the guest stores to them. The hardware notes a store to a block as one to all of it, and then
    /// nothing else would split it.
    fn split_some(&mut self, shared: &Shared<'_>, reader: &Reader<'_>) -> Result<(), SplitError> {
        let ram = shared.memory.ram();
        let bytes = (SPLITS * RUN_BYTES).min(ram.bytes() - self.split);
        let Some(piece) = IpaRange::new(ram.start().offset(self.split), bytes) else { return Ok(()) };
        match shared.stage2.split(reader, piece) {
            // In the next round.
            Err(SplitError::Stopped(Stopped { cause: ChangeCause::Retry | ChangeCause::OutOfTables, .. })) => {}
            split => {
                split?;
                self.split += bytes;
            }
        }
        Ok(())
    }
}

fn permission_faults(shared: &Shared<'_>) -> u64 {
    shared.stage2.mmu().statistics().faults_permission
}
