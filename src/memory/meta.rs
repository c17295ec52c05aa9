//! What is known of a table, beside it and never inside: the hardware walks the table, only we read this.
//!
//! A [`TableMeta`] is found from its table's address in constant time and is *type-stable*: it outlives the table's use, so
//! that somebody who comes late for the lock of a table that is dying finds a lock, takes it, sees that the table is
//! no longer where he found it, and goes away.

use super::Groups;
use crate::addr::{Ipa, Level, Pa};
use crate::sync::{AtomicU8, AtomicU64, Mutex, MutexGuard, Ordering, const_unless_loom, load_owned_bits};

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
    /// Entries that are not [`Descriptor::NONE`](crate::descriptor::Descriptor::NONE).
    pub(crate) occupied: u16,
    /// Groups in which an entry is dirty or can become so without this lock, as far as what was stored says. Each of them is
    /// published as one that may be dirty.
    pub(crate) dirty: Groups,
    /// The hardware may update the dirty state of all leaves that the guest may write: [`Tracking::Adaptive`].
    ///
    /// [`Tracking::Adaptive`]: crate::dirty::Tracking::Adaptive
    pub(crate) armed: bool,
    /// Whether the hardware may make an entry dirty that has no DBM any more, so that `dirty` does not know.
    pub(crate) stripped: Stripped,
    /// All entries, if they are being removed together.
    pub(crate) leaving: Option<Leaving>,
}

/// Who removes all entries of a table, none of which was claimed yet. Nobody else changes what he has marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaving {
    /// The CPU.
    pub(crate) remover: u16,
    /// Whether they were dirty: all of them or none.
    pub(crate) dirty: bool,
}

/// What became of the DBM that was taken from a table's leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stripped {
    /// Of none, or no TLB has it any more.
    No,
    /// TLBs may have it.
    Cached,
    /// TLBs may have it, until a flush that a harvester has begun meanwhile.
    Flushing,
}

impl Guarded {
    const fn of(occupied: u16) -> Self {
        Self { occupied, dirty: Groups::NONE, armed: false, stripped: Stripped::No, leaving: None }
    }
}

/// Where a table is in its tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// The first address it covers. Aligned to all it covers, and so with room for the level.
    pub(crate) base: Ipa,
    /// Its level.
    pub(crate) level: Level,
}

impl Place {
    const fn packed(self) -> u64 {
        self.base.raw() | self.level as u64
    }

    const fn unpacked(raw: u64) -> Self {
        let level = match raw & 3 {
            0 => Level::L0,
            1 => Level::L1,
            2 => Level::L2,
            _ => Level::L3,
        };
        Self { base: Ipa::new(raw & !3), level }
    }
}

/// The metadata of one table. One cache line, its own.
#[repr(align(64))]
pub struct TableMeta {
    guarded: Mutex<Guarded>,
    /// The tree it is linked into. Stored under the lock, read by anybody.
    owner: AtomicU64,
    /// Its [`Place`] there. Stored before it is linked, and constant until it was freed: not loom's, to which it would be
    /// more of the same.
    place: core::sync::atomic::AtomicU64,
    state: AtomicU8,
    /// [`Groups`] in which an entry may be dirty. Set, with release, under the lock before such an entry is installed.
    may_be_dirty: AtomicU64,
    /// The next table of the list this one is in.
    link: AtomicU64,
}

const END_OF_LIST: u64 = u64::MAX;

impl TableMeta {
    const_unless_loom! {
        /// The metadata of a table that is not in use.
        pub fn new() -> Self {
            Self {
                guarded: Mutex::new(Guarded::of(0)),
                owner: AtomicU64::new(TreeId::NONE.0),
                place: core::sync::atomic::AtomicU64::new(Place { base: Ipa::new(0), level: Level::L3 }.packed()),
                state: AtomicU8::new(TableState::Free as u8),
                may_be_dirty: AtomicU64::new(0),
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

    /// Makes it the table at `place` in the tree of `owner`, with so many entries in it, of which those of the groups `dirty` may
    /// be dirty, before it is linked there.
    pub(crate) fn adopt(&self, owner: TreeId, place: Place, occupied: u16, dirty: Groups) {
        let mut guarded = self.lock();
        *guarded = Guarded { dirty, ..Guarded::of(occupied) };
        self.may_be_dirty.store(dirty.bits(), Ordering::Release);
        self.place.store(place.packed(), Ordering::Relaxed);
        self.owner.store(owner.0, Ordering::Release);
        drop(guarded);
        self.set_link(None);
        self.set_state(TableState::Live);
    }

    /// It is in no tree any more. Of a tree that others use: under the lock, after its parent's entry was replaced. Release: who
    /// sees this sees that.
    pub(crate) fn disown(&self) {
        self.owner.store(TreeId::NONE.0, Ordering::Release);
    }

    /// Whether it is in the tree of `owner`. Acquire: the partner of the release in [`Self::disown`].
    #[inline(always)]
    pub(crate) fn is_owned_by(&self, owner: TreeId) -> bool {
        self.owner.load(Ordering::Acquire) == owner.0
    }

    /// Whether it is the one at `place` there.
    #[inline(always)]
    pub(crate) fn is_at(&self, owner: TreeId, place: Place) -> bool {
        self.is_owned_by(owner) && self.place.load(Ordering::Relaxed) == place.packed()
    }

    /// Where it is, or was before it was taken out.
    #[inline(always)]
    pub(crate) fn place(&self) -> Place {
        Place::unpacked(self.place.load(Ordering::Relaxed))
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

    /// Where an entry may be dirty. Of the other groups none was at some instant of this read section.
    #[inline(always)]
    pub(crate) fn may_be_dirty(&self) -> Groups {
        Groups::from_bits(self.may_be_dirty.load(Ordering::Acquire))
    }

    /// Before entries are installed, in these groups, that are dirty or can become so without the lock, which `guarded` holds.
    #[inline(always)]
    pub(crate) fn note_dirty(&self, guarded: &mut Guarded, groups: Groups) {
        if !guarded.dirty.contains(groups) {
            guarded.dirty = guarded.dirty.with(groups);
            self.may_be_dirty.store(load_owned_bits(&self.may_be_dirty) | groups.bits(), Ordering::Release);
        }
    }

    /// After a flush, with the lock that `guarded` holds: of what was dirty before, only what is noted still may be.
    #[inline(always)]
    pub(crate) fn publish_clean(&self, guarded: &Guarded) {
        self.may_be_dirty.store(guarded.dirty.bits(), Ordering::Release);
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
