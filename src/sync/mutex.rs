//! The lock, watched by [`probe`](super::probe) where there is somebody to watch.

use core::ops::{Deref, DerefMut};

use super::imp::{Lock, LockGuard};
use super::{const_unless_loom, probe};

/// A mutual-exclusion lock.
pub(crate) struct Mutex<T>(Lock<T>);

/// Holds the lock until dropped.
pub(crate) struct MutexGuard<'a, T> {
    /// First: who watches is told before another CPU can have the lock.
    _watched: probe::Holding,
    guard: LockGuard<'a, T>,
}

impl<T> Mutex<T> {
    const_unless_loom! {
        pub(crate) fn new(value: T) -> Self {
            Self(Lock::new(value))
        }
    }

    #[inline(always)]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.lock();
        MutexGuard { _watched: probe::locked(self), guard }
    }

    #[inline(always)]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.0.try_lock()?;
        Some(MutexGuard { _watched: probe::locked(self), guard })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
