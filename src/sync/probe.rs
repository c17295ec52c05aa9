//! What a thread does to words and locks, told to whoever watches it (feature `model`).
//!
//! A thread that has taken a [`Seat`] is a CPU of a modelled machine. Each of its accesses is one step together with what the
//! watcher notes of it: the watcher calls the access. A thread without a seat is watched by nobody.

use core::cell::RefCell;
use core::marker::PhantomData;
use std::sync::Arc;

use super::{Ordering, Word};
#[cfg(shuttle)]
use shuttle::thread_local;
#[cfg(not(shuttle))]
use std::thread_local;

/// Who watches the CPUs of a modelled machine. Words and locks are known by their addresses.
pub(crate) trait Watcher: Send + Sync {
    /// A word is looked at.
    fn look(&self, cpu: u16, word: usize, ordering: Ordering, load: &mut dyn FnMut() -> u64) -> u64;
    /// A word is changed, to what `new` makes of the old value if it makes something. `change` gives what was there.
    fn change(
        &self,
        cpu: u16,
        word: usize,
        ordering: Ordering,
        new: &mut dyn FnMut(u64) -> Option<u64>,
        change: &mut dyn FnMut() -> u64,
    ) -> u64;
    /// A barrier between CPUs.
    fn fence(&self, cpu: u16);
    /// A lock was taken.
    fn locked(&self, cpu: u16, lock: usize);
    /// A lock is about to be given back.
    fn unlocks(&self, cpu: u16, lock: usize);
    /// The CPU has announced that it holds nothing it found in a table.
    fn section_ended(&self, cpu: u16);
}

type Seated = (u16, Arc<dyn Watcher>);

thread_local! {
    static SEAT: RefCell<Option<Seated>> = RefCell::new(None);
}

/// This thread is a CPU of a modelled machine until this is dropped.
#[must_use = "the thread is a CPU for as long as this lives"]
pub struct Seat {
    before: Option<Seated>,
    not_send: PhantomData<*const ()>,
}

impl Seat {
    pub(crate) fn take(cpu: u16, watcher: Arc<dyn Watcher>) -> Self {
        let before = SEAT.with(|seat| seat.borrow_mut().replace((cpu, watcher)));
        Self { before, not_send: PhantomData }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        SEAT.with(|seat| *seat.borrow_mut() = self.before.take());
    }
}

/// The CPU that this thread is.
pub(crate) fn this_cpu() -> Option<u16> {
    SEAT.with(|seat| seat.borrow().as_ref().map(|&(cpu, _)| cpu))
}

fn watch<T>(tell: impl FnOnce(u16, &dyn Watcher) -> T) -> Option<T> {
    SEAT.with(|seat| seat.borrow().as_ref().map(|(cpu, watcher)| tell(*cpu, &**watcher)))
}

/// Another thread may run here; not in the midst of what nobody watches, which is one step of the modelled MMU.
fn point() {
    #[cfg(shuttle)]
    if this_cpu().is_some() {
        super::imp::point();
    }
}

fn address(word: &Word) -> usize {
    core::ptr::from_ref(word).addr()
}

pub(super) fn look(word: &Word, ordering: Ordering, mut load: impl FnMut() -> u64) -> u64 {
    point();
    watch(|cpu, watcher| watcher.look(cpu, address(word), ordering, &mut load)).unwrap_or_else(load)
}

pub(super) fn store(word: &Word, value: u64, ordering: Ordering, store: impl Fn(), load: impl Fn() -> u64) {
    point();
    let mut change = || {
        let old = load();
        store();
        old
    };
    if watch(|cpu, watcher| watcher.change(cpu, address(word), ordering, &mut |_| Some(value), &mut change)).is_none() {
        store();
    }
}

pub(super) fn change(
    word: &Word,
    ordering: Ordering,
    mut new: impl FnMut(u64) -> Option<u64>,
    mut change: impl FnMut() -> u64,
) -> u64 {
    point();
    watch(|cpu, watcher| watcher.change(cpu, address(word), ordering, &mut new, &mut change)).unwrap_or_else(change)
}

pub(super) fn fence() {
    watch(|cpu, watcher| watcher.fence(cpu));
}

/// A lock is held; tells when it is given back.
pub(crate) struct Holding(usize);

pub(super) fn locked<T>(lock: &super::Mutex<T>) -> Holding {
    let lock = core::ptr::from_ref(lock).addr();
    watch(|cpu, watcher| watcher.locked(cpu, lock));
    Holding(lock)
}

impl Drop for Holding {
    fn drop(&mut self) {
        watch(|cpu, watcher| watcher.unlocks(cpu, self.0));
    }
}

/// Does `f` as if nobody watched.
pub(crate) fn unwatched<T>(f: impl FnOnce() -> T) -> T {
    /// Puts the seat back, also if `f` unwinds.
    struct Back(Option<Seated>);
    impl Drop for Back {
        fn drop(&mut self) {
            SEAT.with(|seat| *seat.borrow_mut() = self.0.take());
        }
    }
    let _back = Back(SEAT.with(|seat| seat.borrow_mut().take()));
    f()
}

/// This thread's read section has ended.
pub(crate) fn section_ended() {
    watch(|cpu, watcher| watcher.section_ended(cpu));
}
