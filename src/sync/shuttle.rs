//! Under `cfg(shuttle)`: shuttle's atomics, and a lock that shuttle schedules.
//!
//! A [`Cell`] is a plain atomic behind a point at which shuttle may switch threads, so that who watches it can do so in one
//! piece with the access.

use core::sync::atomic::{self, Ordering};

pub(super) use super::checked_lock::{Lock, LockGuard};
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};

/// Shuttle may run another thread here.
pub(crate) fn point() {
    // Any access of an atomic of shuttle's is such a point. It is made at compile time: to make one is a long hash.
    const { AtomicBool::new(false) }.load(Ordering::Relaxed);
}

/// A 64-bit atomic; each access comes after a [`point`].
pub(super) struct Cell(atomic::AtomicU64);

impl Cell {
    pub(super) const fn new(value: u64) -> Self {
        Self(atomic::AtomicU64::new(value))
    }

    pub(super) fn load(&self, ordering: Ordering) -> u64 {
        self.0.load(ordering)
    }

    pub(super) fn store(&self, value: u64, ordering: Ordering) {
        self.0.store(value, ordering);
    }

    pub(super) fn swap(&self, value: u64, ordering: Ordering) -> u64 {
        self.0.swap(value, ordering)
    }

    pub(super) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, success, failure)
    }

    pub(super) fn fetch_or(&self, bits: u64, ordering: Ordering) -> u64 {
        self.0.fetch_or(bits, ordering)
    }

    pub(super) fn fetch_and(&self, bits: u64, ordering: Ordering) -> u64 {
        self.0.fetch_and(bits, ordering)
    }
}
