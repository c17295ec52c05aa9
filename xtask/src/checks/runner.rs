//! Steps: run one after the other, each timed and counted, with a table at the end.
//!
//! A step that fails does not stop the others.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Context;

/// Lines of a failed step's log that are shown.
const TAIL_LINES: usize = 40;

/// How many checks passed and failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What else is worth a word.
    pub(crate) note: String,
}

impl Tally {
    /// One check, passed.
    pub(super) fn passed() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// One check, failed.
    fn failed(note: String) -> Self {
        Self { failed: 1, note, ..Self::default() }
    }
}

type Action = dyn Fn(&Context<'_>, &Path) -> Result<Tally>;

/// A named check. It may write to a log of its own; an error counts as one failure.
pub(crate) struct Step {
    pub(crate) name: String,
    action: Box<Action>,
}

/// Makes a step.
pub(super) fn step(name: impl Into<String>, action: impl Fn(&Context<'_>, &Path) -> Result<Tally> + 'static) -> Step {
    Step { name: name.into(), action: Box::new(action) }
}

struct Row {
    name: String,
    tally: Tally,
    time: Duration,
}

/// Runs all steps, prints the table and gives the sum.
pub(crate) fn run_steps(context: &Context<'_>, steps: Vec<Step>) -> Result<Tally> {
    let folder = context.workspace.test_folder();
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let count = steps.len();
    let mut rows = Vec::new();
    for (number, step) in (1..).zip(steps) {
        println!("[{number}/{count}] {}", step.name);
        let log = folder.join(format!("{number:02}.log"));
        let started = Instant::now();
        let tally = (step.action)(context, &log).unwrap_or_else(|error| Tally::failed(format!("{error:#}")));
        let time = started.elapsed();
        if tally.failed != 0 {
            show_tail(&log);
        }
        rows.push(Row { name: step.name, tally, time });
    }
    print!("\n{}", table(&rows));
    let sum = |count: fn(&Tally) -> u64| rows.iter().map(|row| count(&row.tally)).sum();
    Ok(Tally { passed: sum(|tally| tally.passed), failed: sum(|tally| tally.failed), note: String::new() })
}

/// The end of a failed step's log, if it kept one.
fn show_tail(log: &Path) {
    let Ok(bytes) = fs::read(log) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    println!("--- the end of {}", log.display());
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().for_each(|line| println!("{line}"));
    println!("---");
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let mut table = String::new();
    for Row { name, tally: Tally { passed, failed, note }, time } in rows {
        let verdict = if *failed == 0 { "ok" } else { "FAILED" };
        let seconds = time.as_secs_f64();
        let line =
            format!("{name:<width$}  {verdict:<6} {passed:>4} passed {failed:>3} failed {seconds:>7.1} s  {note}");
        table += line.trim_end();
        table += "\n";
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_step() {
        let rows = [
            Row { name: "format".into(), tally: Tally::passed(), time: Duration::from_millis(1250) },
            Row { name: "loom".into(), tally: Tally::failed("why".into()), time: Duration::from_secs(90) },
        ];
        assert_eq!(
            table(&rows),
            "format  ok        1 passed   0 failed     1.2 s\n\
             loom    FAILED    0 passed   1 failed    90.0 s  why\n"
        );
    }
}
