//! A group's figures for people: a line for each, with the goal and what KVM takes.

use super::{Group, Kvm, Line, Report};

/// The figures of `group` as aligned text, and how many goals are missed.
pub(crate) fn table(report: &Report, group: &Group) -> (String, usize) {
    let mut text = row(["operation", "mode", "ours", "goal", "", "KVM", "KVM / ours"]);
    let mut missed = 0;
    for line in group.lines {
        for mode in modes(report, line) {
            let figures = line.operations.iter().map(|name| report.instructions(name, mode));
            let Some(ours) = figures.sum::<Option<f64>>() else { continue };
            let goal = line.goals.iter().find(|(of, _)| *of == mode).map(|(_, goal)| *goal);
            let verdict = goal.map_or("", |goal| if ours <= goal { "met" } else { "missed" });
            missed += usize::from(verdict == "missed");
            let (kvm, ratio) = match line.kvm {
                Some(Kvm::Instructions(kvm)) => (kvm.to_string(), format!("{:.1}", kvm / ours)),
                Some(Kvm::Never) => ("never".to_owned(), String::new()),
                None => Default::default(),
            };
            let goal = goal.map(|goal| goal.to_string()).unwrap_or_default();
            text += &row([&line.operations.join(" + "), mode, &format!("{ours:.3}"), &goal, verdict, &kvm, &ratio]);
        }
    }
    (text, missed)
}

/// The modes in which the line's first operation was measured, in their order.
fn modes<'r>(report: &'r Report, line: &Line) -> impl Iterator<Item = &'r str> {
    let first = line.operations.first().copied();
    let of_first = move |name: &str| Some(name) == first;
    report.operations.iter().filter(move |operation| of_first(&operation.name)).map(|operation| operation.mode.as_str())
}

fn row([operation, mode, ours, goal, verdict, kvm, ratio]: [&str; 7]) -> String {
    let line = format!("{operation:<26}  {mode:<13}  {ours:>9}  {goal:>5}  {verdict:<6}  {kvm:>5}  {ratio:>10}");
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::Operation;
    use super::*;

    fn operation(name: &str, mode: &str, instructions: f64) -> Operation {
        Operation { name: name.to_owned(), per: "page".to_owned(), mode: mode.to_owned(), instructions }
    }

    #[test]
    fn goals_are_judged_by_the_sum_and_by_mode() {
        let group = Group {
            name: "test",
            parts: &[],
            lines: &[
                Line { operations: &["a", "b"], goals: &[("x", 5.0)], kvm: Some(Kvm::Instructions(12.0)) },
                Line { operations: &["b"], goals: &[("x", 2.5), ("y", 2.5)], kvm: Some(Kvm::Never) },
                Line { operations: &["a", "absent"], goals: &[("x", 1.0)], kvm: None },
            ],
            equal: &[],
        };
        let operations = vec![operation("a", "x", 3.5), operation("b", "x", 2.5), operation("b", "y", 3.0)];
        let report = Report { emulator: "e".to_owned(), cpu: "c".to_owned(), operations };
        let (text, missed) = table(&report, &group);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a", "+", "b", "x", "6.000", "5", "missed", "12", "2.0"]);
        assert_eq!(lines[2], ["b", "x", "2.500", "2.5", "met", "never"]);
        assert_eq!(lines[3], ["b", "y", "3.000", "2.5", "missed", "never"]);
        assert_eq!((lines.len(), missed), (4, 2));
    }
}
