//! Which stores a CPU, a lock, a release store or a walk has behind it: vector clocks.

/// CPUs a checker tells apart.
pub const MAX_CPUS: usize = 16;

/// The `nth` store of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Write {
    pub(super) cpu: u16,
    pub(super) nth: u32,
}

/// Of each CPU, how many of its stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Clock([u32; MAX_CPUS]);

impl Clock {
    pub(super) fn has(&self, write: Write) -> bool {
        self.0[usize::from(write.cpu)] >= write.nth
    }

    pub(super) fn add(&mut self, write: Write) {
        let count = &mut self.0[usize::from(write.cpu)];
        *count = (*count).max(write.nth);
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = (*mine).max(theirs);
        }
    }

    pub(super) fn joined(mut self, other: &Self) -> Self {
        self.join(other);
        self
    }
}
