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
    /// The one that is taken off, if this is a difference.
    minus: Option<u64>,
    /// How many windows EL2 has opened and closed itself.
    windows: u64,
}

impl Cost {
    /// Of the operation `name`: what it took in all, for `units`, each a `per`. `mode` tells apart ways to do it.
    pub(crate) fn new(name: &'static str, mode: &'static str, per: &'static str, units: u64, sum: &Sum<'_>) -> Self {
        let Sum { operation, instructions, windows, .. } = *sum;
        Self { event: "cost", name, per, mode, units, instructions, operation: Some(operation), minus: None, windows }
    }

    /// By how much more `sum` takes than `less`, both in as many windows; `None` if it takes less.
    pub(crate) fn difference(
        name: &'static str,
        mode: &'static str,
        per: &'static str,
        units: u64,
        [sum, less]: [&Sum<'_>; 2],
    ) -> Option<Self> {
        let instructions = sum.instructions.checked_sub(less.instructions)?;
        let (operation, minus) = (Some(sum.operation), Some(less.operation));
        Some(Self { event: "cost", name, per, mode, units, instructions, operation, minus, windows: 0 })
    }

    /// The same of so many `instructions`, whose windows hold more than that.
    pub(crate) fn beside(
        name: &'static str,
        mode: &'static str,
        per: &'static str,
        units: u64,
        instructions: u64,
    ) -> Self {
        Self { event: "cost", name, per, mode, units, instructions, operation: None, minus: None, windows: 0 }
    }

    /// Tells the host.
    pub(crate) fn emit(&self) -> Result<(), String> {
        events::emit(self).or_say("an event")
    }
}

/// How many things an operation touches, by kind.
pub(crate) type Touched = [u64; 4];

/// A point of a curve: what an operation takes where there is more or less of something.
#[derive(Serialize)]
pub(crate) struct Point {
    event: &'static str,
    curve: &'static str,
    /// What there is more or less of.
    axis: &'static str,
    at: u64,
    /// How many things of each kind it has to touch there, 0 for a kind that is not its business: it may grow no faster than the kind that
    /// grows fastest.
    touched: Touched,
    instructions: u64,
    operation: u64,
    windows: u64,
}

impl Point {
    pub(crate) fn new(curve: &'static str, axis: &'static str, at: u64, touched: Touched, sum: &Sum<'_>) -> Self {
        let Sum { operation, instructions, windows, .. } = *sum;
        Self { event: "point", curve, axis, at, touched, instructions, operation, windows }
    }

    /// Tells the host.
    pub(crate) fn emit(&self) -> Result<(), String> {
        events::emit(self).or_say("an event")
    }
}

/// What tables take of memory.
#[derive(Serialize)]
pub(crate) struct Memory {
    pub(crate) event: &'static str,
    /// Tables below the root of a GiB that is full of pages.
    pub(crate) tables_per_gib: u64,
    /// What is kept beside each.
    pub(crate) metadata_bytes: u64,
    /// The tables of a guest of which no more than 2 MiB was ever mapped at once, and which has touched so much.
    pub(crate) touched_bytes: u64,
    pub(crate) peak_table_bytes: u64,
    pub(crate) table_bytes: u64,
}

impl Memory {
    /// Tells the host.
    pub(crate) fn emit(&self) -> Result<(), String> {
        events::emit(self).or_say("an event")
    }
}
