//! The figures for people: a line for each, with the goal and what others take; and a line for each operation, with what it consists of.

use super::goals::{Group, Kvm, Line};
use super::report::{Operation, Report};

/// The figures of `group` as aligned text, and how many goals are missed.
pub(crate) fn table(report: &Report, group: &Group) -> (String, usize) {
    let mut text =
        row(["operation", "mode", "ours", "goal", "", "floor", "KVM", "KVM / ours", "peers", "peers / ours"]);
    let mut missed = 0;
    for line in group.lines {
        for mode in modes(report, line) {
            let figures = line.operations.iter().map(|name| report.figure(name, mode, line.metric));
            let Some(ours) = figures.sum::<Option<f64>>() else { continue };
            let goal = line.goals.iter().find(|(of, _)| *of == mode).map(|(_, goal)| *goal);
            let verdict = goal.map_or("", |goal| if ours <= goal { "met" } else { "missed" });
            missed += usize::from(verdict == "missed");
            let ratio = |theirs: f64| if ours == 0.0 { String::new() } else { format!("{:.1}", theirs / ours) };
            let (kvm, kvm_ratio) = match line.kvm {
                Some(Kvm::Instructions(kvm)) => (kvm.to_string(), ratio(kvm)),
                Some(Kvm::Never) => ("never".to_owned(), String::new()),
                None => Default::default(),
            };
            let number = |figure: Option<f64>| figure.map(|figure| figure.to_string()).unwrap_or_default();
            let name = line.operations.join(" + ") + line.metric.suffix();
            let peers = number(line.peers);
            let peers_ratio = line.peers.map(ratio).unwrap_or_default();
            text += &row([
                &name,
                mode,
                &format!("{ours:.3}"),
                &number(goal),
                verdict,
                &number(line.floor),
                &kvm,
                &kvm_ratio,
                &peers,
                &peers_ratio,
            ]);
        }
    }
    (text, missed)
}

/// What each operation consists of, as aligned text.
pub(crate) fn kinds(report: &Report) -> String {
    let mut text = format!("{:<20}  {:<19}  {:<9}", "operation", "mode", "per");
    if let Some(first) = report.operations.first() {
        first.figures().iter().for_each(|(name, _)| text += &format!("  {name:>12}"));
    }
    text += "\n";
    for operation in &report.operations {
        text += &format!("{:<20}  {:<19}  {:<9}", operation.name, operation.mode, operation.per);
        for (_, figure) in operation.figures() {
            let figure = figure.map_or("-".to_owned(), |figure| format!("{figure:.2}"));
            text += &format!("  {figure:>12}");
        }
        text += "\n";
    }
    if let Some(reason) = &report.not_counted {
        text += &format!("instructions alone were counted: {reason}\n");
    }
    text
}

/// The modes in which the line's first operation was measured, in their order.
fn modes<'r>(report: &'r Report, line: &Line) -> impl Iterator<Item = &'r str> {
    let first = line.operations.first().copied();
    let wanted = line.modes;
    let is_shown = move |operation: &&Operation| {
        Some(operation.name.as_str()) == first && (wanted.is_empty() || wanted.contains(&operation.mode.as_str()))
    };
    report.operations.iter().filter(is_shown).map(|operation| operation.mode.as_str())
}

fn row([operation, mode, ours, goal, verdict, floor, kvm, kvm_ratio, peers, peers_ratio]: [&str; 10]) -> String {
    let line = format!(
        "{operation:<33}  {mode:<19}  {ours:>12}  {goal:>5}  {verdict:<6}  {floor:>5}  {kvm:>5}  {kvm_ratio:>10}  \
         {peers:>6}  {peers_ratio:>12}"
    );
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::goals::Metric;
    use super::*;

    fn operation(name: &str, mode: &str, instructions: f64, tlbis: Option<f64>) -> Operation {
        Operation {
            name: name.to_owned(),
            per: "page".to_owned(),
            mode: mode.to_owned(),
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

    fn report(operations: Vec<Operation>) -> Report {
        Report {
            emulator: "e".to_owned(),
            cpu: "c".to_owned(),
            compiler: "r".to_owned(),
            not_counted: Some("no plugin".to_owned()),
            operations,
            growth: Vec::new(),
            memory: None,
        }
    }

    #[test]
    fn goals_are_judged_by_the_sum_and_by_mode() {
        const GROUP: Group = Group {
            name: "test",
            parts: &[],
            lines: &[
                Line::of(&["a", "b"]).goals(&[("x", 5.0)]).kvm(12.0),
                Line::of(&["b"]).goals(&[("x", 2.5), ("y", 2.5)]).never_in_kvm(),
                Line::of(&["a", "absent"]).goals(&[("x", 1.0)]),
                Line::of(&["a"]).metric(Metric::Tlbis).goals(&[("x", 4.0)]).peers(8.0).floor(1.0),
                Line::of(&["b"]).metric(Metric::Tlbis).goals(&[("x", 4.0)]),
            ],
            equal: &[],
        };
        let operations =
            vec![operation("a", "x", 3.5, Some(2.0)), operation("b", "x", 2.5, None), operation("b", "y", 3.0, None)];
        let (text, missed) = table(&report(operations), &GROUP);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a", "+", "b", "x", "6.000", "5", "missed", "12", "2.0"]);
        assert_eq!(lines[2], ["b", "x", "2.500", "2.5", "met", "never"]);
        assert_eq!(lines[3], ["b", "y", "3.000", "2.5", "missed", "never"]);
        assert_eq!(lines[4], ["a:", "TLBIs", "x", "2.000", "4", "met", "1", "8", "4.0"]);
        assert_eq!((lines.len(), missed), (5, 2));
    }

    #[test]
    fn what_was_not_counted_is_no_zero() {
        let text = kinds(&report(vec![operation("a", "x", 3.5, Some(0.0))]));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a", "x", "page", "3.50", "-", "-", "-", "-", "0.00", "-", "-", "-"]);
        assert!(text.ends_with("were counted: no plugin\n"));
    }
}
