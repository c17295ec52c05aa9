//! Everything that is read of a run, from whatever bytes an image and its guest may have left: a fuzz target, and a test over what
//! the fuzzer has kept.
//!
//! No bytes are a panic, and none are a good run that do not say so field by field.

use std::time::Duration;

use serde_json::Value;

use crate::guest::console::Console;
use crate::machine::Ending;
use crate::machine::events::{self, Event};
use crate::machine::watchdog::Hang;
use crate::report::Report;
use crate::summary::summary;
use crate::verdict::{Evidence, Expected, Floor, judge};

/// Longest line that an error repeats, and some words.
const LONGEST_ERROR: usize = 4 * 200 + 100;

/// One run: how it ended, lines of events, a zero, and the guest's console. Returns how many lines that were.
pub(crate) fn run(bytes: &[u8]) -> u64 {
    let Some((&choices, text)) = bytes.split_first() else { return 0 };
    let text = String::from_utf8_lossy(text);
    let (reported, said) = text.split_once('\0').unwrap_or((&text, ""));
    let mut seen = Vec::new();
    for line in reported.lines() {
        match events::parse(line) {
            Ok(event) => seen.push(event),
            Err(error) => assert!(error.to_string().len() <= LONGEST_ERROR, "{error}"),
        }
    }
    let console = Console::read(said);
    let trouble = console.trouble.clone();
    let image = seen.iter().rev().find_map(|event| if let Event::Report(report) = event { Some(report) } else { None });
    let ending = match choices & 7 {
        0..=3 => Ending::Exited(0),
        4 => Ending::Exited(1),
        5 => Ending::Exited(2),
        6 => Ending::Signalled(11),
        _ => Ending::Hung(Hang::Silent(Duration::from_secs(30))),
    };
    let mut report = Report::new(image.cloned(), ending);
    report.add_console(&console);
    let evidence = Evidence {
        ending,
        report: image.map(|_| &report),
        guest_trouble: trouble.clone(),
        last_words: None,
        emulator_complaint: None,
    };
    let floor = Floor { dirty_rounds: u64::from(choices >> 4), ..Floor::default() };
    let failures = judge(&evidence, &Expected { vcpus: 2, checks: choices & 8 != 0, floor });
    if failures.is_empty() {
        let number = |path: &[&str]| report.get(path).and_then(Value::as_u64);
        assert_eq!((ending, trouble), (Ending::Exited(0), None));
        assert_eq!(report.get(&["outcome"]), Some(&Value::from("powered-off")));
        assert_eq!(report.get(&["replica", "equal"]), Some(&Value::from(true)));
        assert_eq!((number(&["violations"]), number(&["leaked"])), (Some(0), Some(0)));
        assert!(number(&["dirty", "rounds"]) >= Some(floor.dirty_rounds));
    }
    failures.iter().for_each(|failure| assert!(!failure.to_string().is_empty()));
    // Whatever its fields are: it is shown.
    let _shown = summary(&report);
    (seen.len() + said.lines().count()) as u64
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn what_the_fuzzer_has_kept_is_read_without_a_panic() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/report");
        let files = fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
        assert!(files.map(|bytes| run(&bytes)).sum::<u64>() > 0);
    }
}
