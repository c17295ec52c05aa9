//! Benchmarks on the machine: what operations cost, in instructions and by kind.
//!
//! Under QEMU's `-icount` the count is exact: the same image gives the same figures on every host. That is tried, too: each part of a
//! group is booted twice, and a difference of one instruction is an error. A third boot, where there is a QEMU for it, has a plugin
//! count what kind of instructions they are ([`counts`]). A new group is a table in a file beside [`dirty`], and a group of that
//! name in the image `bench`.

mod baseline;
mod counts;
mod dirty;
mod faults;
mod goals;
mod library;
mod report;
mod table;
mod upkeep;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub(crate) use self::baseline::{Baseline, Comparison};
use self::counts::Counted;
pub(crate) use self::counts::Counting;
pub(crate) use self::goals::Group;
use self::goals::Part;
use self::report::Operation;
pub(crate) use self::report::Report;
pub(crate) use self::table::{kinds, table};
use crate::machine::arguments::{Machine, Told, Tracer};
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
/// What the plugin writes, in a run's folder.
const COUNTS: &str = "counts";

/// All groups.
pub(crate) const GROUPS: [&Group; 4] = [&faults::GROUP, &library::GROUP, &upkeep::GROUP, &dirty::GROUP];

/// What benchmarks are run with.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) qemu: &'a Qemu,
    pub(crate) cpu: &'a str,
    /// The compiler that has made the images.
    pub(crate) compiler: String,
    /// What counts kinds of instructions, or why nothing does.
    pub(crate) counting: Result<Counting, String>,
}

impl Bench<'_> {
    /// Measures these groups, twice. The images have been built.
    ///
    /// # Errors
    ///
    /// The machine failed, or did not count the same each time.
    pub(crate) fn measure(&self, groups: &[&Group]) -> Result<Report> {
        let mut operations = Vec::new();
        for part in groups.iter().flat_map(|group| group.parts) {
            let costs = self.boot(part, self.qemu, "1", None)?.0;
            ensure_same(&costs, &self.boot(part, self.qemu, "2", None)?.0)?;
            let counted = self.count(part, &costs)?;
            for cost in &costs {
                let counts = counted.as_ref().map(|counted| counted.of(cost)).transpose()?.flatten();
                operations.push(Operation::new(cost, counts));
            }
        }
        Ok(Report {
            emulator: format!("QEMU {}", self.qemu.version),
            cpu: self.cpu.to_owned(),
            compiler: self.compiler.clone(),
            not_counted: self.counting.as_ref().err().cloned(),
            operations,
        })
    }

    /// The plugin's counts of a part that costs this; `None` where nothing counts, or several CPUs take turns.
    fn count(&self, part: &Part, costs: &[Cost]) -> Result<Option<Counted>> {
        let Ok(Counting { qemu, plugin }) = &self.counting else { return Ok(None) };
        if part.cpus > 1 {
            return Ok(None);
        }
        let tracer = Tracer { plugin: plugin.clone(), told: Told::Counts(COUNTS.into()) };
        let (again, logs) = self.boot(part, qemu, COUNTS, Some(tracer))?;
        ensure_same(costs, &again)?;
        let place = logs.folder.join(COUNTS);
        let text = fs::read_to_string(&place).with_context(|| format!("cannot read {}", place.display()))?;
        Counted::read(&text).map(Some)
    }

    /// Boots the image, and gives what it counted.
    fn boot(&self, part: &Part, qemu: &Qemu, run: &str, tracer: Option<Tracer>) -> Result<(Vec<Cost>, Logs)> {
        let (name, cpu) = (part.name, self.cpu);
        let machine = Machine {
            emulator: qemu.program.clone(),
            image: self.workspace.image(IMAGE),
            cpu: cpu.to_owned(),
            cpus: part.cpus,
            memory_mib: MEMORY_MIB,
            arguments: vec![IMAGE.to_owned(), format!("group={name}")],
            blobs: Vec::new(),
            tracer,
            icount: true,
        };
        let logs = Logs::create(&self.workspace.run_folder(&format!("bench-{name}-{cpu}-{run}")))?;
        let mut line = ProgressLine::new(format!("{name} on {cpu}"));
        let boot = machine::boot(&machine, logs, LIMITS, |event| line.show(event))?;
        drop(line);
        if boot.ending != Ending::Exited(0) {
            let last_words = boot.last_words().or_else(|| boot.logs.emulator_complaint()).unwrap_or_default();
            bail!("{name} on {cpu}: {}: {last_words}", boot.ending);
        }
        let costs =
            boot.events.into_iter().filter_map(|event| if let Event::Cost(cost) = event { Some(cost) } else { None });
        let costs: Vec<Cost> = costs.collect();
        ensure!(!costs.is_empty(), "{name} on {cpu}: nothing was measured");
        Ok((costs, boot.logs))
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
