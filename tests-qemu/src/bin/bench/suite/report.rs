//! What the host is told: one event for each operation that was measured.

use alloc::string::String;

use serde::Serialize;
use stage2_platform::events;
use stage2_tests_qemu::say::OrSay;

/// What an operation took.
#[derive(Serialize)]
pub(crate) struct Cost {
    event: &'static str,
    name: &'static str,
    per: &'static str,
    mode: &'static str,
    units: u64,
    instructions: u64,
}

impl Cost {
    /// Of the operation `name`: `instructions` for all of the `units` it was done to, each a `per`, while writes were tracked by
    /// `mode`.
    pub(crate) const fn new(
        name: &'static str,
        mode: &'static str,
        per: &'static str,
        units: u64,
        instructions: u64,
    ) -> Self {
        Self { event: "cost", name, per, mode, units, instructions }
    }

    /// Tells the host.
    pub(crate) fn emit(&self) -> Result<(), String> {
        events::emit(self).or_say("an event")
    }
}
