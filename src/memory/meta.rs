//! What is known of a table, beside it and never inside: the hardware walks the table, only we read this.
//!
//! A [`TableMeta`] is found from its table's address in constant time and is *type-stable*: it outlives the table's use, so
//! that somebody who comes late for the lock of a table that is dying finds a lock, takes it, sees that the table is
//! no longer where he found it, and goes away.

use crate::addr::{Ipa, Level, Pa};
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Mutex, MutexGuard, Ordering, const_unless_loom, load_owned_flag};

/// Identifies a tree for as long as the machine runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TreeId(pub(crate) u64);

impl TreeId {
    /// No tree.
    pub(crate) const NONE: Self = Self(0);
}

/// Where in its life a table is. It is in at most one list at a time, and which one follows from this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum TableState {
    /// In table memory, or allocated and not linked yet.
    Free = 0,
    /// Linked into a tree.
    Live = 1,
    /// Linked, and in its tree's list of tables that were seen empty.
    Hinted = 2,
    /// No longer linked: on its way back to table memory.
    Unlinked = 3,
}

/// What the table's lock protects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarded {
    /// The tree it is linked into.
    pub(crate) owner: TreeId,
    /// The first address it covers there.
    pub(crate) base: Ipa,
    /// Entries that are not [`Descriptor::NONE`](crate::descriptor::Descriptor::NONE).
    pub(crate) occupied: u16,
    /// Its level.
    pub(crate) level: Level,
}

/// The metadata of one table. One cache line, its own.
#[repr(align(64))]
pub struct TableMeta {
    guarded: Mutex<Guarded>,
    state: AtomicU8,
    /// Whether an entry may be writable. Set, with release, under the lock before such an entry is installed.
    may_be_dirty: AtomicBool,
    /// The next table of the list this one is in.
    link: AtomicU64,
}

const END_OF_LIST: u64 = u64::MAX;

impl TableMeta {
    const_unless_loom! {
        /// The metadata of a table that is not in use.
        pub fn new() -> Self {
            Self {
                guarded: Mutex::new(Guarded { owner: TreeId::NONE, base: Ipa::new(0), occupied: 0, level: Level::L3 }),
                state: AtomicU8::new(TableState::Free as u8),
                may_be_dirty: AtomicBool::new(false),
                link: AtomicU64::new(END_OF_LIST),
            }
        }
    }

    #[inline(always)]
    pub(crate) fn lock(&self) -> MutexGuard<'_, Guarded> {
        self.guarded.lock()
    }

    /// What a watcher of locks knows this table's by.
    #[cfg(all(feature = "model", not(loom)))]
    pub(crate) fn lock_address(&self) -> usize {
        core::ptr::from_ref(&self.guarded).addr()
    }

    /// Where in its life the table is, at this moment.
    pub fn state(&self) -> TableState {
        match self.state.load(Ordering::Acquire) {
            1 => TableState::Live,
            2 => TableState::Hinted,
            3 => TableState::Unlinked,
            _ => TableState::Free,
        }
    }

    pub(crate) fn set_state(&self, state: TableState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Moves from one state to another, if it is in that one: who succeeds may put the table into a list.
    pub(crate) fn transition(&self, from: TableState, to: TableState) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether an entry may be dirty. `false` means: none was at some instant of this read section.
    #[inline(always)]
    pub(crate) fn may_be_dirty(&self) -> bool {
        self.may_be_dirty.load(Ordering::Acquire)
    }

    /// Under the lock, before a writable entry is installed.
    #[inline(always)]
    pub(crate) fn set_may_be_dirty(&self) {
        // A load first: the line is ours already, and most tables stay dirty for long.
        if !load_owned_flag(&self.may_be_dirty) {
            self.may_be_dirty.store(true, Ordering::Release);
        }
    }

    /// Under the lock, after a flush, when no entry is dirty any more.
    pub(crate) fn clear_may_be_dirty(&self) {
        self.may_be_dirty.store(false, Ordering::Release);
    }

    /// The next table of the list; for the owner of the list and for table memory's free list.
    pub fn link(&self) -> Option<Pa> {
        match self.link.load(Ordering::Relaxed) {
            END_OF_LIST => None,
            raw => Some(Pa::new(raw)),
        }
    }

    /// Sets the next table of the list.
    pub fn set_link(&self, next: Option<Pa>) {
        self.link.store(next.map_or(END_OF_LIST, Pa::raw), Ordering::Relaxed);
    }
}

impl Default for TableMeta {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_one_line_of_its_own() {
        assert_eq!(size_of::<TableMeta>(), 64);
        assert_eq!(align_of::<TableMeta>(), 64);
    }
}
