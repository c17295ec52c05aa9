//! On a machine: `core`'s atomics, `spin`'s lock.

pub(super) use core::sync::atomic::AtomicU64 as Cell;
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};

/// A mutual-exclusion lock; see [`spin::mutex::SpinMutex`].
pub(super) struct Lock<T>(spin::mutex::SpinMutex<T>);

/// Holds the lock until dropped.
pub(super) type LockGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;

impl<T> Lock<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(spin::mutex::SpinMutex::new(value))
    }

    #[inline(always)]
    pub(super) fn lock(&self) -> LockGuard<'_, T> {
        self.0.lock()
    }

    #[inline(always)]
    pub(super) fn try_lock(&self) -> Option<LockGuard<'_, T>> {
        self.0.try_lock()
    }
}
