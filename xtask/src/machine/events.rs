//! What an image reports while it runs: one JSON object per line of `events.jsonl`.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};
use thiserror::Error;

/// One line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// A sign of life.
    Progress(Progress),
    /// An on-target test that ended.
    Claim(Claim),
    /// What an operation costs.
    Cost(Cost),
    /// What one costs where there is more or less of something.
    Point(Point),
    /// What tables take of memory.
    Memory(Memory),
    /// The image's last words.
    Panic(Panic),
    /// The main job's whole report, its last event.
    Report(Map<String, Value>),
}

/// Where the image is, and any counters it wants to show.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Progress {
    pub(crate) phase: String,
    /// A `Number`: serde cannot take an `f64` out of a tagged enum when serde_json has arbitrary
    /// precision, which the defmt decoder turns on.
    pub(crate) seconds: Number,
    #[serde(flatten)]
    pub(crate) counters: Map<String, Value>,
}

/// Which CPU panicked, and why.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Panic {
    pub(crate) cpu: u64,
    pub(crate) message: String,
}

/// What an operation costs: the instructions that were counted for all of the units it was done to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Cost {
    pub(crate) name: String,
    /// Which way: how writes were tracked, what was in the tree.
    pub(crate) mode: String,
    /// What a unit is.
    pub(crate) per: String,
    pub(crate) units: NonZeroU64,
    pub(crate) instructions: u64,
    /// Its number in the counts of a plugin, if those hold it and nothing else.
    #[serde(default)]
    pub(crate) operation: Option<u64>,
    /// The number of the one that is taken off, if this is a difference.
    #[serde(default)]
    pub(crate) minus: Option<u64>,
    /// How many windows EL2 has opened and closed itself: those hold its own instructions, too.
    #[serde(default)]
    pub(crate) windows: u64,
}

/// A point of a curve: what an operation costs where there is `at` of something.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Point {
    pub(crate) curve: String,
    /// What there is more or less of.
    pub(crate) axis: String,
    pub(crate) at: u64,
    /// How many things it touches there, by kind; 0 for what is not its business.
    pub(crate) touched: Vec<u64>,
    pub(crate) instructions: u64,
    pub(crate) operation: u64,
    pub(crate) windows: u64,
}

/// What tables take of memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Memory {
    /// Tables below the root of a GiB full of pages.
    pub(crate) tables_per_gib: u64,
    /// What is kept beside each.
    pub(crate) metadata_bytes: u64,
    /// What was touched and unmapped, bit by bit; and the tables that were there for it, at most and at the end.
    pub(crate) touched_bytes: u64,
    pub(crate) peak_table_bytes: u64,
    pub(crate) table_bytes: u64,
}

/// One claim and whether the machine bore it out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) outcome: ClaimOutcome,
    #[serde(default)]
    pub(crate) detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClaimOutcome {
    Passed,
    Failed,
    /// The CPU model has not what it is about; the detail says what.
    Skipped,
}

/// A line that is no event.
#[derive(Debug, Error)]
#[error("the image wrote `{line}`, which is no event")]
pub(crate) struct BadEvent {
    line: String,
    source: serde_json::Error,
}

/// Reads one line.
pub(crate) fn parse(line: &str) -> Result<Event, BadEvent> {
    serde_json::from_str(line).map_err(|source| BadEvent { line: line.chars().take(200).collect(), source })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_is_read() {
        let progress = parse(r#"{"event":"progress","phase":"guest","seconds":3.5,"rounds":12}"#);
        let Event::Progress(progress) = progress.unwrap() else { panic!("not progress") };
        assert_eq!((progress.phase.as_str(), progress.seconds.as_f64()), ("guest", Some(3.5)));
        assert_eq!(progress.counters["rounds"], 12);

        let claim = parse(r#"{"event":"claim","name":"a","outcome":"failed","detail":"why"}"#);
        let Event::Claim(claim) = claim.unwrap() else { panic!("not a claim") };
        assert_eq!(claim.outcome, ClaimOutcome::Failed);
        let skipped =
            parse(r#"{"event":"claim","name":"a","outcome":"skipped","detail":"no 16K granule","milliseconds":1}"#);
        assert!(matches!(skipped, Ok(Event::Claim(Claim { outcome: ClaimOutcome::Skipped, .. }))));

        let cost = parse(r#"{"event":"cost","name":"a","mode":"b","per":"page","units":4,"instructions":10}"#);
        let Event::Cost(cost) = cost.unwrap() else { panic!("not a cost") };
        assert_eq!((cost.units.get(), cost.instructions), (4, 10));

        let panic = parse(r#"{"event":"panic","cpu":1,"message":"panicked at a.rs:1:2:\nas asked"}"#);
        let Event::Panic(panic) = panic.unwrap() else { panic!("not a panic") };
        assert_eq!(panic.cpu, 1);

        let report = parse(r#"{"event":"report","outcome":"powered-off","leaked":0,"seconds":2.5}"#);
        let Event::Report(report) = report.unwrap() else { panic!("not a report") };
        assert_eq!((&report["leaked"], &report["seconds"]), (&json!(0), &json!(2.5)));
        assert!(!report.contains_key("event"));
    }

    #[test]
    fn anything_else_is_an_error() {
        for line in [
            "",
            "{",
            "null",
            "[]",
            "\u{fffd}\u{fffd}",
            r#"{"phase":"guest"}"#,
            r#"{"event":"surprise"}"#,
            r#"{"event":"progress"}"#,
            r#"{"event":"progress","phase":7,"seconds":1}"#,
            r#"{"event":"claim","name":"a","outcome":"maybe"}"#,
            r#"{"event":"progress","phase":"guest","seconds":1} {}"#,
            r#"{"event":"cost","name":"a","mode":"b","per":"page","units":0,"instructions":10}"#,
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
