//! Whole machines under shuttle: guests on the modelled MMU, movers, harvesters and the reclaimer, in random and in
//! priority-driven (PCT) schedules.
//!
//! Loom explores small scenes completely and knows no MMU; here the scenes are larger, the schedules are samples, and the MMU does the
//! worst it may at every step: it needs no thread of its own, since its TLBs hold all that any schedule of walkers could have put there.
//! A schedule that fails is printed by shuttle and can be replayed.
//!
//! `STAGE2_SCHEDULES` is how many schedules each test tries; the long form is `cargo xtask soak`.
#![cfg(shuttle)]

mod aging;
mod blocks;
#[path = "../support/features.rs"]
mod features;
mod harvests;
mod permissions;
mod scene;
mod trees;
