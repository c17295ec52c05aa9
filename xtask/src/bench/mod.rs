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
mod footprint;
mod goals;
mod growth;
mod library;
mod page;
mod places;
mod report;
mod table;
mod upkeep;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub(crate) use self::baseline::{Baseline, Comparison};
pub(crate) use self::counts::Counting;
use self::counts::{Counted, Measured};
pub(crate) use self::goals::Group;
use self::goals::Part;
pub(crate) use self::page::page;
use self::places::Names;
use self::report::Operation;
pub(crate) use self::report::Report;
pub(crate) use self::table::{kinds, table};
use crate::machine::arguments::{Machine, Told, Tracer};
use crate::machine::events::{Cost, Event, Memory, Point};
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
pub(crate) const GROUPS: [&Group; 5] = [&faults::GROUP, &library::GROUP, &upkeep::GROUP, &dirty::GROUP, &growth::GROUP];

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
        let mut report = Report {
            emulator: format!("QEMU {}", self.qemu.version),
            cpu: self.cpu.to_owned(),
            compiler: self.compiler.clone(),
            not_counted: self.counting.as_ref().err().cloned(),
            operations: Vec::new(),
            growth: Vec::new(),
            memory: None,
        };
        for part in groups.iter().flat_map(|group| group.parts) {
            let boot = self.boot(part, self.qemu, "1", None)?.0;
            ensure_same(&boot, &self.boot(part, self.qemu, "2", None)?.0)?;
            let counted = self.count(part, &boot)?;
            let names = counted.as_ref().map(|counted| self.names(counted)).transpose()?;
            let counts = |measured: Measured<'_>| match &counted {
                Some(counted) => counted.of(&measured),
                None => Ok(None),
            };
            for cost in &boot.costs {
                let mut operation = Operation::new(cost, counts(cost.into())?);
                // Of a difference they would be those of the whole.
                if let (Some(names), Some(number), None) = (&names, cost.operation, cost.minus)
                    && let Some(places) = counted.as_ref().and_then(|counted| counted.places.get(&number))
                {
                    operation.places = names.most(places, cost.units.get());
                }
                report.operations.push(operation);
            }
            for point in &boot.points {
                report.growth.push(growth::Point::new(point, counts(point.into())?));
            }
            report.memory = boot.memory.or(report.memory);
        }
        Ok(report)
    }

    /// The functions whose instructions were counted.
    fn names(&self, counted: &Counted) -> Result<Names> {
        let addresses = counted.places.values().flat_map(|places| places.keys().copied());
        Names::of(&self.workspace.image(IMAGE), addresses)
    }

    /// The plugin's counts of a part; `None` where nothing counts, or several CPUs take turns.
    fn count(&self, part: &Part, before: &Figures) -> Result<Option<Counted>> {
        let Ok(Counting { qemu, plugin }) = &self.counting else { return Ok(None) };
        if part.by_turns {
            return Ok(None);
        }
        let tracer = Tracer { plugin: plugin.clone(), told: Told::Counts(COUNTS.into()) };
        let (again, logs) = self.boot(part, qemu, COUNTS, Some(tracer))?;
        ensure_same(before, &again)?;
        let place = logs.folder.join(COUNTS);
        let text = fs::read_to_string(&place).with_context(|| format!("cannot read {}", place.display()))?;
        Counted::read(&text).map(Some)
    }

    /// Boots the image, and gives what it counted.
    fn boot(&self, part: &Part, qemu: &Qemu, run: &str, tracer: Option<Tracer>) -> Result<(Figures, Logs)> {
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
        let logs = Logs::create(&self.workspace.run_folder(&format!("bench-{name}-{}-{cpu}-{run}", part.cpus)))?;
        let mut line = ProgressLine::new(format!("{name} on {cpu}"));
        let boot = machine::boot(&machine, logs, LIMITS, |event| line.show(event))?;
        drop(line);
        if boot.ending != Ending::Exited(0) {
            let last_words = boot.last_words().or_else(|| boot.logs.emulator_complaint()).unwrap_or_default();
            bail!("{name} on {cpu}: {}: {last_words}", boot.ending);
        }
        let figures = Figures::of(boot.events);
        ensure!(figures != Figures::default(), "{name} on {cpu}: nothing was measured");
        Ok((figures, boot.logs))
    }
}

/// What a boot has measured.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    costs: Vec<Cost>,
    points: Vec<Point>,
    memory: Option<Memory>,
}

impl Figures {
    fn of(events: Vec<Event>) -> Self {
        let mut figures = Self::default();
        for event in events {
            match event {
                Event::Cost(cost) => figures.costs.push(cost),
                Event::Point(point) => figures.points.push(point),
                Event::Memory(memory) => figures.memory = Some(memory),
                _ => {}
            }
        }
        figures
    }
}

/// An error unless both boots have measured the same, to the instruction.
fn ensure_same(first: &Figures, second: &Figures) -> Result<()> {
    for (first, second) in first.costs.iter().zip(&second.costs) {
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
    ensure!(first == second, "{} figures were measured, then not the same", first.costs.len() + first.points.len());
    Ok(())
}
