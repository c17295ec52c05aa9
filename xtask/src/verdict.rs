//! Whether a run of the main job was good: every way it can fail, each one line.

use serde::Deserialize;
use thiserror::Error;

use crate::machine::Ending;
use crate::machine::watchdog::Hang;
use crate::report::Report;

/// What a run has to show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// CPUs the guest must have used.
    pub(crate) vcpus: u32,
    /// Whether this guest makes checks of its own.
    pub(crate) checks: bool,
    /// The least work that makes the run worth anything.
    pub(crate) floor: Floor,
}

/// A run that did less than this proved nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Floor {
    /// Harvests of the dirty log.
    pub(crate) dirty_rounds: u64,
    /// Tables freed while the guest ran.
    pub(crate) tables_freed: u64,
    /// Migrations at whose end the replica was equal.
    pub(crate) equal: u64,
    /// How much of the memory that blocks mapped before it was logged blocks map again afterwards.
    pub(crate) blocks_kept: f64,
}

/// What was seen of a run.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) ending: Ending,
    /// The image's report with the guest's words, if there was one.
    pub(crate) report: Option<&'a Report>,
    /// The line with which the guest's kernel said it is in trouble.
    pub(crate) guest_trouble: Option<String>,
    /// The hypervisor's panic, or the last error it logged.
    pub(crate) last_words: Option<String>,
    /// QEMU's first complaint.
    pub(crate) emulator_complaint: Option<String>,
}

