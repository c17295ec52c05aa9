//! The library on the modelled MMU: machines whose TLBs hold whatever the architecture lets them hold. What must never
//! happen ends a test, with the trail of events that led to it.

mod aging;
mod blocks;
mod caches;
mod churn;
mod dirty;
mod dirty_log_scenario;
#[path = "../support/features.rs"]
mod features;
mod granules;
mod guests;
mod lifetime;
mod page_fault_scenario;
mod permissions;
mod rounds;
mod support;
mod vmids;
