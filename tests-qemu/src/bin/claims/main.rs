//! The library's rules that the machine itself can show, one claim each.
//!
//! A claim is a sentence and a function. Where a rule protects against something, the claim has *twins*: the same scenario
//! with the mechanism taken away behind the library's back (`suite::lessened`). It passes only if the guest sees
//! the truth with the library as it is, and each twin is caught: the guest sees what is no longer so.
//!
//! Arguments: `claim=NAME` makes one claim, `list` lists all; without arguments all are made, in order. `without=dsb-ishst` and
//! `without=dsb-ish` keep such a barrier from the machine: no claim fails of that under QEMU, but who traces it must notice.
//! Needs three CPUs: two vCPUs, and one that is the hypervisor.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod suite;

#[cfg(target_os = "none")]
stage2_platform::main!(suite::run);

#[cfg(not(target_os = "none"))]
fn main() {}
