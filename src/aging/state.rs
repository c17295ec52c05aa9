//! What was made old and not invalidated, for those who rely on it.
//!
//! # Protocol
//! Who makes pages old has a [`Gather`] open meanwhile. Without a flush ([`Flush::Later`]) he counts in `left`, and closes the gather
//! then. With one ([`Flush::Now`]) he has come upon pages that others have made old, and asks, in this order:
//! 1. is another gather open? Then its flush, if any, is not over;
//! 2. what is `left`, and what of that `flushed`? All whose gathers are closed have counted.
//!
//! If so, all of the VMID goes, and `flushed` says so once that is over. A count that is taken over in between is flushed twice, never
//! not at all.
//!
//! [`Flush::Now`]: super::Flush::Now
//! [`Flush::Later`]: super::Flush::Later

use crate::arch::Arch;
use crate::memory::TableMemory;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tlb::Gather;

/// Of one tree.
pub(crate) struct AgingState {
    /// How often pages were made old and left in the TLBs.
    left: AtomicU64,
    /// How many of those a flush of everything has come after.
    flushed: AtomicU64,
}

impl AgingState {
    pub(crate) fn new() -> Self {
        Self { left: AtomicU64::new(0), flushed: AtomicU64::new(0) }
    }

    /// What `gather` has stays in the TLBs, until the next [`Self::flush`].
    pub(super) fn leave<A: Arch, M: TableMemory>(&self, gather: Gather<'_, '_, A, M>) {
        if !gather.is_empty() {
            // Before the gather is closed, which is a release.
            self.left.fetch_add(1, Ordering::Release);
        }
        gather.leave();
    }

    /// No TLB lets an access to what the caller has made old, or has found so, pass unnoticed any more.
    pub(super) fn flush<A: Arch, M: TableMemory>(&self, mut gather: Gather<'_, '_, A, M>) {
        // Whose stores the caller has seen, without their locks, has a gather open, or had. Partner: the release of the store.
        fence(Ordering::Acquire);
        let has_company = gather.has_company();
        let left = self.left.load(Ordering::Acquire);
        let is_left = left != self.flushed.load(Ordering::Acquire);
        if has_company || is_left {
            gather.everything();
        }
        let _quiet = gather.flush();
        if is_left {
            self.flushed.fetch_max(left, Ordering::Release);
        }
    }
}
