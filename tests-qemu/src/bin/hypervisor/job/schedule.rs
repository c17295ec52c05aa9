//! When a phase ends: at so much of the time that the guest works, which begins when it has done its first work.

use core::time::Duration;

use stage2_platform::timer;

use super::shared::Shared;

/// Work that is surely the guest's, and not its boot's.
const BEGUN: u64 = 16;

/// From then on a guest that does not say is taken to work.
const PATIENCE: Duration = Duration::from_secs(60);

/// The end of each phase, in percent of the time that the guest works. The last one ends with the guest.
pub(crate) const LOGGING_FROM: u64 = 20;
pub(crate) const LOGGING_UNTIL: u64 = 60;
pub(crate) const LAST_FROM: u64 = 80;

/// When the guest has begun to work.
pub(crate) struct Schedule {
    seconds: u64,
    begun: Option<Duration>,
}

impl Schedule {
    /// For a guest that works for so long.
    pub(crate) fn new(seconds: u64) -> Self {
        Self { seconds, begun: None }
    }

    /// Whether the guest works by now.
    pub(crate) fn has_begun(&mut self, shared: &Shared<'_>) -> bool {
        if self.begun.is_none() && (shared.devices.work() >= BEGUN || timer::now() >= PATIENCE) {
            self.begun = Some(timer::now());
        }
        self.begun.is_some()
    }

    /// Whether so much of the time is over.
    pub(crate) fn is_past(&self, percent: u64) -> bool {
        let end = Duration::from_millis(10 * percent * self.seconds);
        self.begun.is_some_and(|begun| timer::now() - begun >= end)
    }
}
