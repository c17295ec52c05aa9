//! The two ways into a tree, and the only two.
//!
//! | | [`ReadOnly`] | [`ReadWrite`] |
//! |---|---|---|
//! | Linux | `pte_offset_map_ro_nolock()` | `pte_offset_map_rw_nolock()` |
//! | for | scans, queries, a fault's recheck | faults, map, unmap, protect, rearm, aging, detach |
//! | takes | nothing | the lock of one table |
//! | stores | nothing | descriptors of that table |
//! | may see | a table that was just detached | only a table that is still the one it found |
//!
//! Both descend from the root within a read section: they borrow the CPU's [`Reader`], so that what they return is
//! gone, as far as the compiler is concerned, when the CPU announces a quiescent state; and no table that can be seen in a
//! section is freed before its end.

mod fill;
mod join;
mod leaves;
mod ro;
mod rw;
#[cfg(all(test, feature = "model", not(loom), not(shuttle)))]
mod tests;
mod tree;
mod young;

pub(crate) use leaves::{Cleaned, Cleaning, Reserved, publish_clean};
pub(crate) use ro::{ReadOnly, Visit};
pub(crate) use rw::{Kept, Locked, ReadWrite, UnlinkedTable};
pub(crate) use tree::{Table, Tree};
pub(crate) use young::Ages;

use crate::addr::{Ipa, Level};
use crate::arch::Arch;
use crate::descriptor::Descriptor;
use crate::error::Corrupt;
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::sync::{Ordering, Word};

/// Where a descent ended: an entry of a table, and how the table was reached.
pub(crate) struct Position<'r> {
    pub(crate) table: Table<'r>,
    pub(crate) index: usize,
    /// The entry's value, read once.
    pub(crate) value: Descriptor,
    /// How the table was reached; a root has no parent.
    parent: Option<ParentSnapshot<'r>>,
}

impl Position<'_> {
    /// Whether the hardware cannot come here just now: the table is behind a marker.
    pub(crate) fn is_behind_marker(&self) -> bool {
        self.parent.is_some_and(|parent| !parent.value.is_valid())
    }
}

/// The address and the *value* of the descriptor through which a table was reached: the seed's `pmdval`, at any level.
#[doc(alias = "pmdval")]
#[derive(Clone, Copy)]
struct ParentSnapshot<'r> {
    entry: &'r Word,
    value: Descriptor,
}

impl ParentSnapshot<'_> {
    /// Whether the descriptor still has the value it had when the walk went through it.
    #[doc(alias = "pmd_same")]
    #[inline(always)]
    fn is_unchanged(&self) -> bool {
        Descriptor::from_raw(self.entry.load(Ordering::Acquire)) == self.value
    }
}

/// Descends towards `ipa` until a table of `stop`, or an entry that points to no table. One load per level, no lock.
#[inline(always)]
fn descend<'r, A: Arch, M: TableMemory>(
    tree: &'r Tree<'_, A, M>,
    _section: &'r Reader<'_>,
    ipa: Ipa,
    stop: Level,
) -> Result<Position<'r>, Corrupt> {
    let mut table = tree.root_table(ipa)?;
    let mut parent = None;
    loop {
        let index = M::Granule::index(ipa, table.level);
        let value = table.read(index);
        if table.level < stop
            && let Some(child) = tree.child(ipa, table.level, value).map_err(|_| tree.blame(ipa))?
        {
            parent = table.snapshot(index, value);
            table = child;
        } else {
            return Ok(Position { table, index, value, parent });
        }
    }
}
