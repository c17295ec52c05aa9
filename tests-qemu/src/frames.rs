//! Page frames: a pool that hands them out in random order, so that a guest's memory is nowhere contiguous and no
//! address is by chance the same on both sides of stage 2.
//!
//! The pool also reads and writes them: a frame's address is all that others keep.

use core::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use spin::Mutex;
use stage2::Pa;
use stage2_platform::{
    ram::Region,
    trace::{self, Mark},
};

use crate::memory::{self, PAGE_BYTES, PAGE_WORDS};

/// The frames of one region.
pub struct Frames {
    base: u64,
    /// All of them.
    memory: &'static [AtomicU64],
    free: Mutex<Free>,
}

/// The frames that are not in use: the first `count` of `addresses`, in no order.
struct Free {
    addresses: &'static [AtomicU64],
    count: usize,
    random: Rng,
}

impl Frames {
    /// A pool over all of `region`, but for what it takes to keep account of the rest.
    pub fn new(mut region: Region, seed: u64) -> Option<Self> {
        let account = (region.size() / PAGE_BYTES * size_of::<u64>() as u64).next_multiple_of(PAGE_BYTES);
        let addresses = memory::words(region.take(account, PAGE_BYTES)?);
        let base = region.start();
        let memory = memory::words(region);
        let count = memory.len() / PAGE_WORDS;
        for (index, address) in addresses.iter().take(count).enumerate() {
            address.store(base + index as u64 * PAGE_BYTES, Ordering::Relaxed);
        }
        let free = Mutex::new(Free { addresses, count, random: Rng::with_seed(seed) });
        Some(Self { base, memory, free })
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.memory.len() / PAGE_WORDS
    }

    /// How many are not in use.
    pub fn free(&self) -> usize {
        self.free.lock().count
    }

    /// A frame with any content, the caller's until he gives it back; `None` if all are in use.
    pub fn take(&self) -> Option<Pa> {
        let mut free = self.free.lock();
        let last = free.count.checked_sub(1)?;
        let chosen = free.random.usize(..=last);
        let taken = free.addresses[chosen].swap(free.addresses[last].load(Ordering::Relaxed), Ordering::Relaxed);
        free.count = last;
        Some(Pa::new(taken))
    }

    /// Takes a frame back.
    ///
    /// # Panics
    ///
    /// When more are given back than were taken.
    pub fn give_back(&self, frame: Pa) {
        let mut free = self.free.lock();
        assert!(free.count < self.total(), "a frame is given back twice");
        trace::mark(Mark::FrameFreed { frame: frame.raw(), bytes: PAGE_BYTES });
        free.addresses[free.count].store(frame.raw(), Ordering::Relaxed);
        free.count += 1;
    }

    /// The frame's words.
    ///
    /// # Panics
    ///
    /// When it is no frame of this pool.
    pub fn words(&self, frame: Pa) -> &'static [AtomicU64] {
        let first = frame.raw().wrapping_sub(self.base) as usize / size_of::<u64>();
        &self.memory[first..][..PAGE_WORDS]
    }
}
