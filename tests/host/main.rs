//! The library on a host, against the modelled machine: one module a subject, one program to link.

mod aging;
mod caches;
mod corrupt;
mod corrupt_random;
mod corrupt_scene;
mod decoding;
mod dirty_logging;
mod faults;
#[path = "../support/features.rs"]
mod features;
mod hostile;
mod invalidation;
mod invalidation_lines;
mod kvm_regressions;
mod operations;
mod peers;
mod protocol_lines;
mod races;
mod reclaim;
mod recycled;
mod rollovers;
mod staged_memory;
mod stalls;
mod starved;
mod support;
mod tables;
mod threads;
mod tracking;
mod vmid;
mod watched;
mod working_set;
