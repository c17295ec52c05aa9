//! A lock that a checker schedules: loom's or shuttle's, which have one interface.

#[cfg(loom)]
use loom::sync;
#[cfg(shuttle)]
use shuttle::sync;

use super::const_unless_loom;

/// A mutual-exclusion lock that the checker schedules.
pub(super) struct Lock<T>(sync::Mutex<T>);

/// Holds the lock until dropped.
pub(super) type LockGuard<'a, T> = sync::MutexGuard<'a, T>;

impl<T> Lock<T> {
    const_unless_loom! {
        pub(super) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }
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
