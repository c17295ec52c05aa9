//! What a trace shows: one checker for each pool of tables, since with a new pool the library begins anew.
//!
//! A pool whose library was lessened must be found out; one whose library is whole must not break any rule.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Serialize;
use stage2::Pa;
use stage2::model::checker::{Checker, Event, MAX_CPUS, Options, Shape};
use stage2_trace_events::mark::{Lessened, Mark, Pool};
use stage2_trace_events::{Happening, Record};

use super::instructions::Cpu;
use super::shadow::{Seen, Shadow};

/// Violations of one pool after which no more are looked for.
const ENOUGH: usize = 16;

/// What was found out so far.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Findings {
    /// Records of the plugin.
    pub(crate) records: u64,
    /// Events that were checked.
    pub(crate) events: u64,
    /// Pools whose library was whole.
    pub(crate) pools: u64,
    /// What was wrong with those, a line each.
    pub(crate) violations: Vec<String>,
    /// Pools whose library was lessened in what a trace shows.
    pub(crate) twins: u64,
    /// Those of them that were found out.
    pub(crate) twins_caught: u64,
    /// By what, each with how often.
    pub(crate) caught_by: BTreeMap<String, u64>,
    /// What led to each violation, and to the first of each twin.
    #[serde(skip)]
    pub(crate) stories: Vec<String>,
}

/// Watches the records of one boot.
pub(super) struct Watcher {
    cpus: [Cpu; MAX_CPUS],
    cpu_count: usize,
    world: Option<World>,
    findings: Findings,
}

/// One pool's life.
struct World {
    lessened: Lessened,
    shadow: Shadow,
    checker: Checker,
    /// The instructions at which the checker found something wrong, by their addresses' low halves.
    sites: Vec<u32>,
    /// What only the shadow sees: a kind and a story each.
    wrong: Vec<(String, String)>,
}

impl Watcher {
    pub(super) fn new(cpu_count: usize) -> Self {
        Self { cpus: [Cpu::default(); MAX_CPUS], cpu_count, world: None, findings: Findings::default() }
    }

    /// Takes one record into account.
    ///
    /// # Errors
    ///
    /// The trace is not what this image and this machine can have made.
    pub(super) fn look(&mut self, record: &Record) -> Result<()> {
        self.findings.records += 1;
        let cpu = u16::from(record.cpu);
        ensure!(usize::from(cpu) < self.cpu_count, "there is no CPU {cpu}");
        if let Happening::Mark(Mark::Pool(pool)) = record.what {
            self.conclude();
            self.world = Some(World::new(&pool, self.cpu_count)?);
            return Ok(());
        }
        let executed = match record.what {
            Happening::Executed { opcode, operand } => self.cpus[usize::from(cpu)].execute(opcode, operand),
            _ => None,
        };
        let Some(world) = &mut self.world else { return Ok(()) };
        if world.is_over() {
            return Ok(());
        }
        let seen = match record.what {
            Happening::Store { pa, value, size, kind } => world.shadow.store(cpu, pa, value, size, kind)?,
            Happening::Found { pa, value, size } => world.shadow.found(cpu, pa, value, size),
            Happening::Executed { .. } => executed.map(Seen::Event),
            Happening::Mark(mark) => world.marked(mark).map(Seen::Event),
            Happening::End { .. } => None,
        };
        let event = match seen {
            Some(Seen::Event(event)) => event,
            Some(Seen::Wrong(kind, what, event)) => {
                world.wrong.push((format!("{kind:?}"), format!("{kind:?}: {what}, at {:#x}", record.pc)));
                event
            }
            None => return Ok(()),
        };
        world.checker.step(cpu, event);
        world.sites.resize(world.checker.violations().len(), record.pc);
        Ok(())
    }

    /// What was found in the whole trace.
    pub(super) fn into_findings(mut self) -> Findings {
        self.conclude();
        self.findings
    }

    /// The pool's life is over.
    fn conclude(&mut self) {
        let Some(world) = self.world.take() else { return };
        let findings = &mut self.findings;
        findings.events += world.checker.events();
        let lessened = world.lessened;
        let wrong = world.into_wrong();
        match lessened {
            Lessened::No => {
                findings.pools += 1;
                for (_, story) in wrong {
                    findings.violations.push(story.lines().next().unwrap_or_default().to_owned());
                    findings.stories.push(story);
                }
            }
            Lessened::Visibly => {
                findings.twins += 1;
                findings.twins_caught += u64::from(!wrong.is_empty());
                match wrong.into_iter().next() {
                    Some((kind, story)) => {
                        *findings.caught_by.entry(kind).or_default() += 1;
                        findings.stories.push(format!("twin {}: {story}", findings.twins));
                    }
                    None => findings.stories.push(format!("twin {}: not found out\n", findings.twins)),
                }
            }
            Lessened::Unjudged => {}
        }
    }
}

impl World {
    fn new(pool: &Pool, cpus: usize) -> Result<Self> {
        let shadow = Shadow::new(pool)?;
        let shape = Shape { page_shift: pool.page_shift, index_bits: pool.page_shift - 3 };
        // The locks are known, but not what else orders CPUs: a CPU is taken to know of everything before.
        let checker = Checker::new(Options { shape, cpus, locks: false, shared_frames: None });
        Ok(Self { lessened: pool.lessened, shadow, checker, sites: Vec::new(), wrong: Vec::new() })
    }

    /// Whether enough was wrong.
    fn is_over(&self) -> bool {
        self.wrong.len() + self.checker.violations().len() >= ENOUGH
    }

    fn marked(&mut self, mark: Mark) -> Option<Event> {
        match mark {
            Mark::TableGiven { table, order } => {
                self.shadow.set_given(table, order, true);
                Some(Event::TableGiven { table: Pa::new(table), order })
            }
            Mark::TableFreed { table, order } => {
                self.shadow.set_given(table, order, false);
                Some(Event::TableFreed { table: Pa::new(table), order })
            }
            Mark::FrameFreed { frame, bytes } => Some(Event::FrameFreed { frame: Pa::new(frame), bytes }),
            Mark::Copied { ipa } => Some(Event::Copied { ipa }),
            // What is counted, and not checked.
            Mark::Pool(_) | Mark::WindowOpens { .. } | Mark::WindowCloses | Mark::Private { .. } => None,
        }
    }

    /// Everything that was wrong: a kind and a story each.
    fn into_wrong(self) -> Vec<(String, String)> {
        let violations = self.checker.violations().iter().zip(self.sites);
        let told = violations.map(|(violation, site)| {
            let story = violation.to_string().replacen('\n', &format!(", at {site:#x}\n"), 1);
            (format!("{:?}", violation.kind), story)
        });
        self.wrong.into_iter().chain(told).collect()
    }
}
