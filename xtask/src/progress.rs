//! The one line that shows a machine at work.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::machine::events::{Event, Progress};

/// Counters shown beside the phase; more would not fit a line.
const COUNTERS_SHOWN: usize = 5;

/// A line on a terminal that renews itself; elsewhere, a line for each new phase.
pub(crate) struct ProgressLine {
    bar: ProgressBar,
    prefix: String,
    phase: String,
}

impl ProgressLine {
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        let bar = ProgressBar::new_spinner();
        let style =
            ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}").expect("the template is valid");
        bar.set_style(style);
        let prefix = prefix.into();
        bar.set_prefix(prefix.clone());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, prefix, phase: String::new() }
    }

    /// Shows what the image reported last.
    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::Progress(progress) => {
                if self.bar.is_hidden() && progress.phase != self.phase {
                    println!("{}: {}", self.prefix, progress.phase);
                }
                self.phase.clone_from(&progress.phase);
                self.bar.set_message(line(progress));
            }
            Event::Claim(claim) => self.bar.set_message(claim.name.clone()),
            Event::Cost(cost) => self.bar.set_message(format!("{} ({})", cost.name, cost.mode)),
            Event::Point(point) => self.bar.set_message(format!("{}, {}", point.curve, point.axis)),
            Event::Memory(_) => self.bar.set_message("memory"),
            Event::Panic(panic) => self.bar.set_message(format!("CPU {} panicked", panic.cpu)),
            Event::Report(_) => self.bar.set_message("report received"),
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn line(progress: &Progress) -> String {
    let seconds = progress.seconds.as_f64().unwrap_or_default();
    let mut line = format!("{}, {seconds:.0} s", progress.phase);
    let numbers = progress.counters.iter().filter(|(_, value)| matches!(value, Value::Number(_)));
    for (name, value) in numbers.take(COUNTERS_SHOWN) {
        line += &format!(", {} {value}", name.replace('_', " "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::events;

    #[test]
    fn the_line_names_the_phase_and_the_counters() {
        let event = events::parse(r#"{"event":"progress","phase":"guest","seconds":3.4,"dirty_rounds":12,"note":"x"}"#);
        let Ok(Event::Progress(progress)) = event else { panic!("not progress") };
        assert_eq!(line(&progress), "guest, 3 s, dirty rounds 12");
    }
}
