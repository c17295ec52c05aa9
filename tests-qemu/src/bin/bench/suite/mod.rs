//! The list of groups, and measuring one.

mod beside;
mod dirty;
mod faults;
mod footprint;
mod growth;
mod growth_cpus;
mod guest;
mod guest_code;
mod lab;
mod library;
mod meter;
mod report;
mod tracking;
mod turns;
mod upkeep;
mod vmids;

use alloc::string::String;

use stage2_platform::{ExitCode, args, cpus};

/// Operations that are measured together.
struct Group {
    name: &'static str,
    /// So many CPUs it takes; any number if none is said.
    cpus: Option<usize>,
    /// Sets the scenes, and reports each operation's cost.
    measure: fn() -> Result<(), String>,
}

const GROUPS: &[Group] = &[
    Group { name: "faults", cpus: Some(1), measure: faults::measure },
    Group { name: "library", cpus: Some(1), measure: library::measure },
    Group { name: "upkeep", cpus: Some(1), measure: upkeep::measure },
    Group { name: "vmids", cpus: Some(1), measure: vmids::measure },
    Group { name: "growth", cpus: Some(1), measure: growth::measure },
    Group { name: "growth-cpus", cpus: None, measure: growth_cpus::measure },
    Group { name: "memory", cpus: Some(1), measure: footprint::measure },
    Group { name: "dirty", cpus: Some(1), measure: dirty::measure },
    Group { name: "beside-scan", cpus: Some(2), measure: beside::measure },
];

/// The main function.
pub(crate) fn run() -> ExitCode {
    let wanted = args::get("group").unwrap_or_default();
    let Some(group) = GROUPS.iter().find(|group| group.name == wanted) else {
        defmt::error!("there is no group {}", wanted);
        return ExitCode::BadArguments;
    };
    if let Some(cpus) = group.cpus
        && cpus::count() != cpus
    {
        // One more would take its turn now and then, and be counted too.
        defmt::error!("{=str} is measured on {=u32} CPUs", group.name, cpus as u32);
        return ExitCode::BadArguments;
    }
    match (group.measure)() {
        Ok(()) => ExitCode::Good,
        Err(reason) => {
            defmt::error!("{=str}: {=str}", group.name, reason.as_str());
            ExitCode::Violation
        }
    }
}
