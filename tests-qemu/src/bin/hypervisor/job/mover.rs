//! Unmapping under the guest: memory's content moves to other frames, and the old ones are poisoned once nobody can
//! be looking at them any more.
//!
//! Mapping the *same* frame again would hide a missing invalidation. A CPU that still translates to the old frame reads
//! poison, and the guest dies of it.
//!
//! What blocks may map moves by whole stretches into whole runs, so that it can be blocks again. Now and then, while nothing
//! is logged, a part of one goes to scattered frames: that cuts a block, and the stretch stays in pieces until it moves as a
//! whole. Without blocks every page goes somewhere else.

use core::time::Duration;

use arrayvec::ArrayVec;
use fastrand::Rng;
use stage2::{
    Ipa, IpaRange, Level, Pa, Reader,
    error::{ChangeCause, Stopped},
    quiescence::Quiescing,
    stage2::{MapError, UnmapError},
};
use stage2_platform::timer;
use stage2_tests_qemu::{
    frames::{Frames, RUN_BYTES, RUN_PAGES},
    memory::{self, PAGE_BYTES},
};

use super::{
    joiner::{self, stretches},
    shared::Shared,
};

/// Frames that may wait for a grace period.
pub(crate) const RETIRED: usize = 3 * RUN_PAGES;
/// Of what blocks may map, one in so many moves is one of a whole stretch: 2 MiB to copy and to poison, and whatever QEMU has
/// translated of it to translate again. The others are drops.
const WHOLE_IN: u64 = 16;
/// One in so many of those is of a part. So no more than about this share of memory is in pieces.
const PART_IN: u64 = 16;
/// One in so many drops is of a part.
const CUT_IN: u64 = 4;
/// The bytes of a part: a part begins at a multiple of them.
const PART_BYTES: u64 = 64 << 10;
/// How often a stretch is picked by chance until one is found that was ever touched.
const PICKS: usize = 8;
/// How long frames are poisoned in one go.
const POISONING: Duration = Duration::from_millis(10);
/// As an instruction undefined, as an address faulting.
const POISON: u64 = 0xdead_0000_dead_0000;

/// Why something was not moved.
#[derive(Clone, Copy, Debug, defmt::Format)]
pub(crate) enum MoveError {
    Map(MapError),
    Unmap(UnmapError),
}

/// A frame or a run on its way back to the pool.
struct Retired<'h> {
    frame: Quiescing<'h, Pa>,
    pages: usize,
    /// So many of them hold poison.
    poisoned: usize,
}

/// The frames on their way back to the pool.
pub(crate) struct Mover<'h> {
    frames: &'h Frames,
    retired: ArrayVec<Retired<'h>, RETIRED>,
    random: Rng,
    /// Ranges that were unmapped.
    pub(crate) ranges: u64,
    /// Pages that were moved.
    pub(crate) moved: u64,
}

impl<'h> Mover<'h> {
    pub(crate) fn new(frames: &'h Frames, seed: u64) -> Self {
        Self { frames, retired: ArrayVec::new(), random: Rng::with_seed(seed), ranges: 0, moved: 0 }
    }

    /// Unmaps a random stretch of RAM, or a part of it, and moves what was there; nothing while too many frames wait. Only
    /// what `may_scatter` is torn to pieces.
    pub(crate) fn move_one(
        &mut self,
        shared: &Shared<'h>,
        reader: &Reader<'_>,
        may_scatter: bool,
    ) -> Result<(), MoveError> {
        if self.retired.remaining_capacity() < RUN_PAGES {
            return Ok(());
        }
        let stretch = self.choose(shared);
        if !shared.memory.has_blocks() {
            return self.scatter(shared, reader, stretch);
        }
        if self.random.u64(..WHOLE_IN) != 0 {
            return self.drop_one(shared, reader);
        }
        if may_scatter && self.random.u64(..PART_IN) == 0 {
            let part = self.part_of(stretch);
            return self.scatter(shared, reader, part);
        }
        self.move_whole(shared, reader, stretch)
    }

    /// Moves the first stretch that is in pieces into a run, if there is one.
    pub(crate) fn mend_one(&mut self, shared: &Shared<'h>, reader: &Reader<'_>) -> Result<(), MoveError> {
        let torn = stretches(shared.memory.ram()).find(|stretch| shared.memory.is_torn(stretch.start()));
        match torn.filter(|_| self.retired.remaining_capacity() >= RUN_PAGES) {
            Some(stretch) => self.move_whole(shared, reader, stretch),
            None => Ok(()),
        }
    }

    /// Unmaps a random stretch of RAM, or a part of it, and leaves the content where it is. That takes a tenth of the time of a
    /// move, so more often nobody touches the range meanwhile, and its table is emptied.
    pub(crate) fn drop_one(&mut self, shared: &Shared<'h>, reader: &Reader<'_>) -> Result<(), MoveError> {
        let stretch = self.choose(shared);
        let cut = shared.memory.has_blocks() && self.random.u64(..CUT_IN) == 0;
        let range = if cut { self.part_of(stretch) } else { stretch };
        // Nobody reuses the frames, so nobody has to wait for readers.
        unless_busy(shared.stage2.unmap(reader, range))?;
        Ok(())
    }

