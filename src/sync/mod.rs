//! CPU against CPU: the atomics, fences and the lock everything else is written with.
//!
//! On a machine these are `core`'s atomics and `spin`'s lock (`plain`). Under `cfg(loom)` and `cfg(shuttle)` they are those
//! checkers' own, so that the very same protocol code is explored in every interleaving, under loom with every value the
//! memory model allows. Both abort on spin loops, which is why the lock is swapped along with the atomics.
//!
//! [`Word`] and [`Mutex`] are made of these once more: with the feature `model` they tell who watches the thread
//! ([`probe`]), so that the modelled MMU sees each store to a table. Without it they are what they are made of.
//!
//! Where a store must be seen before a later load (and nowhere else) the code uses `fence(SeqCst)`, never SeqCst
//! accesses: checkers model the fence faithfully and the accesses not.

#[cfg(any(loom, shuttle))]
mod checked_lock;
#[cfg_attr(loom, path = "loom.rs")]
#[cfg_attr(shuttle, path = "shuttle.rs")]
#[cfg_attr(not(any(loom, shuttle)), path = "plain.rs")]
mod imp;
#[cfg(loom)]
mod loom_cell;
mod mutex;
#[cfg_attr(all(feature = "model", not(loom)), path = "probe.rs")]
#[cfg_attr(not(all(feature = "model", not(loom))), path = "no_probe.rs")]
pub(crate) mod probe;
mod word;

pub(crate) use core::sync::atomic::Ordering;
pub(crate) use imp::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
pub(crate) use mutex::{Mutex, MutexGuard};
pub use word::Word;

/// A memory barrier between CPUs.
#[inline(always)]
pub(crate) fn fence(ordering: Ordering) {
    imp::fence(ordering);
    probe::fence();
}

/// What `word` holds, for the one who holds the lock under which alone it is written.
#[inline(always)]
pub(crate) fn load_owned(word: &Word) -> u64 {
    word.load_owned()
}

/// The same of a set of bits. To loom it is a read-modify-write of nothing, so that it does not hide another thread's load.
#[inline(always)]
pub(crate) fn load_owned_bits(bits: &AtomicU64) -> u64 {
    if cfg!(loom) { bits.fetch_or(0, Ordering::Relaxed) } else { bits.load(Ordering::Relaxed) }
}

/// Stores to `word` as if nobody watched.
#[cfg(any(test, loom, feature = "model"))]
pub(crate) fn store_unwatched(word: &Word, value: u64) {
    word.store_unwatched(value);
}

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
