//! A word that the hardware or many CPUs read: a descriptor, or a word of a dirty bitmap.

use super::imp::Cell;
use super::{Ordering, const_unless_loom, probe};

/// A 64-bit atomic as it appears in the interface: `core`'s, or a checker's in a checker's build. With the feature `model` the
/// modelled MMU sees what is done to it.
#[repr(transparent)]
pub struct Word(Cell);

impl Word {
    const_unless_loom! {
        /// A word that holds `value`.
        pub fn new(value: u64) -> Self {
            Self(Cell::new(value))
        }
    }

    /// See [`core::sync::atomic::AtomicU64::load`].
    #[inline(always)]
    pub fn load(&self, ordering: Ordering) -> u64 {
        probe::look(self, ordering, || self.0.load(ordering))
    }

    /// What it holds, for the one who holds the lock under which alone it is written.
    #[inline(always)]
    pub(super) fn load_owned(&self) -> u64 {
        #[cfg(loom)]
        return self.0.load_owned();
        #[cfg(not(loom))]
        self.load(Ordering::Relaxed)
    }

    /// A store that nobody is told of.
    #[cfg(any(test, loom, feature = "model"))]
    pub(super) fn store_unwatched(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// See [`core::sync::atomic::AtomicU64::store`].
    #[inline(always)]
    pub fn store(&self, value: u64, ordering: Ordering) {
        probe::store(self, value, ordering, || self.0.store(value, ordering), || self.0.load(Ordering::Relaxed));
    }

    /// See [`core::sync::atomic::AtomicU64::swap`].
    #[inline(always)]
    pub fn swap(&self, value: u64, ordering: Ordering) -> u64 {
        probe::change(self, ordering, |_| Some(value), || self.0.swap(value, ordering))
    }

    /// See [`core::sync::atomic::AtomicU64::compare_exchange`].
    ///
    /// # Errors
    /// What the word holds, if that is not `current`.
    #[inline(always)]
    pub fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        let exchange = || match self.0.compare_exchange(current, new, success, failure) {
            Ok(old) | Err(old) => old,
        };
        let old = probe::change(self, success, |old| (old == current).then_some(new), exchange);
        if old == current { Ok(old) } else { Err(old) }
    }

    /// See [`core::sync::atomic::AtomicU64::fetch_or`].
    #[inline(always)]
    pub fn fetch_or(&self, bits: u64, ordering: Ordering) -> u64 {
        probe::change(self, ordering, |old| Some(old | bits), || self.0.fetch_or(bits, ordering))
    }

    /// See [`core::sync::atomic::AtomicU64::fetch_and`].
    #[inline(always)]
    pub fn fetch_and(&self, bits: u64, ordering: Ordering) -> u64 {
        probe::change(self, ordering, |old| Some(old & bits), || self.0.fetch_and(bits, ordering))
    }
}
