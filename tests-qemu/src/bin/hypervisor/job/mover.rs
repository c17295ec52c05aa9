//! Unmapping under the guest: a range's content moves to other frames, and the old ones are poisoned once nobody can
//! be looking at them any more.
//!
//! Mapping the *same* frame again would hide a missing invalidation. A CPU that still translates to the old frame reads
//! poison, and the guest dies of it.

use arrayvec::ArrayVec;
use fastrand::Rng;
use stage2::{IpaRange, Pa, Reader, quiescence::Quiescing, stage2::UnmapError};
use stage2_tests_qemu::{frames::Frames, memory};

use super::shared::Shared;

/// What one level-3 table translates.
const RANGE: u64 = 2 << 20;
const RANGE_PAGES: usize = 512;
/// Frames that may wait for a grace period.
pub(crate) const RETIRED: usize = 3 * RANGE_PAGES;
/// As an instruction undefined, as an address faulting.
const POISON: u64 = 0xdead_0000_dead_0000;

/// The frames on their way back to the pool.
pub(crate) struct Mover<'h> {
    frames: &'h Frames,
    retired: ArrayVec<Quiescing<'h, Pa>, RETIRED>,
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

    /// Unmaps a random aligned range of RAM and moves what was there; nothing while too many frames wait.
    pub(crate) fn move_one(&mut self, shared: &Shared<'h>, reader: &Reader<'_>) -> Result<(), UnmapError> {
        if self.retired.remaining_capacity() < RANGE_PAGES {
            return Ok(());
        }
        let range = self.choose(shared.memory.ram());
        let (retired, moved) = (&mut self.retired, &mut self.moved);
        shared.stage2.unmap_with(reader, range, |removed| {
            if shared.memory.relocate(removed.ipa) {
                retired.push(removed.frame);
                *moved += 1;
            }
        })?;
        Ok(())
    }

    /// Unmaps a random aligned range of RAM and leaves the content where it is. That takes a tenth of the time of a move,
    /// so more often nobody touches the range meanwhile, and its table is emptied.
    pub(crate) fn drop_one(&mut self, shared: &Shared<'h>, reader: &Reader<'_>) -> Result<(), UnmapError> {
        let range = self.choose(shared.memory.ram());
        // Nobody reuses the frames, so nobody has to wait for readers.
        let _unmapped = shared.stage2.unmap(reader, range)?;
        Ok(())
    }

    fn choose(&mut self, ram: IpaRange) -> IpaRange {
        let start = ram.start().offset(self.random.u64(..ram.bytes() / RANGE) * RANGE);
        self.ranges += 1;
        IpaRange::new(start, RANGE).unwrap_or(ram)
    }

    /// Takes all RAM that is mapped from a guest that nobody runs any more. Only the caller's reader is online then.
    pub(crate) fn remove_all(&mut self, shared: &Shared<'h>, reader: &mut Reader<'_>) -> Result<(), UnmapError> {
        let mut rest = Some(shared.memory.ram());
        while let Some(range) = rest.and_then(|rest| IpaRange::new(rest.start(), RANGE)?.intersection(rest)) {
            reader.quiescent();
            self.poll();
            let retired = &mut self.retired;
            shared.stage2.unmap_with(reader, range, |removed| {
                if shared.memory.take(removed.ipa).is_some() {
                    retired.push(removed.frame);
                }
            })?;
            rest = range.last().checked_add(1).and_then(|next| shared.memory.ram().starting_at(next));
        }
        reader.quiescent();
        self.poll();
        Ok(())
    }

    /// Poisons what has waited long enough and gives it back to the pool.
    pub(crate) fn poll(&mut self) {
        for waiting in self.retired.take() {
            match waiting.poll() {
                Ok(frame) => {
                    memory::fill(self.frames.words(frame), POISON);
                    self.frames.give_back(frame);
                }
                Err((waiting, _)) => self.retired.push(waiting),
            }
        }
    }
}
