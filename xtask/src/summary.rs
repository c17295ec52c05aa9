//! A report for people: the fields that tell what happened, in a few lines.

use std::fmt::Write;

use serde_json::Value;

use crate::report::Report;

/// Title, then the fields under one path: each is `name value`.
const LINES: [(&str, &[&str]); 10] = [
    ("guest", &["guest"]),
    ("replica", &["replica"]),
    ("dirty log", &["dirty"]),
    ("blocks", &["blocks"]),
    ("throughput", &["throughput"]),
    ("faults", &["faults"]),
    ("walks", &["walks"]),
    ("tables", &["tables"]),
    ("TLB", &["tlb"]),
    ("host", &["host"]),
];

/// Single numbers, all on one line.
const NUMBERS: [&str; 4] = ["grace_periods", "stalls", "leaked", "violations"];

/// The report as aligned text.
pub(crate) fn summary(report: &Report) -> String {
    let mut text = String::new();
    let mut add = |title: &str, content: String| {
        if !content.is_empty() {
            writeln!(text, "  {title:<10} {content}").expect("a string takes any text");
        }
    };
    add("outcome", report.get(&["outcome"]).map(plain).unwrap_or_default());
    for (title, path) in LINES {
        add(title, report.get(path).map(plain).unwrap_or_default());
    }
    let numbers = NUMBERS.iter().filter_map(|name| {
        let value = report.get(&[name])?;
        Some(format!("{} {}", name.replace('_', " "), plain(value)))
    });
    add("totals", numbers.collect::<Vec<_>>().join(", "));
    text
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{} {}", name.replace('_', " "), plain(value));
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => match number.as_f64() {
            // A share, rather than a time or a rate.
            Some(fraction) if number.is_f64() && fraction <= 1.0 => format!("{fraction:.3}"),
            Some(fraction) if number.is_f64() => format!("{fraction:.1}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::machine::Ending;

    #[test]
    fn known_groups_are_lines_and_missing_ones_are_left_out() {
        let report = json!({
            "outcome": "powered-off",
            "faults": {"translation": 5, "spurious": 1},
            "blocks": {"split": 2, "share_after": 0.99951},
            "grace_periods": 7,
            "host": {"wall_seconds": 2.04},
        });
        let Value::Object(fields) = report else { unreachable!() };
        let text = summary(&Report::new(Some(fields), Ending::Exited(0)));
        assert_eq!(
            text,
            "  outcome    powered-off\n  \
               blocks     share after 1.000, split 2\n  \
               faults     spurious 1, translation 5\n  \
               host       wall seconds 2.0\n  \
               totals     grace periods 7\n"
        );
    }
}
