//! Page frames: a pool that hands them out in random order, so that a guest's memory is nowhere contiguous and no
//! address is by chance the same on both sides of stage 2. For blocks it has whole runs, which are as random among each other.
//!
//! Single frames come from a few runs that were broken up. A run all of whose frames came back is a run again, unless
//! single frames are few: they are to stay in no order.
//!
//! The pool also reads and writes them: a frame's address is all that others keep.

mod set;

use core::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use spin::Mutex;
use stage2::Pa;
use stage2_platform::{
    ram::Region,
    trace::{self, Mark},
};

use crate::memory::{self, PAGE_BYTES, PAGE_WORDS};
use set::Set;

/// The frames of a run: what a block of level 2 maps.
pub const RUN_PAGES: usize = 512;
/// The bytes of a run, which is aligned to them.
pub const RUN_BYTES: u64 = RUN_PAGES as u64 * PAGE_BYTES;

/// While there are fewer single frames than this, runs are broken up for more.
const SCRAMBLED: usize = 4 * RUN_PAGES;
/// From so many on, runs are joined again: far enough above, so that one frame back and forth does not break and join.
const PLENTY: usize = 2 * SCRAMBLED + RUN_PAGES;

/// The frames of one region.
pub struct Frames {
    base: u64,
    /// All of them.
    memory: &'static [AtomicU64],
    free: Mutex<Free>,
}

/// The frames that are not in use. Frames and runs are numbered from the run that `base` is in.
struct Free {
    singles: Set,
    /// Runs that are not broken up.
    runs: Set,
    /// Of each run, how many of its frames are among the single ones.
    counts: &'static [AtomicU64],
    random: Rng,
}

impl Frames {
    /// A pool over all of `region`, but for what it takes to keep account of the rest.
    pub fn new(mut region: Region, seed: u64) -> Option<Self> {
        // It may begin and end within a run.
        let runs = (region.size() / RUN_BYTES) as usize + 2;
        let frames = runs * RUN_PAGES;
        let mut words = |count: usize| {
            let bytes = ((count * size_of::<u64>()) as u64).next_multiple_of(PAGE_BYTES);
            Some(&memory::words(region.take(bytes, PAGE_BYTES)?)[..count])
        };
        let singles = Set::new(words(frames)?, words(frames)?);
        let whole = Set::new(words(runs)?, words(runs)?);
        let counts = words(runs)?;
        let base = region.start();
        let memory = memory::words(region);
        let mut free = Free { singles, runs: whole, counts, random: Rng::with_seed(seed) };
        let first = (base % RUN_BYTES / PAGE_BYTES) as usize;
        let end = first + memory.len() / PAGE_WORDS;
        let mut number = first;
        while number < end {
            if number.is_multiple_of(RUN_PAGES) && number + RUN_PAGES <= end {
                free.runs.insert(number / RUN_PAGES);
                number += RUN_PAGES;
            } else {
                free.add(number);
                number += 1;
            }
        }
        Some(Self { base, memory, free: Mutex::new(free) })
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.memory.len() / PAGE_WORDS
    }

    /// How many are not in use.
    pub fn free(&self) -> usize {
        let free = self.free.lock();
        free.singles.len() + free.runs.len() * RUN_PAGES
    }

    /// A frame with any content, the caller's until he gives it back; `None` if all are in use.
    pub fn take(&self) -> Option<Pa> {
        self.free.lock().take().map(|number| self.address(number))
    }

    /// A run of frames with any content, the caller's until he gives it back, whole or frame by frame; `None` if there is no
    /// whole one.
    pub fn take_run(&self) -> Option<Pa> {
        self.free.lock().take_run().map(|run| self.address(run * RUN_PAGES))
    }

    /// Takes a frame back.
    ///
    /// # Panics
    ///
    /// When it is given back twice.
    pub fn give_back(&self, frame: Pa) {
        let mut free = self.free.lock();
        trace::mark(Mark::FrameFreed { frame: frame.raw(), bytes: PAGE_BYTES });
        let number = self.number(frame);
        assert!(free.add(number), "a frame is given back twice");
        free.join_if_plenty(number / RUN_PAGES);
    }

    /// Takes a whole run back.
    ///
    /// # Panics
    ///
    /// When it is given back twice.
    pub fn give_back_run(&self, run: Pa) {
        let mut free = self.free.lock();
        trace::mark(Mark::FrameFreed { frame: run.raw(), bytes: RUN_BYTES });
        assert!(free.runs.insert(self.number(run) / RUN_PAGES), "a run is given back twice");
    }

    /// The frame's words.
    ///
    /// # Panics
    ///
    /// When it is no frame of this pool.
    pub fn words(&self, frame: Pa) -> &'static [AtomicU64] {
        &self.words_from(frame)[..PAGE_WORDS]
    }

    /// The run's words.
    ///
    /// # Panics
    ///
    /// When it is no run of this pool.
    pub fn run_words(&self, run: Pa) -> &'static [AtomicU64] {
        &self.words_from(run)[..RUN_PAGES * PAGE_WORDS]
    }

    fn words_from(&self, frame: Pa) -> &'static [AtomicU64] {
        let first = frame.raw().wrapping_sub(self.base) as usize / size_of::<u64>();
        &self.memory[first..]
    }

    fn origin(&self) -> u64 {
        self.base / RUN_BYTES * RUN_BYTES
    }

    fn number(&self, frame: Pa) -> usize {
        (frame.raw().wrapping_sub(self.origin()) / PAGE_BYTES) as usize
    }

    fn address(&self, number: usize) -> Pa {
        Pa::new(self.origin() + number as u64 * PAGE_BYTES)
    }
}

impl Free {
    /// One more single frame; `false` if it is one.
    fn add(&mut self, number: usize) -> bool {
        let is_new = self.singles.insert(number);
        self.counts[number / RUN_PAGES].fetch_add(u64::from(is_new), Ordering::Relaxed);
        is_new
    }

    fn take(&mut self) -> Option<usize> {
        while self.singles.len() < SCRAMBLED
            && let Some(run) = self.runs.take(&mut self.random)
        {
            (run * RUN_PAGES..(run + 1) * RUN_PAGES).for_each(|number| {
                self.add(number);
            });
        }
        let number = self.singles.take(&mut self.random)?;
        self.counts[number / RUN_PAGES].fetch_sub(1, Ordering::Relaxed);
        Some(number)
    }

    fn take_run(&mut self) -> Option<usize> {
        if self.runs.len() == 0 {
            let run = self.counts.iter().position(is_whole)?;
            self.join(run);
        }
        self.runs.take(&mut self.random)
    }

    fn join_if_plenty(&mut self, run: usize) {
        if self.singles.len() >= PLENTY && is_whole(&self.counts[run]) {
            self.join(run);
        }
    }

    /// Makes a run of single frames that are all there.
    fn join(&mut self, run: usize) {
        (run * RUN_PAGES..(run + 1) * RUN_PAGES).for_each(|number| self.singles.remove(number));
        self.counts[run].store(0, Ordering::Relaxed);
        self.runs.insert(run);
    }
}

fn is_whole(count: &AtomicU64) -> bool {
    count.load(Ordering::Relaxed) == RUN_PAGES as u64
}
