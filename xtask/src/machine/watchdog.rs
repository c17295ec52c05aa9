//! Notices a machine that hangs: one that shows nothing new for too long, or never ends.

use std::time::{Duration, Instant};

use thiserror::Error;

/// How long a machine may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Without an event or a character on the guest's console.
    pub(crate) silence: Duration,
    /// In all.
    pub(crate) total: Duration,
}

/// What a hanging machine overstepped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Hang {
    #[error("it showed no sign of life for {0:.0?}")]
    Silent(Duration),
    #[error("it did not end within {0:.0?}")]
    Endless(Duration),
}

/// Fed with how much the machine has shown so far.
#[derive(Debug)]
pub(super) struct Watchdog {
    limits: Limits,
    started: Instant,
    last_sign: Instant,
    shown: u64,
}

impl Watchdog {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, started: now, last_sign: now, shown: 0 }
    }

    /// `shown` is the number of bytes seen from the machine since it was started.
    pub(super) fn observe(&mut self, now: Instant, shown: u64) -> Option<Hang> {
        if shown != self.shown {
            self.shown = shown;
            self.last_sign = now;
        }
        if now - self.last_sign >= self.limits.silence {
            return Some(Hang::Silent(self.limits.silence));
        }
        (now - self.started >= self.limits.total).then_some(Hang::Endless(self.limits.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { silence: Duration::from_secs(30), total: Duration::from_secs(100) };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn silence_is_noticed_when_it_is_too_long_and_not_before() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        assert_eq!(watchdog.observe(after(start, 10), 5), None);
        assert_eq!(watchdog.observe(after(start, 39), 5), None);
        assert_eq!(watchdog.observe(after(start, 40), 5), Some(Hang::Silent(LIMITS.silence)));
    }

    #[test]
    fn a_machine_that_never_spoke_is_silent_from_the_start() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        assert_eq!(watchdog.observe(after(start, 30), 0), Some(Hang::Silent(LIMITS.silence)));
    }

    #[test]
    fn talking_does_not_extend_the_total() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        for second in 0..100 {
            assert_eq!(watchdog.observe(after(start, second), second), None);
        }
        assert_eq!(watchdog.observe(after(start, 100), 100), Some(Hang::Endless(LIMITS.total)));
    }
}
