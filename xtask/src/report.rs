//! A run's report: what the image measured, what the guest said, and the host's side, as one JSON
//! object.
//!
//! The image's fields are kept as they come, so a new counter needs no change here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::guest::console::Console;
use crate::machine::Ending;

/// The host's side of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Host {
    pub(crate) emulator: String,
    pub(crate) cpu: String,
    pub(crate) guest: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) seconds: u64,
    pub(crate) seed: u64,
    pub(crate) blocks: bool,
    pub(crate) wall_seconds: f64,
}

/// The whole report.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Report(Map<String, Value>);

impl Report {
    /// What the image reported; a run that ended without a report says how it ended instead.
    pub(crate) fn new(image: Option<Map<String, Value>>, ending: Ending) -> Self {
        Self(image.unwrap_or_else(|| {
            let outcome = match ending {
                Ending::Hung(_) => "hung",
                Ending::Exited(2) => "panicked",
                Ending::Exited(_) | Ending::Signalled(_) => "no-report",
            };
            Map::from_iter([("outcome".to_owned(), outcome.into())])
        }))
    }

    /// Adds what the guest said under `guest`, over the image's own fields there.
    pub(crate) fn add_console(&mut self, console: &Console) {
        if *console == Console::default() {
            return;
        }
        let guest = self.0.entry("guest").or_insert_with(|| json!({}));
        let Value::Object(guest) = guest else { return };
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                guest.insert(name.to_owned(), value);
            }
        };
        set("version", console.version.clone().map(Value::from));
        set("vcpus", console.vcpus.map(Value::from));
        set("checks", console.checks.map(|checks| checks.done.into()));
        set("checks_failed", console.checks.map(|checks| checks.failed.into()));
    }

    /// Adds the host's fields and what was found wrong; `clean` says that nothing was.
    pub(crate) fn add_host(&mut self, host: &Host, failures: &[String]) -> Result<()> {
        self.0.insert("host".to_owned(), serde_json::to_value(host)?);
        self.0.insert("failures".to_owned(), failures.into());
        self.0.insert("clean".to_owned(), failures.is_empty().into());
        Ok(())
    }

    /// The whole object.
    pub(crate) fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// A field by its path, e.g. `["guest", "checks"]`.
    pub(crate) fn get(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(*first)?, |value, key| value.get(key))
    }
}

/// An error unless a file can be put there: better now than after the run.
pub(crate) fn check_place(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let there = folder.is_none_or(Path::is_dir) && !path.is_dir();
    ensure!(there, "no report can be written to {}", path.display());
    Ok(())
}

/// Writes any report as indented JSON.
pub(crate) fn write(path: &Path, report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write the report {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::console::Checks;

    #[test]
    fn the_guests_words_join_the_images_fields() {
        let image = json!({"outcome": "powered-off", "guest": {"exits": 5, "vcpus": 0}});
        let Value::Object(image) = image else { unreachable!() };
        let mut report = Report::new(Some(image), Ending::Exited(0));
        report.add_console(&Console {
            version: Some("Linux version 6".to_owned()),
            vcpus: Some(3),
            checks: Some(Checks { done: 7, failed: 0 }),
            trouble: None,
        });
        assert_eq!(report.get(&["guest", "exits"]), Some(&json!(5)));
        assert_eq!(report.get(&["guest", "vcpus"]), Some(&json!(3)));
        assert_eq!(report.get(&["guest", "checks"]), Some(&json!(7)));
        assert_eq!(report.get(&["outcome"]), Some(&json!("powered-off")));
        assert_eq!(report.get(&["guest", "none"]), None);
    }

    #[test]
    fn a_silent_guest_leaves_the_images_fields_alone() {
        let Value::Object(image) = json!({"guest": {"checks": 9}}) else { unreachable!() };
        let mut report = Report::new(Some(image), Ending::Exited(0));
        report.add_console(&Console::default());
        assert_eq!(report.get(&["guest", "checks"]), Some(&json!(9)));
    }

    #[test]
    fn without_the_images_report_the_ending_is_the_outcome() {
        let outcome = |ending| Report::new(None, ending).get(&["outcome"]).cloned();
        assert_eq!(outcome(Ending::Exited(2)), Some(json!("panicked")));
        assert_eq!(outcome(Ending::Exited(0)), Some(json!("no-report")));
    }

    #[test]
    fn a_place_without_a_folder_is_refused() {
        assert!(check_place(Path::new("report.json")).is_ok());
        assert!(check_place(Path::new("/nowhere/report.json")).is_err());
        assert!(check_place(Path::new("/")).is_err());
    }
}
