//! What the host is told: one event for each operation that was measured.

use alloc::string::String;

use serde::Serialize;
use stage2_platform::events;
use stage2_tests_qemu::say::OrSay;

use super::meter::Sum;

/// What an operation took.
#[derive(Serialize)]
pub(crate) struct Cost {
    event: &'static str,
    name: &'static str,
    per: &'static str,
    mode: &'static str,
    units: u64,
    instructions: u64,
    /// What a plugin knows it by, if its windows hold it and nothing else.
    operation: Option<u64>,
    /// How many windows EL2 has opened and closed itself.
    windows: u64,
}

impl Cost {
    /// Of the operation `name`: what it took in all, for `units`, each a `per`. `mode` tells apart ways to do it.
    pub(crate) fn new(name: &'static str, mode: &'static str, per: &'static str, units: u64, sum: &Sum<'_>) -> Self {
        let Sum { operation, instructions, windows, .. } = *sum;
        Self { event: "cost", name, per, mode, units, instructions, operation: Some(operation), windows }
    }

    /// The same of so many `instructions`, whose windows hold more than that.
    pub(crate) fn beside(
        name: &'static str,
        mode: &'static str,
        per: &'static str,
        units: u64,
        instructions: u64,
    ) -> Self {
        Self { event: "cost", name, per, mode, units, instructions, operation: None, windows: 0 }
    }

    /// Tells the host.
    pub(crate) fn emit(&self) -> Result<(), String> {
        events::emit(self).or_say("an event")
    }
}
