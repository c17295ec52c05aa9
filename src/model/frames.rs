//! What frames hold: in the data caches, in memory behind them, and what fetches see of it.
//!
//! A frame has one value for all of it. The hypervisor and a guest with its caches on store to the caches; a guest with its caches
//! off, and memory that is mapped non-cacheable without FWB, sees what is behind.

use std::collections::BTreeMap;

use crate::addr::Pa;

/// Bytes of what is told apart.
const FRAME_SHIFT: u32 = 12;

#[derive(Default)]
pub(super) struct Frames(BTreeMap<u64, Frame>);

#[derive(Clone, Copy, Default)]
struct Frame {
    /// The line in the caches, if there is one.
    cached: Option<Line>,
    /// The value in memory.
    memory: u64,
    /// What a fetch sees.
    fetched: u64,
    /// Cleaned to the Point of Unification.
    unified: u64,
}

#[derive(Clone, Copy)]
struct Line {
    value: u64,
    /// Not written back.
    is_dirty: bool,
}

impl Frame {
    fn seen_through_caches(&self) -> u64 {
        self.cached.map_or(self.memory, |line| line.value)
    }
}

/// Which of a frame's values an access is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// The data caches.
    Caches,
    /// Nothing: straight from memory.
    Memory,
}

impl Frames {
    fn frame(&mut self, at: Pa) -> &mut Frame {
        self.0.entry(at.raw() >> FRAME_SHIFT).or_default()
    }

    pub(super) fn store(&mut self, at: Pa, value: u64, through: Through) {
        let frame = self.frame(at);
        match through {
            Through::Caches => frame.cached = Some(Line { value, is_dirty: true }),
            Through::Memory => frame.memory = value,
        }
    }

    pub(super) fn load(&mut self, at: Pa, through: Through) -> u64 {
        let frame = self.frame(at);
        match through {
            Through::Caches => frame.cached.get_or_insert(Line { value: frame.memory, is_dirty: false }).value,
            Through::Memory => frame.memory,
        }
    }

    /// Whether an access straight to memory would miss what is in the caches.
    pub(super) fn is_stale(&mut self, at: Pa) -> bool {
        let frame = self.frame(at);
        frame.cached.is_some_and(|line| line.is_dirty && line.value != frame.memory)
    }

    /// Whether a fetch would miss what data accesses see.
    pub(super) fn is_stale_to_fetches(&mut self, at: Pa) -> bool {
        let frame = *self.frame(at);
        frame.fetched != frame.seen_through_caches()
    }

    pub(super) fn clean_invalidate(&mut self, start: Pa, bytes: u64) {
        self.each(start, bytes, |frame| {
            if let Some(line) = frame.cached.take().filter(|line| line.is_dirty) {
                frame.memory = line.value;
                frame.unified = line.value;
            }
        });
    }

    pub(super) fn synchronize_instructions(&mut self, start: Pa, bytes: u64, clean: bool, invalidate: bool) {
        self.each(start, bytes, |frame| {
            if clean {
                frame.unified = frame.seen_through_caches();
            }
            if invalidate {
                frame.fetched = frame.unified;
            }
        });
    }

    fn each(&mut self, start: Pa, bytes: u64, change: impl Fn(&mut Frame)) {
        let (first, last) = (start.raw() >> FRAME_SHIFT, (start.raw() + bytes.saturating_sub(1)) >> FRAME_SHIFT);
        self.0.range_mut(first..=last).for_each(|(_, frame)| change(frame));
    }
}
