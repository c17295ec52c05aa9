//! The library on a host, against the modelled machine: one module a subject, one program to link.

mod caches;
mod corrupt;
mod dirty_logging;
mod faults;
mod flat_map;
mod hostile;
mod invalidation;
mod operations;
mod races;
mod reclaim;
mod recycled;
mod staged_memory;
mod stalls;
mod starved;
mod support;
mod tables;
mod threads;
mod vmid;
