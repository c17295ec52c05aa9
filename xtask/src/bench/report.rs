//! The report: what each operation costs for one of its units.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::footprint;
use super::goals::{Group, Metric};
use super::growth::{self, Point};
use super::places::Place;
use crate::machine::events::{Cost, Memory};

/// What was measured on one CPU model.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(super) emulator: String,
    pub(super) cpu: String,
    pub(super) compiler: String,
    /// Why nothing but instructions was counted, if so.
    pub(super) not_counted: Option<String>,
    pub(super) operations: Vec<Operation>,
    /// How costs grow.
    pub(super) growth: Vec<Point>,
    /// What tables take.
    pub(super) memory: Option<Memory>,
}

/// What an operation costs. What is `None` was not counted: where several CPUs take turns, or where nothing counts it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Operation {
    pub(super) name: String,
    pub(super) per: String,
    pub(super) mode: String,
    pub(super) instructions: f64,
    pub(super) loads: Option<f64>,
    pub(super) stores: Option<f64>,
    pub(super) atomics: Option<f64>,
    pub(super) barriers: Option<f64>,
    pub(super) tlbis: Option<f64>,
    /// DC and IC: without FWB and DIC.
    pub(super) cache_operations: Option<f64>,
    pub(super) locks: Option<f64>,
    pub(super) shared_lines: Option<f64>,
    /// Where most of the instructions are. No part of a baseline.
    #[serde(default, skip_serializing_if = "Vec::is_empty", skip_deserializing)]
    pub(super) places: Vec<Place>,
}

impl Operation {
    pub(super) fn new(cost: &Cost, counts: Option<Counts>) -> Self {
        let each = |all: u64| all as f64 / cost.units.get() as f64;
        Self {
            name: cost.name.clone(),
            per: cost.per.clone(),
            mode: cost.mode.clone(),
            instructions: each(cost.instructions),
            loads: counts.map(|counts| each(counts.loads)),
            stores: counts.map(|counts| each(counts.stores)),
            atomics: counts.map(|counts| each(counts.atomics)),
            barriers: counts.map(|counts| each(counts.barriers)),
            tlbis: counts.map(|counts| each(counts.tlbis)),
            cache_operations: counts.map(|counts| each(counts.cache_operations)),
            locks: counts.map(|counts| each(counts.locks)),
            shared_lines: counts.map(|counts| each(counts.shared_lines)),
            places: Vec::new(),
        }
    }

    /// All figures, with their names.
    pub(super) fn figures(&self) -> [(&'static str, Option<f64>); 9] {
        [
            ("instructions", Some(self.instructions)),
            ("loads", self.loads),
            ("stores", self.stores),
            ("atomics", self.atomics),
            ("barriers", self.barriers),
            ("tlbis", self.tlbis),
            ("cache", self.cache_operations),
            ("locks", self.locks),
            ("shared lines", self.shared_lines),
        ]
    }

    fn figure(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Instructions => Some(self.instructions),
            Metric::Tlbis => self.tlbis,
            Metric::SharedLines => self.shared_lines,
        }
    }
}

impl Report {
    /// An error if operations of `group` that have to cost the same do not.
    pub(crate) fn ensure_equal(&self, group: &Group) -> Result<()> {
        for names in group.equal {
            for first in self.operations.iter().filter(|operation| operation.name == names[0]) {
                let second = self.figure(names[1], &first.mode, Metric::Instructions);
                ensure!(
                    second == Some(first.instructions),
                    "{} takes {} instructions and {} takes {} ({})",
                    names[0],
                    first.instructions,
                    names[1],
                    second.map_or("none".to_owned(), |second| second.to_string()),
                    first.mode
                );
            }
        }
        Ok(())
    }

    /// What is not as it has to be, a line each: something grows faster than what it touches, or takes more memory than it may.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let mut wrong = growth::too_fast(&self.growth);
        wrong.extend(self.memory.iter().flat_map(footprint::too_much));
        wrong
    }

    /// What tables take of memory, a line each.
    pub(crate) fn memory_lines(&self) -> Vec<String> {
        self.memory.iter().flat_map(footprint::lines).collect()
    }

    /// Where the instructions of each operation are, as text.
    pub(crate) fn places(&self) -> String {
        let mut text = String::new();
        for operation in self.operations.iter().filter(|operation| !operation.places.is_empty()) {
            text += &format!("{} ({}), per {}:", operation.name, operation.mode, operation.per);
            for place in &operation.places {
                text += &format!(" {} {:.1};", place.function, place.instructions);
            }
            text += "\n";
        }
        text
    }

    /// How many figures there are.
    pub(crate) fn len(&self) -> usize {
        self.operations.len() + self.growth.len()
    }

    pub(super) fn figure(&self, name: &str, mode: &str, metric: Metric) -> Option<f64> {
        let found = self.operations.iter().find(|operation| operation.name == name && operation.mode == mode)?;
        found.figure(metric)
    }
}