/// One thing that was wrong.
#[derive(Debug, Clone, PartialEq, Error)]
pub(crate) enum Failure {
    #[error("hang: {0}")]
    Hung(Hang),
    #[error("the hypervisor panicked: {0}")]
    Panicked(String),
    #[error("the hypervisor refused its arguments: {0}")]
    Refused(String),
    #[error("QEMU failed: {0}")]
    Emulator(String),
    #[error("the hypervisor left with exit code {code}: {why}")]
    ExitCode { code: i32, why: String },
    #[error("the hypervisor wrote no report")]
    NoReport,
    #[error("the report is incomplete: {0}")]
    BadReport(String),
    #[error("the guest's kernel is in trouble: {0}")]
    GuestTrouble(String),
    #[error("the guest's outcome is \"{0}\", not \"powered-off\"")]
    Outcome(String),
    #[error("{0} violations")]
    Violations(u64),
    #[error("the replica differs from guest memory")]
    Replica,
    #[error("{0} tables or frames leaked")]
    Leaked(u64),
    #[error("the guest failed {failed} of its {done} checks")]
    Checks { failed: u64, done: u64 },
    #[error("the guest made no checks")]
    NoChecks,
    #[error("the guest used {used} of {wanted} vCPUs")]
    Cpus { used: u64, wanted: u32 },
    #[error("too little happened: {what} is {seen}, not at least {wanted}")]
    Floor { what: &'static str, seen: u64, wanted: u64 },
    #[error("blocks map {after:.3} of memory after it was logged, and {before:.3} before")]
    BlocksLost { before: f64, after: f64 },
    #[error("blocks mapped nothing")]
    NoBlocks,
}

/// The report's fields that decide.
#[derive(Deserialize)]
struct Decisive {
    outcome: String,
    violations: u64,
    leaked: u64,
    replica: Replica,
    guest: Guest,
    dirty: Dirty,
    blocks: Blocks,
    tables: Tables,
}

#[derive(Deserialize)]
struct Replica {
    equal: bool,
}

#[derive(Deserialize)]
struct Guest {
    vcpus: Option<u64>,
    checks: Option<u64>,
    checks_failed: Option<u64>,
}

#[derive(Deserialize)]
struct Dirty {
    rounds: u64,
    equal: u64,
}

#[derive(Deserialize)]
struct Blocks {
    share_before: f64,
    share_after: f64,
}

#[derive(Deserialize)]
struct Tables {
    freed: u64,
}

/// Everything that was wrong, the cause before its consequences. Empty: the run was good.
pub(crate) fn judge(evidence: &Evidence<'_>, expected: &Expected) -> Vec<Failure> {
    let mut failures = Vec::new();
    failures.extend(evidence.guest_trouble.clone().map(Failure::GuestTrouble));
    match evidence.report {
        Some(report) => match Decisive::deserialize(report.to_value()) {
            Ok(decisive) => judge_report(&decisive, expected, &mut failures),
            Err(error) => failures.push(Failure::BadReport(error.to_string())),
        },
        // A machine that ended badly has no report to miss.
        None if evidence.ending == Ending::Exited(0) => failures.push(Failure::NoReport),
        None => {}
    }
    failures.extend(judge_ending(evidence, !failures.is_empty()));
    failures
}

fn judge_ending(evidence: &Evidence<'_>, explained: bool) -> Option<Failure> {
    let complaint = || evidence.emulator_complaint.clone();
    let why = || evidence.last_words.clone().or_else(complaint).unwrap_or("no reason given".into());
    match evidence.ending {
        Ending::Exited(0) => None,
        Ending::Exited(2) => Some(Failure::Panicked(why())),
        Ending::Exited(3) => Some(Failure::Refused(why())),
        // The report says already what code 1 stands for.
        Ending::Exited(1) if evidence.report.is_some() && explained => None,
        // QEMU leaves with 1 too, and has said why.
        Ending::Exited(1) if evidence.report.is_none() && complaint().is_some() => complaint().map(Failure::Emulator),
        Ending::Exited(code) => Some(Failure::ExitCode { code, why: why() }),
        Ending::Signalled(signal) => Some(Failure::Emulator(format!("ended by signal {signal}"))),
        Ending::Hung(hang) => Some(Failure::Hung(hang)),
    }
}

fn judge_report(report: &Decisive, expected: &Expected, failures: &mut Vec<Failure>) {
    if report.violations != 0 {
        failures.push(Failure::Violations(report.violations));
    }
    if report.outcome != "powered-off" {
        failures.push(Failure::Outcome(report.outcome.clone()));
    }
    if !report.replica.equal {
        failures.push(Failure::Replica);
    }
    if report.leaked != 0 {
        failures.push(Failure::Leaked(report.leaked));
    }
    judge_guest(&report.guest, expected, failures);
    let floor = expected.floor;
    for (what, seen, wanted) in [
        ("dirty.rounds", report.dirty.rounds, floor.dirty_rounds),
        ("dirty.equal", report.dirty.equal, floor.equal),
        ("tables.freed", report.tables.freed, floor.tables_freed),
    ] {
        if seen < wanted {
            failures.push(Failure::Floor { what, seen, wanted });
        }
    }
    failures.extend(judge_blocks(&report.blocks, floor.blocks_kept));
}

fn judge_blocks(blocks: &Blocks, kept: f64) -> Option<Failure> {
    let Blocks { share_before: before, share_after: after } = *blocks;
    if kept == 0.0 || (before > 0.0 && after >= kept * before) {
        return None;
    }
    Some(if before > 0.0 { Failure::BlocksLost { before, after } } else { Failure::NoBlocks })
}

fn judge_guest(guest: &Guest, expected: &Expected, failures: &mut Vec<Failure>) {
    let done = guest.checks.unwrap_or(0);
    let failed = guest.checks_failed.unwrap_or(0);
    if failed != 0 {
        failures.push(Failure::Checks { failed, done });
    }
    if expected.checks && (done == 0 || guest.checks_failed.is_none()) {
        failures.push(Failure::NoChecks);
    }
    match guest.vcpus {
        Some(used) if used < u64::from(expected.vcpus) => {
            failures.push(Failure::Cpus { used, wanted: expected.vcpus });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    const EXPECTED: Expected = Expected {
        vcpus: 3,
        checks: true,
        floor: Floor { dirty_rounds: 100, tables_freed: 1000, equal: 3, blocks_kept: 0.99 },
    };

    fn good() -> Value {
        json!({
            "outcome": "powered-off",
            "violations": 0,
            "leaked": 0,
            "replica": {"equal": true, "pages": 131_072},
            "guest": {"version": "Linux", "vcpus": 3, "checks": 399, "checks_failed": 0},
            "dirty": {"rounds": 100, "pages": 5, "equal": 3},
            "blocks": {"share_before": 0.9, "share_after": 0.9},
            "tables": {"freed": 1000},
        })
    }

    fn judge_value(report: Option<Value>, ending: Ending) -> Vec<Failure> {
        let report = report.map(|report| {
            let Value::Object(fields) = report else { unreachable!() };
            Report::new(Some(fields), ending)
        });
        let evidence = Evidence {
            ending,
            report: report.as_ref(),
            guest_trouble: None,
            last_words: None,
            emulator_complaint: None,
        };
        judge(&evidence, &EXPECTED)
    }

    /// The good report with one field changed, or taken out.
    fn judge_changed(path: &str, value: Option<Value>) -> Vec<Failure> {
        let mut report = good();
        let (parent, name) = path.rsplit_once('/').unwrap();
        let parent = report.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => drop(parent.insert(name.to_owned(), value)),
            None => drop(parent.remove(name)),
        }
        judge_value(Some(report), Ending::Exited(0))
    }

    #[test]
    fn a_good_run_has_no_failure() {
        assert_eq!(judge_value(Some(good()), Ending::Exited(0)), []);
    }

    #[test]
    fn each_bad_field_is_one_failure() {
        for (path, value, failure) in [
            ("/violations", json!(2), Failure::Violations(2)),
            ("/outcome", json!("reset"), Failure::Outcome("reset".into())),
            ("/replica/equal", json!(false), Failure::Replica),
            ("/leaked", json!(1), Failure::Leaked(1)),
            ("/guest/checks_failed", json!(4), Failure::Checks { failed: 4, done: 399 }),
            ("/guest/checks", json!(0), Failure::NoChecks),
            ("/guest/vcpus", json!(2), Failure::Cpus { used: 2, wanted: 3 }),
            ("/dirty/rounds", json!(99), Failure::Floor { what: "dirty.rounds", seen: 99, wanted: 100 }),
            ("/dirty/equal", json!(2), Failure::Floor { what: "dirty.equal", seen: 2, wanted: 3 }),
            ("/blocks/share_after", json!(0.875), Failure::BlocksLost { before: 0.9, after: 0.875 }),
            ("/blocks/share_before", json!(0.0), Failure::NoBlocks),
            ("/tables/freed", json!(0), Failure::Floor { what: "tables.freed", seen: 0, wanted: 1000 }),
        ] {
            assert_eq!(judge_changed(path, Some(value)), [failure], "{path}");
        }
    }

    #[test]
    fn as_many_blocks_as_before_but_for_the_hundredth_part_are_enough() {
        assert_eq!(judge_changed("/blocks/share_after", Some(json!(0.8915))), []);
        assert_eq!(judge_changed("/blocks/share_after", Some(json!(1.0))), []);
    }

    #[test]
    fn a_missing_or_mistyped_field_is_a_failure() {
        for path in [
            "/blocks",
            "/blocks/share_after",
            "/dirty/equal",
            "/violations",
            "/replica",
            "/replica/equal",
            "/leaked",
            "/guest",
            "/dirty",
            "/tables/freed",
        ] {
            assert!(matches!(judge_changed(path, None)[..], [Failure::BadReport(_)]), "{path}");
            let wrong = Some(json!("text"));
            assert!(matches!(judge_changed(path, wrong)[..], [Failure::BadReport(_)]), "{path}");
        }
        assert_eq!(judge_changed("/guest/checks_failed", None), [Failure::NoChecks]);
    }

    #[test]
    fn each_bad_ending_is_a_failure_even_with_a_good_report() {
        let hang = Hang::Silent(Duration::from_secs(30));
        for ending in [
            Ending::Exited(1),
            Ending::Exited(2),
            Ending::Exited(3),
            Ending::Exited(127),
            Ending::Signalled(11),
            Ending::Hung(hang),
        ] {
            assert_eq!(judge_value(Some(good()), ending).len(), 1, "{ending:?}");
            assert_eq!(judge_value(None, ending).len(), 1, "{ending:?}");
        }
        assert_eq!(judge_value(None, Ending::Exited(0)), [Failure::NoReport]);
    }

    #[test]
    fn an_exit_code_that_the_report_explains_is_not_told_twice() {
        let mut report = good();
        report["violations"] = json!(1);
        assert_eq!(judge_value(Some(report), Ending::Exited(1)), [Failure::Violations(1)]);
    }

    #[test]
    fn trouble_in_the_guest_is_a_failure_by_itself() {
        let Value::Object(fields) = good() else { unreachable!() };
        let report = Report::new(Some(fields), Ending::Exited(0));
        let evidence = Evidence {
            ending: Ending::Exited(0),
            report: Some(&report),
            guest_trouble: Some("Kernel panic".into()),
            last_words: None,
            emulator_complaint: None,
        };
        assert_eq!(judge(&evidence, &EXPECTED), [Failure::GuestTrouble("Kernel panic".into())]);
    }

    #[test]
    fn the_reason_given_is_the_one_that_is_known() {
        let mut evidence = Evidence {
            ending: Ending::Exited(1),
            report: None,
            guest_trouble: None,
            last_words: None,
            emulator_complaint: Some("unable to find CPU model 'x'".into()),
        };
        let failures = judge(&evidence, &EXPECTED);
        assert_eq!(failures, [Failure::Emulator("unable to find CPU model 'x'".into())]);
        evidence.ending = Ending::Exited(2);
        evidence.last_words = Some("ERROR panicked".into());
        assert_eq!(judge(&evidence, &EXPECTED), [Failure::Panicked("ERROR panicked".into())]);
    }
}
