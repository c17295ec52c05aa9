//! The mutant matrix: the library with one seeded bug after another, each of which a named check must find.
//!
//! The bugs are in `proofs/mutants.toml` and nowhere in the source. What can be chosen at run time is compiled once, all of it
//! together ([`schemata`]), for the host's tests and again for loom's; a mutant is then one run of its killer. What changes a type
//! or a signature is built alone. Without a mutant every killer must pass; with it the named one must fail, and if it does not,
//! any other test may. A mutant that none of them sees is a survivor.

mod alone;
mod build;
mod copy;
mod docs;
mod run;
mod schemata;
mod table;

use std::collections::BTreeMap;
use std::iter;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use self::build::{Build, Built};
use self::copy::Copy;
use self::run::{Ended, Limits};
use self::table::{Checker, Mutant, Table};
use crate::workspace::Workspace;

pub(crate) use self::docs::write as write_docs;

/// What the matrix found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) mutants: Vec<Killed>,
    /// The ids of mutants that no check sees.
    pub(crate) survivors: Vec<String>,
}

/// A mutant that was found.
#[derive(Debug, Serialize)]
pub(crate) struct Killed {
    id: String,
    rule: String,
    killed_by: String,
}

/// Which mutants to run.
pub(crate) enum Selection<'a> {
    /// Those with these ids; all, if there are none.
    Only(&'a [String]),
    /// One a rule: the bounded part.
    Slice,
}

/// Runs the selected mutants and says of each what happened.
pub(crate) fn run(workspace: &Workspace, selection: &Selection<'_>) -> Result<Report> {
    let table = Table::read(&workspace.root)?;
    let selected = select(&table, selection)?;
    let (alone, together): (Vec<&Mutant>, Vec<&Mutant>) = selected.iter().partition(|mutant| mutant.rebuild);
    let mut matrix =
        Matrix { workspace, table: &table, folder: workspace.target.join("mutants"), built: BTreeMap::new() };
    let mut report = Report::default();
    if !together.is_empty() {
        matrix.build(&together, matches!(selection, Selection::Slice))?;
        let limits = matrix.baseline(&together)?;
        for outcome in in_parallel(&together, |mutant| matrix.chosen_at_run_time(mutant, &limits)) {
            report.add(outcome?);
        }
    }
    if !alone.is_empty() {
        matrix.baseline_alone(&alone)?;
    }
    for mutant in alone {
        report.add(matrix.built_alone(mutant)?);
    }
    report.mutants.sort_by_key(|killed| table.mutant.iter().position(|mutant| mutant.id == killed.id));
    Ok(report)
}

fn select<'t>(table: &'t Table, selection: &Selection<'_>) -> Result<Vec<&'t Mutant>> {
    let selected: Vec<&Mutant> = match selection {
        Selection::Slice => table.mutant.iter().filter(|mutant| mutant.slice).collect(),
        Selection::Only([]) => table.mutant.iter().collect(),
        Selection::Only(ids) => {
            let find = |id: &String| {
                table.mutant.iter().find(|mutant| mutant.id == *id).with_context(|| format!("no mutant {id}"))
            };
            ids.iter().map(find).collect::<Result<_>>()?
        }
    };
    ensure!(!selected.is_empty(), "no mutant is selected");
    Ok(selected)
}

/// What happened to one mutant.
struct Outcome<'t> {
    mutant: &'t Mutant,
    killed_by: Option<String>,
}

impl<'t> Outcome<'t> {
    /// Says it, too.
    fn new(mutant: &'t Mutant, killed_by: Option<String>, started: Instant) -> Self {
        let (id, seconds) = (&mutant.id, started.elapsed().as_secs_f64());
        match &killed_by {
            Some(killer) if *killer == mutant.killer.name => println!("killed    {id:<48} {seconds:>6.1} s  {killer}"),
            Some(killer) => println!("killed    {id:<48} {seconds:>6.1} s  {killer}, not {}", mutant.killer.name),
            None => println!("SURVIVED  {id:<48} {seconds:>6.1} s"),
        }
        Self { mutant, killed_by }
    }
}

impl Report {
    fn add(&mut self, Outcome { mutant, killed_by }: Outcome<'_>) {
        match killed_by {
            Some(killed_by) => {
                self.mutants.push(Killed { id: mutant.id.clone(), rule: mutant.rule.clone(), killed_by });
            }
            None => self.survivors.push(mutant.id.clone()),
        }
    }
}

struct Matrix<'t> {
    workspace: &'t Workspace,
    table: &'t Table,
    /// Where the copies, their builds and the logs are.
    folder: PathBuf,
    /// The builds with all mutants in them that are chosen at run time.
    built: BTreeMap<&'static str, Built>,
}

