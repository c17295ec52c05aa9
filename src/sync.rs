//! CPU against CPU: the atomics, fences and the lock everything else is written with.
//!
//! On a machine these are `core`'s atomics and `spin`'s lock. Under `cfg(loom)` they are loom's, so that the very
//! same protocol code is explored in every interleaving and with every value the memory model allows. Loom aborts on
//! spin loops, which is why the lock is swapped along with the atomics.
//!
//! Where a store must be seen before a later load (and nowhere else) the code uses `fence(SeqCst)`, never SeqCst
//! accesses: checkers model the fence faithfully and the accesses not.

#[cfg(not(loom))]
mod imp {
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};

    /// A mutual-exclusion lock; see [`spin::mutex::SpinMutex`].
    pub(crate) struct Mutex<T>(spin::mutex::SpinMutex<T>);

    /// Holds the lock until dropped.
    pub(crate) type MutexGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(spin::mutex::SpinMutex::new(value))
        }

        #[inline(always)]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock()
        }

        #[inline(always)]
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock()
        }
    }
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};

    /// A mutual-exclusion lock that loom schedules.
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    /// Holds the lock until dropped.
    pub(crate) type MutexGuard<'a, T> = loom::sync::MutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            }
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }
}

pub(crate) use core::sync::atomic::Ordering;
pub(crate) use imp::*;

/// What `word` holds, for the one who holds the lock under which alone it is written.
///
/// To loom it is a read-modify-write of nothing. Loom looks for a race with the *last* access only: were this a load, the
/// store that follows would never be tried before another thread's earlier load.
#[inline(always)]
pub(crate) fn load_owned(word: &Word) -> u64 {
    if cfg!(loom) { word.fetch_or(0, Ordering::Relaxed) } else { word.load(Ordering::Relaxed) }
}

/// The same of a flag.
#[inline(always)]
pub(crate) fn load_owned_flag(flag: &AtomicBool) -> bool {
    if cfg!(loom) { flag.fetch_or(false, Ordering::Relaxed) } else { flag.load(Ordering::Relaxed) }
}

/// A 64-bit atomic as it appears in the interface: `core`'s, or loom's in a loom build.
pub type Word = AtomicU64;

/// Declares a constructor that is `const` except under loom, whose atomics cannot be made at compile time.
macro_rules! const_unless_loom {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        #[cfg(not(loom))]
        $(#[$meta])*
        $vis const fn $name($($arg: $ty),*) -> $ret $body
        #[cfg(loom)]
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) -> $ret $body
    };
}
pub(crate) use const_unless_loom;
