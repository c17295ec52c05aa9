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
#[derive(Clone, Copy)]
pub(crate) struct Position<'r> {
    pub(crate) table: Table<'r>,
    pub(crate) index: usize,
    /// The entry's value, read once.
    pub(crate) value: Descriptor,
    /// Whether the table says, too, that it is the one of its level there.
    is_there: bool,
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

/// How far a descent is: at `table`.
struct Way<'r, 'h, A: Arch, M: TableMemory> {
    tree: &'r Tree<'h, A, M>,
    ipa: Ipa,
    stop: Level,
    table: Table<'r>,
    parent: Option<ParentSnapshot<'r>>,
}

impl<'r, A: Arch, M: TableMemory> Way<'r, '_, A, M> {
    /// From a table of `level` to the next, if it has come to one; where it ends, if it does.
    #[inline(always)]
    fn step(&mut self, level: Level) -> Result<Option<Position<'r>>, Corrupt> {
        if self.table.level != level {
            return Ok(None);
        }
        let index = M::Granule::index(self.ipa, level);
        let value = self.table.read(index);
        if level < self.stop
            && let Some(child) = self.tree.child(self.ipa, level, value).map_err(|_| self.tree.blame(self.ipa))?
        {
            self.parent = self.table.snapshot(index, value);
            self.table = child;
            return Ok(None);
        }
        Ok(Some(self.end(level, index, value)))
    }

    /// Ends at `index` of the table, which is of `level`.
    #[inline(always)]
    fn end(&self, level: Level, index: usize, value: Descriptor) -> Position<'r> {
        let table = Table { level, ..self.table };
        Position { table, index, value, is_there: table.is_at(self.tree, self.ipa), parent: self.parent }
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
    let mut way = Way { tree, ipa, stop, table: tree.root_table(ipa)?, parent: None };
    // Each level in its turn, and written out, so that all that depends on it is a constant.
    if let Some(end) = way.step(Level::L0)? {
        return Ok(end);
    }
    if let Some(end) = way.step(Level::L1)? {
        return Ok(end);
    }
    if let Some(end) = way.step(Level::L2)? {
        return Ok(end);
    }
    let index = M::Granule::index(ipa, Level::LEAF);
    Ok(way.end(Level::LEAF, index, way.table.read(index)))
}
