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
    use std::boxed::Box;
    use std::vec::Vec;

    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};
    use loom::thread::ThreadId;

    use super::Ordering;

    /// An entry or a word of a log: loom's atomic, with each thread's last load on record.
    ///
    /// Loom looks for a race with the *last* access only. A thread that loads a word and later stores to it, as every walk that
    /// locks does, has by its own load hidden the loads of all others: the store would never be tried before those. So each
    /// thread's loads also touch a mark of that thread's own, and who stores touches the marks of all others.
    #[derive(Debug)]
    pub struct Word {
        word: AtomicU64,
        marks: Box<[AtomicU64]>,
        /// Whose mark is which: the threads that have loaded, in that order.
        readers: std::sync::Mutex<Vec<ThreadId>>,
    }

    /// More threads than any test has.
    const MAX_READERS: usize = 4;

    impl Word {
        /// As `core`'s.
        pub fn new(value: u64) -> Self {
            Self {
                word: AtomicU64::new(value),
                marks: (0..MAX_READERS).map(|_| AtomicU64::new(0)).collect(),
                readers: std::sync::Mutex::default(),
            }
        }

        /// The readers so far. Cloned: no lock is held when loom switches threads.
        fn readers(&self, joining: Option<ThreadId>) -> Vec<ThreadId> {
            let mut readers = self.readers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(reader) = joining
                && !readers.contains(&reader)
            {
                readers.push(reader);
            }
            readers.clone()
        }

        fn about_to_store(&self) {
            let this = loom::thread::current().id();
            for (mark, reader) in self.marks.iter().zip(self.readers(None)) {
                if reader != this {
                    mark.fetch_or(0, Ordering::Relaxed);
                }
            }
        }

        /// As `core`'s.
        pub fn load(&self, ordering: Ordering) -> u64 {
            let this = loom::thread::current().id();
            for (mark, reader) in self.marks.iter().zip(self.readers(Some(this))) {
                if reader == this {
                    mark.load(Ordering::Relaxed);
                }
            }
            self.word.load(ordering)
        }

        /// What it holds, for the one who holds the lock under which alone it is written.
        pub(crate) fn load_owned(&self) -> u64 {
            self.word.load(Ordering::Relaxed)
        }

        /// As `core`'s.
        pub fn store(&self, value: u64, ordering: Ordering) {
            self.about_to_store();
            self.word.store(value, ordering);
        }

        /// As `core`'s.
        pub fn swap(&self, value: u64, ordering: Ordering) -> u64 {
            self.about_to_store();
            self.word.swap(value, ordering)
        }

        /// As `core`'s.
        pub fn fetch_or(&self, value: u64, ordering: Ordering) -> u64 {
            self.about_to_store();
            self.word.fetch_or(value, ordering)
        }

        /// As `core`'s.
        pub fn fetch_and(&self, value: u64, ordering: Ordering) -> u64 {
            self.about_to_store();
            self.word.fetch_and(value, ordering)
        }

        /// As `core`'s.
        pub fn compare_exchange(&self, old: u64, new: u64, done: Ordering, not: Ordering) -> Result<u64, u64> {
            self.about_to_store();
            self.word.compare_exchange(old, new, done, not)
        }
    }

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
#[cfg(loom)]
pub use imp::Word;
pub(crate) use imp::*;

/// What `word` holds, for the one who holds the lock under which alone it is written.
#[inline(always)]
pub(crate) fn load_owned(word: &Word) -> u64 {
    #[cfg(loom)]
    return word.load_owned();
    #[cfg(not(loom))]
    word.load(Ordering::Relaxed)
}

/// The same of a flag. To loom it is a read-modify-write of nothing, so that it does not hide another thread's load.
#[inline(always)]
pub(crate) fn load_owned_flag(flag: &AtomicBool) -> bool {
    if cfg!(loom) { flag.fetch_or(false, Ordering::Relaxed) } else { flag.load(Ordering::Relaxed) }
}

/// A 64-bit atomic as it appears in the interface: `core`'s, or one on loom's in a loom build.
#[cfg(not(loom))]
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
