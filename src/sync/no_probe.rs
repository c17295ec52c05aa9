//! Nobody watches: every function is what it is given, or nothing.

use super::{Ordering, Word};

/// A lock is held.
pub(crate) struct Holding;

#[inline(always)]
pub(super) fn look(_word: &Word, _ordering: Ordering, load: impl FnOnce() -> u64) -> u64 {
    load()
}

#[inline(always)]
pub(super) fn store(_word: &Word, _value: u64, _ordering: Ordering, store: impl FnOnce(), _load: impl FnOnce() -> u64) {
    store();
}

#[inline(always)]
pub(super) fn change(
    _word: &Word,
    _ordering: Ordering,
    _new: impl FnOnce(u64) -> Option<u64>,
    change: impl FnOnce() -> u64,
) -> u64 {
    change()
}

#[inline(always)]
pub(super) fn fence() {}

#[inline(always)]
pub(super) fn locked<T>(_lock: &super::Mutex<T>) -> Holding {
    Holding
}

/// This thread's read section has ended.
#[inline(always)]
pub(crate) fn section_ended() {}