impl<'t> Matrix<'t> {
    /// Builds the copy with all mutants in it, for each build that a killer of the selected ones is in: the killers' test
    /// programs, and unless they are to be `killers_alone` all others, too.
    fn build(&mut self, selected: &[&Mutant], killers_alone: bool) -> Result<()> {
        let copy = Copy::new(self.workspace, self.folder.join("together"));
        copy.write(&schemata::apply(&self.workspace.root, self.table)?)?;
        let killers = || selected.iter().map(|mutant| &mutant.killer);
        for build in Build::of(killers()) {
            let started = Instant::now();
            let programs = if killers_alone { build.only(killers()) } else { build.all() };
            let built = build.tests(self.workspace, copy.folder(), &self.folder, &programs)?;
            println!("built with every mutant, {}: {:.1} s", build.name, started.elapsed().as_secs_f64());
            self.built.insert(build.name, built);
        }
        Ok(())
    }

    /// With no mutant chosen every killer passes; how long each takes is what the time limits follow from.
    fn baseline(&self, selected: &[&'t Mutant]) -> Result<Limits> {
        let mut killers: Vec<&Checker> = selected.iter().map(|mutant| &mutant.killer).collect();
        killers.sort();
        killers.dedup();
        let started = Instant::now();
        let mut limits = Limits::default();
        let ran = in_parallel(&killers, |killer| {
            let started = Instant::now();
            let (program, log) = (self.program(killer)?, self.log("baseline", killer));
            let (ended, _) = run::test(program, &killer.test, 0, Limits::WITHOUT_MUTANT, &log)?;
            ensure!(ended == Ended::Passed, "{} does not pass without a mutant: see {}", killer.name, log.display());
            Ok(started.elapsed())
        });
        for (killer, time) in killers.iter().zip(ran) {
            limits.set(killer, time?);
        }
        println!("{} killers pass without a mutant: {:.1} s", killers.len(), started.elapsed().as_secs_f64());
        Ok(limits)
    }

    fn program(&self, checker: &Checker) -> Result<Command> {
        let build = Build::holding(checker);
        let built = self.built.get(build.name).with_context(|| format!("{} is not built", build.name))?;
        built.program(&checker.program)
    }

    fn log(&self, id: &str, checker: &Checker) -> PathBuf {
        self.folder.join("log").join(format!("{id}-{}.log", checker.name.replace("::", "-")))
    }

    /// The named killer first; if that does not see it, all tests there are.
    fn chosen_at_run_time(&self, mutant: &'t Mutant, limits: &Limits) -> Result<Outcome<'t>> {
        let started = Instant::now();
        let number = self.table.number(mutant);
        let programs = self.built.values().flat_map(Built::names).map(Checker::whole);
        let mut killed_by = None;
        for checker in iter::once(mutant.killer.clone()).chain(programs) {
            let Ok(program) = self.program(&checker) else { continue };
            let log = self.log(&mutant.id, &checker);
            let (ended, output) = run::test(program, &checker.test, number, limits.of(&checker), &log)?;
            if !ended.is_kill(mutant.may_hang) {
                continue;
            }
            if checker == mutant.killer {
                killed_by = Some(checker.name);
                break;
            }
            // Of a whole program it is not known yet that it passes without the mutant.
            let failed = run::failed_test(&checker, &output);
            let (ended, _) = run::test(self.program(&failed)?, &failed.test, 0, Limits::WITHOUT_MUTANT, &log)?;
            if ended == Ended::Passed {
                killed_by = Some(failed.name);
                break;
            }
        }
        Ok(Outcome::new(mutant, killed_by, started))
    }

    /// Without a mutant, what those that are built alone are to break works.
    fn baseline_alone(&self, mutants: &[&Mutant]) -> Result<()> {
        let copy = Copy::new(self.workspace, self.folder.join("alone"));
        copy.write(&BTreeMap::new())?;
        let started = Instant::now();
        let mut killers: Vec<Checker> = mutants.iter().map(|mutant| alone::without_mutant(&mutant.killer)).collect();
        killers.sort();
        killers.dedup();
        for killer in killers {
            let log = self.log("baseline", &killer);
            let ended = alone::check(self.workspace, &copy, &self.folder, &killer, &log)?;
            ensure!(ended == Ended::Passed, "{} does not pass without a mutant: see {}", killer.name, log.display());
        }
        println!("what is built alone passes without a mutant: {:.1} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    fn built_alone(&self, mutant: &'t Mutant) -> Result<Outcome<'t>> {
        let started = Instant::now();
        let copy = Copy::new(self.workspace, self.folder.join("alone"));
        copy.write(&schemata::apply_alone(&self.workspace.root, mutant)?)?;
        let ended =
            alone::check(self.workspace, &copy, &self.folder, &mutant.killer, &self.log(&mutant.id, &mutant.killer))?;
        let killed_by = ended.is_kill(mutant.may_hang).then(|| mutant.killer.name.clone());
        Ok(Outcome::new(mutant, killed_by, started))
    }
}

/// Does `work` on every item, as many at a time as there are CPUs; the results are in the items' order.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some((at, item)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
                {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
