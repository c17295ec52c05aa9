//! The latest events, for the story of a violation.

use std::collections::VecDeque;
use std::vec::Vec;

use super::Event;

/// Events that are kept.
const KEPT: usize = 8192;
/// Events of a story.
const TOLD: usize = 48;

/// Events with their numbers and CPUs.
#[derive(Default)]
pub(super) struct Trail(VecDeque<(u64, u16, Event)>);

impl Trail {
    pub(super) fn push(&mut self, number: u64, cpu: u16, event: Event) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((number, cpu, event));
    }

    /// The last that matter.
    pub(super) fn of(&self, concerns: impl Fn(&Event) -> bool) -> Vec<(u64, u16, Event)> {
        let mut told: Vec<_> =
            self.0.iter().rev().filter(|(_, _, event)| concerns(event)).take(TOLD).copied().collect();
        told.reverse();
        told
    }
}
