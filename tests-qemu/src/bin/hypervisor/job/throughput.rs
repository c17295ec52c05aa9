//! How fast the guest gets on: its own work, counted by itself, over the time in which it was let.

use core::time::Duration;

use stage2_platform::timer;

use super::shared::Shared;

/// Between two instants.
pub(crate) struct Meter {
    work: u64,
    from: Duration,
    frozen: Duration,
}

impl Meter {
    /// From now on.
    pub(crate) fn start(shared: &Shared<'_>) -> Self {
        Self { work: shared.devices.work(), from: timer::now(), frozen: Duration::ZERO }
    }

    /// The guest stood still for so long.
    pub(crate) fn note_frozen(&mut self, time: Duration) {
        self.frozen += time;
    }

    /// Work in a second, until now.
    pub(crate) fn rate(&self, shared: &Shared<'_>) -> f32 {
        let time = (timer::now() - self.from).saturating_sub(self.frozen);
        (shared.devices.work() - self.work) as f32 / time.as_secs_f32().max(f32::EPSILON)
    }
}
