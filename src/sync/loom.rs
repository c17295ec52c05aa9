//! Under `cfg(loom)`: loom's atomics, and a lock that loom schedules.

pub(super) use super::loom_cell::Cell;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};

/// A mutual-exclusion lock that loom schedules.
pub(super) struct Lock<T>(loom::sync::Mutex<T>);

/// Holds the lock until dropped.
pub(super) type LockGuard<'a, T> = loom::sync::MutexGuard<'a, T>;

impl<T> Lock<T> {
    pub(super) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(super) fn lock(&self) -> LockGuard<'_, T> {
        match self.0.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    pub(super) fn try_lock(&self) -> Option<LockGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}