    fn choose(&mut self, shared: &Shared<'h>) -> IpaRange {
        let ram = shared.memory.ram();
        self.ranges += 1;
        let mut start = ram.start();
        for _ in 0..PICKS {
            start = ram.start().offset(self.random.u64(..ram.bytes() / RUN_BYTES) * RUN_BYTES);
            if shared.memory.is_begun(start) {
                break;
            }
        }
        IpaRange::new(start, RUN_BYTES).unwrap_or(ram)
    }

    fn part_of(&mut self, stretch: IpaRange) -> IpaRange {
        let start = stretch.start().offset(self.random.u64(..RUN_BYTES / PART_BYTES) * PART_BYTES);
        IpaRange::new(start, PART_BYTES).unwrap_or(stretch)
    }

    /// Moves each page that is mapped to any other frame. There are no blocks in it: it is a part of one at most, which is cut.
    fn scatter(&mut self, shared: &Shared<'h>, reader: &Reader<'_>, range: IpaRange) -> Result<(), MoveError> {
        let Self { frames, retired, moved, .. } = self;
        unless_busy(shared.stage2.unmap_with(reader, range, |removed| {
            let Some(frame) = frames.take() else { return };
            if shared.memory.relocate(removed.ipa, frame) {
                retired.push(Retired { frame: removed.frame, pages: 1, poisoned: 0 });
                *moved += 1;
            } else {
                frames.give_back(frame);
            }
        }))?;
        Ok(())
    }

    /// Moves all of a stretch into another run. What is not mapped is mapped before: only of what is taken from the guest may
    /// the frame change.
    fn move_whole(&mut self, shared: &Shared<'h>, reader: &Reader<'_>, stretch: IpaRange) -> Result<(), MoveError> {
        let Some(run) = self.frames.take_run() else { return Ok(()) };
        if let Err(error) = joiner::populate(shared, reader, stretch) {
            self.frames.give_back_run(run);
            return Err(MoveError::Map(error));
        }
        let place = |ipa: Ipa| run.offset(ipa.raw() - stretch.start().raw());
        let Self { frames, retired, moved, .. } = self;
        unless_busy(shared.stage2.unmap_with(reader, stretch, |removed| {
            let pages = if removed.level == Level::LEAF { 1 } else { RUN_PAGES };
            for page in 0..pages as u64 {
                let ipa = removed.ipa.offset(page * PAGE_BYTES);
                *moved += u64::from(shared.memory.relocate(ipa, place(ipa)));
            }
            retired.push(Retired { frame: removed.frame, pages, poisoned: 0 });
        }))?;
        if !shared.memory.adopt(stretch.start(), run) {
            // A part stayed where it was: its places in the new run are not needed, and were never seen.
            for page in 0..RUN_PAGES as u64 {
                let ipa = stretch.start().offset(page * PAGE_BYTES);
                if shared.memory.frame(ipa) != Some(place(ipa)) {
                    frames.give_back(place(ipa));
                }
            }
        }
        Ok(())
    }

    /// Takes all RAM that is mapped from a guest that nobody runs any more. Only the caller's reader is online then.
    pub(crate) fn remove_all(&mut self, shared: &Shared<'h>, reader: &mut Reader<'_>) -> Result<(), MoveError> {
        let _unmapped = shared.stage2.unmap(reader, shared.memory.ram()).map_err(MoveError::Unmap)?;
        reader.quiescent();
        for Retired { frame, pages, .. } in self.retired.take() {
            // One that a reader held up would be missing, and is a leak then.
            if let Ok(frame) = frame.poll() {
                give_back(self.frames, frame, pages);
            }
        }
        Ok(())
    }

    /// Poisons what has waited long enough and gives it back to the pool; what came last comes first. What is left after a while
    /// waits until the next time: to forget what it has translated of a page takes QEMU long.
    pub(crate) fn poll(&mut self) {
        let until = timer::now() + POISONING;
        let mut left = ArrayVec::<_, RETIRED>::new();
        while let Some(mut retired) = self.retired.pop() {
            if retired.frame.check().is_ok() {
                while retired.poisoned < retired.pages && timer::now() < until {
                    let page = retired.frame.peek().offset(retired.poisoned as u64 * PAGE_BYTES);
                    memory::fill(self.frames.words(page), POISON);
                    retired.poisoned += 1;
                }
            }
            let pages = retired.pages;
            if retired.poisoned < pages {
                left.push(retired);
            } else if let Ok(frame) = retired.frame.poll() {
                give_back(self.frames, frame, pages);
            }
        }
        left.reverse();
        self.retired = left;
    }
}

fn give_back(frames: &Frames, frame: Pa, pages: usize) {
    if pages == 1 {
        frames.give_back(frame);
    } else {
        frames.give_back_run(frame);
    }
}

/// Whether it was done: a vCPU that splits a block in its way is not waited for.
fn unless_busy<T>(result: Result<T, UnmapError>) -> Result<Option<T>, MoveError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(UnmapError::Stopped(Stopped { cause: ChangeCause::Retry, .. })) => Ok(None),
        Err(error) => Err(MoveError::Unmap(error)),
    }
}
