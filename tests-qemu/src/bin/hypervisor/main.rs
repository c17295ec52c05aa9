//! The main job: a small hypervisor, a guest on tables that the library owns, and a CPU that keeps house.
//!
//! The guest has all CPUs but the last, demand-paged from frames in random order. The last CPU moves the guest's memory to
//! other frames under it, poisons the old ones, and frees emptied tables. For a part of the run it logs the guest's stores, harvests
//! them into a replica, and freezes the guest now and then: replica and guest memory must be equal each time, and at the
//! guest's power-off. At the end every frame and table must be back in its pool.
//!
//! Arguments (`key=value`): `guest=builtin|linux`, `vcpus`, `memory` (MiB), `seconds` and `seed`; `blocks=1` for memory in blocks;
//! `tracking=write-protect|hardware|adaptive`, or as the library chooses; for `linux` `kernel=ADDRESS:LENGTH` and
//! `initrd=ADDRESS:LENGTH`, where the host has put them.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod job;

#[cfg(target_os = "none")]
stage2_platform::main!(job::run);

#[cfg(not(target_os = "none"))]
fn main() {}
