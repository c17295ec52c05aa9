//! The baseline: what operations have cost, kept in the repository. What costs more than that is a regression.
//!
//! Another compiler makes another image: figures of two compilers are not compared.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::report::{Operation, Report};
use crate::report;
use crate::workspace::Workspace;

/// Where it is, in the repository.
const PLACE: &str = "benches/baseline.json";
/// How much more may be counted than the baseline says.
const TOLERANCE: f64 = 0.02;

/// The figures of one CPU model.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Baseline {
    cpu: String,
    compiler: String,
    operations: Vec<Operation>,
}

/// What came of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// None was made; why, in one line.
    NotMade(String),
    /// So many figures were compared; what is worse, a line each.
    Made { figures: usize, worse: Vec<String> },
}

impl Baseline {
    pub(crate) fn of(report: &Report) -> Result<Self> {
        ensure!(
            report.not_counted.is_none(),
            "a baseline has all figures, and {}",
            report.not_counted.as_deref().unwrap_or_default()
        );
        let Report { cpu, compiler, operations, .. } = report;
        let operations = operations.iter().map(|operation| Operation { places: Vec::new(), ..operation.clone() });
        Ok(Self { cpu: cpu.clone(), compiler: compiler.clone(), operations: operations.collect() })
    }

    /// The one in the repository.
    pub(crate) fn read(workspace: &Workspace) -> Result<Self> {
        let place = place(workspace);
        let text = fs::read_to_string(&place).with_context(|| format!("cannot read {}", place.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no baseline", place.display()))
    }

    /// Puts it into the repository; says where.
    pub(crate) fn write(&self, workspace: &Workspace) -> Result<PathBuf> {
        let place = place(workspace);
        report::write(&place, self)?;
        Ok(place)
    }

    /// Compares each figure that both have. An operation that is gone is worse; one that is new is not compared.
    pub(crate) fn compare(&self, report: &Report) -> Comparison {
        for (what, ours, theirs) in [("CPU", &self.cpu, &report.cpu), ("compiler", &self.compiler, &report.compiler)] {
            if ours != theirs {
                return Comparison::NotMade(format!("the baseline is of another {what}: {ours}, not {theirs}"));
            }
        }
        let (mut figures, mut worse) = (0, Vec::new());
        for before in &self.operations {
            let name = format!("{} ({})", before.name, before.mode);
            let same = |now: &&Operation| now.name == before.name && now.mode == before.mode;
            let Some(now) = report.operations.iter().find(same) else {
                worse.push(format!("{name} was not measured"));
                continue;
            };
            for ((figure, before), (_, now)) in before.figures().into_iter().zip(now.figures()) {
                let (Some(before), Some(now)) = (before, now) else { continue };
                figures += 1;
                if now > before * (1.0 + TOLERANCE) {
                    worse.push(format!("{name} takes {now:.3} {figure} and took {before:.3}"));
                }
            }
        }
        Comparison::Made { figures, worse }
    }
}

fn place(workspace: &Workspace) -> PathBuf {
    workspace.root.join(PLACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(name: &str, instructions: f64, tlbis: Option<f64>) -> Operation {
        Operation {
            name: name.to_owned(),
            per: "page".to_owned(),
            mode: "m".to_owned(),
            instructions,
            loads: None,
            stores: None,
            atomics: None,
            barriers: None,
            tlbis,
            cache_operations: None,
            locks: None,
            shared_lines: None,
            places: Vec::new(),
        }
    }

    fn report(compiler: &str, operations: Vec<Operation>) -> Report {
        Report {
            emulator: "e".to_owned(),
            cpu: "max".to_owned(),
            compiler: compiler.to_owned(),
            not_counted: None,
            operations,
            growth: Vec::new(),
            memory: None,
        }
    }

    fn baseline() -> Baseline {
        Baseline::of(&report("1.95", vec![operation("a", 100.0, Some(0.0)), operation("b", 5.0, None)])).unwrap()
    }

    #[test]
    fn more_than_two_percent_more_is_worse() {
        let same = vec![operation("a", 102.0, Some(0.0)), operation("b", 4.0, Some(9.0)), operation("new", 1.0, None)];
        assert_eq!(baseline().compare(&report("1.95", same)), Comparison::Made { figures: 3, worse: Vec::new() });
        let worse = vec![operation("a", 102.1, Some(1.0))];
        let Comparison::Made { figures: 2, worse } = baseline().compare(&report("1.95", worse)) else { panic!() };
        assert_eq!(
            worse,
            [
                "a (m) takes 102.100 instructions and took 100.000",
                "a (m) takes 1.000 tlbis and took 0.000",
                "b (m) was not measured"
            ]
        );
    }

    #[test]
    fn figures_of_another_compiler_are_not_compared() {
        let Comparison::NotMade(reason) = baseline().compare(&report("1.96", Vec::new())) else { panic!() };
        assert_eq!(reason, "the baseline is of another compiler: 1.95, not 1.96");
    }

    #[test]
    fn a_baseline_without_all_figures_is_none() {
        let mut report = report("1.95", Vec::new());
        report.not_counted = Some("there is no plugin".to_owned());
        assert!(Baseline::of(&report).is_err());
    }
}
