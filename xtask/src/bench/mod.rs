//! Benchmarks on the machine: what operations cost, in instructions.
//!
//! Under QEMU's `-icount` the count is exact: the same image gives the same figures on every host. That is tried, too: each part of a
//! group is booted twice, and a difference of one instruction is an error. A new group is a table in a file beside [`dirty`],
//! and a group of that name in the image `bench`.

mod dirty;
mod table;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

pub(crate) use self::table::table;
use crate::machine::arguments::Machine;
use crate::machine::events::{Cost, Event};
use crate::machine::watchdog::Limits;
use crate::machine::{self, Ending, Logs};
use crate::prerequisites::Qemu;
use crate::progress::ProgressLine;
use crate::workspace::Workspace;

/// The image with the on-target benchmarks.
const IMAGE: &str = "bench";
const MEMORY_MIB: u64 = 256;
const LIMITS: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(120) };

/// All groups.
pub(crate) const GROUPS: [&Group; 1] = [&dirty::GROUP];

/// Operations that belong together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// What is booted for it.
    parts: &'static [Part],
    /// What is shown of it.
    lines: &'static [Line],
    /// Operations that have to cost the same.
    equal: &'static [[&'static str; 2]],
}

/// A group of the image's.
#[derive(Debug)]
struct Part {
    name: &'static str,
    /// As many as it takes: where CPUs take turns, one too many would be counted.
    cpus: u32,
}

/// A figure that is shown: an operation's, or the sum of several.
#[derive(Debug)]
struct Line {
    operations: &'static [&'static str],
    /// By mode.
    goals: &'static [(&'static str, f64)],
    /// What Linux's KVM takes, on the same emulator.
    kvm: Option<Kvm>,
}

/// What KVM takes for an operation.
#[derive(Debug, Clone, Copy)]
enum Kvm {
    Instructions(f64),
    /// It does not do it.
    Never,
}

/// What was measured on one CPU model.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    emulator: String,
    cpu: String,
    operations: Vec<Operation>,
}

/// What an operation costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Operation {
    name: String,
    per: String,
    mode: String,
    instructions: f64,
}

impl From<&Cost> for Operation {
    fn from(cost: &Cost) -> Self {
        Self {
            name: cost.name.clone(),
            per: cost.per.clone(),
            mode: cost.mode.clone(),
            instructions: cost.instructions as f64 / cost.units.get() as f64,
        }
    }
}

impl Report {
    /// Measures these groups, twice. The images have been built.
    ///
    /// # Errors
    ///
    /// The machine failed, or did not count the same twice.
    pub(crate) fn measure(workspace: &Workspace, qemu: &Qemu, cpu: &str, groups: &[&Group]) -> Result<Self> {
        let mut operations = Vec::new();
        for part in groups.iter().flat_map(|group| group.parts) {
            let costs = part.boot(workspace, qemu, cpu, 1)?;
            ensure_same(&costs, &part.boot(workspace, qemu, cpu, 2)?)?;
            operations.extend(costs.iter().map(Operation::from));
        }
        Ok(Self { emulator: format!("QEMU {}", qemu.version), cpu: cpu.to_owned(), operations })
    }

    /// An error if operations of `group` that have to cost the same do not.
    pub(crate) fn ensure_equal(&self, group: &Group) -> Result<()> {
        for names in group.equal {
            for first in self.operations.iter().filter(|operation| operation.name == names[0]) {
                let second = self.instructions(names[1], &first.mode);
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

    /// How many operations there are.
    pub(crate) fn len(&self) -> usize {
        self.operations.len()
    }

    fn instructions(&self, name: &str, mode: &str) -> Option<f64> {
        let found = self.operations.iter().find(|operation| operation.name == name && operation.mode == mode)?;
        Some(found.instructions)
    }
}

impl Part {
    /// Boots the image, and gives what it counted.
    fn boot(&self, workspace: &Workspace, qemu: &Qemu, cpu: &str, run: u32) -> Result<Vec<Cost>> {
        let machine = Machine {
            emulator: qemu.program.clone(),
            image: workspace.image(IMAGE),
            cpu: cpu.to_owned(),
            cpus: self.cpus,
            memory_mib: MEMORY_MIB,
            arguments: vec![IMAGE.to_owned(), format!("group={}", self.name)],
            blobs: Vec::new(),
            tracer: None,
            icount: true,
        };
        let logs = Logs::create(&workspace.run_folder(&format!("bench-{}-{cpu}-{run}", self.name)))?;
        let mut line = ProgressLine::new(format!("{} on {cpu}", self.name));
        let boot = machine::boot(&machine, logs, LIMITS, |event| line.show(event))?;
        drop(line);
        if boot.ending != Ending::Exited(0) {
            let last_words = boot.last_words().or_else(|| boot.logs.emulator_complaint()).unwrap_or_default();
            bail!("{} on {cpu}: {}: {last_words}", self.name, boot.ending);
        }
        let costs =
            boot.events.into_iter().filter_map(|event| if let Event::Cost(cost) = event { Some(cost) } else { None });
        let costs: Vec<Cost> = costs.collect();
        ensure!(!costs.is_empty(), "{} on {cpu}: nothing was measured", self.name);
        Ok(costs)
    }
}

/// An error unless both runs have counted the same.
fn ensure_same(first: &[Cost], second: &[Cost]) -> Result<()> {
    ensure!(first.len() == second.len(), "{} operations were measured, then {}", first.len(), second.len());
    for (first, second) in first.iter().zip(second) {
        ensure!(
            first == second,
            "{} ({}) took {} instructions, then {} ({}) took {}",
            first.name,
            first.mode,
            first.instructions,
            second.name,
            second.mode,
            second.instructions
        );
    }
    Ok(())
}
