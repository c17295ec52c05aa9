//! A guest's stage 2: what an embedder holds, one per guest.
//!
//! [`Stage2`] is shared by all CPUs (`&Stage2`); each operation borrows the calling CPU's [`Reader`]. Operations on ranges
//! take one table's lock at a time, from low to high addresses.

mod collapse;
mod load;
mod map;
mod protect;
mod query;
mod root;
mod split;
mod unmap;

pub use collapse::CollapseError;
pub(crate) use collapse::Rejoining;
pub use load::{LoadError, Loaded, RunError};
pub(crate) use map::NoLeafTable;
pub use map::{MapCause, MapError};
pub use protect::ProtectError;
pub use query::{Mapping, QueryError};
pub use root::{CreateError, FreezeError, Frozen, InUse, Unsettled};
pub use split::SplitError;
pub use unmap::{Removed, UnmapError, Unmapped};
pub(crate) use unmap::{covers, entries};

use crate::addr::{IpaRange, Level};
use crate::aging::AgingState;
use crate::arch::Arch;
use crate::descriptor::Format;
use crate::dirty::{LogState, Tracking};
use crate::error::ArgumentError;
use crate::memory::{Reserve, TableMemory};
use crate::quiescence::Reader;
use crate::reclaim::ReclaimState;
use crate::walk::Tree;
use crate::walk::{ReadOnly, ReadWrite};

/// One guest's stage-2 translation: its tree of tables and what belongs to it.
pub struct Stage2<'h, A: Arch, M: TableMemory> {
    pub(crate) tree: Tree<'h, A, M>,
    pub(crate) log: LogState<'h>,
    pub(crate) aging: AgingState,
    pub(crate) reclaim: ReclaimState<'h>,
    /// No leaf is larger than those of this level.
    pub(crate) largest_leaf: Level,
    /// Tables for splitting blocks.
    pub(crate) reserve: Reserve,
    /// What a log has left in pieces.
    pub(crate) rejoining: Rejoining,
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// The same tree with leaves up to those of `level`: blocks where addresses and sizes allow. Without this it has pages
    /// alone.
    #[must_use]
    pub fn with_largest_leaf(self, level: Level) -> Self {
        Self { largest_leaf: level, ..self }
    }

    /// A read-only walk within the caller's read section.
    #[inline(always)]
    pub(crate) fn read_only<'r>(&'r self, reader: &'r Reader<'r>) -> ReadOnly<'r, 'h, A, M> {
        ReadOnly::new(&self.tree, reader)
    }

    /// A read-write walk within the caller's read section.
    #[inline(always)]
    pub(crate) fn read_write<'r>(&'r self, reader: &'r Reader<'r>) -> ReadWrite<'r, 'h, A, M> {
        ReadWrite::new(&self.tree, reader)
    }

    /// How leaves are encoded now: a log may have the hardware note their first store.
    pub(crate) fn format(&self) -> Format {
        Format { dbm: self.log.tracking() == Some(Tracking::Hardware), ..self.tree.format }
    }

    #[inline]
    pub(crate) fn check(&self, reader: &Reader<'_>, range: IpaRange) -> Result<(), ArgumentError> {
        self.tree.check(reader, range)
    }
}
