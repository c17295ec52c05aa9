//! The read-only walk: looks, takes no lock, stores nothing.
//!
//! # Protocol
//! Within a read section each level is one single-copy atomic load. The walk may be looking at a table that was just
//! detached, and for those who only look that is right: the value was true at some instant of the section. There is no
//! method that writes.

use super::{Position, Table, Tree, descend};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::descriptor::Kind;
use crate::error::Corrupt;
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;

/// A read-only walk.
#[doc(alias = "pte_offset_map_ro_nolock")]
pub(crate) struct ReadOnly<'r, 'h, A: Arch, M: TableMemory> {
    tree: &'r Tree<'h, A, M>,
    section: &'r Reader<'r>,
}

/// The entries of one table that a range covers, from [`ReadOnly::visit`].
pub(crate) struct Visit<'r> {
    pub(crate) table: Table<'r>,
    /// The part of the range they cover.
    pub(crate) range: IpaRange,
    /// The first of them.
    pub(crate) first: usize,
    /// How many.
    pub(crate) count: usize,
}

impl<'r, 'h, A: Arch, M: TableMemory> ReadOnly<'r, 'h, A, M> {
    /// Begins a walk of `tree` in the read section of `section`.
    #[inline(always)]
    pub(crate) fn new(tree: &'r Tree<'h, A, M>, section: &'r Reader<'r>) -> Self {
        section.count().walks_read_only(1);
        Self { tree, section }
    }

    /// The entry that translates `ipa`, or the one at which the tables end: at the deepest level there is. Never one of
    /// [`Kind::Reserved`].
    ///
    /// The parent says which table that is; if the table says otherwise, it was taken out in between, and the parent has changed.
    /// Else somebody else wrote the parent.
    #[inline(always)]
    pub(crate) fn find(&self, ipa: Ipa) -> Result<Position<'r>, Corrupt> {
        loop {
            let found = descend(self.tree, self.section, ipa, Level::LEAF)?;
            let level = found.table.level;
            if found.table.is_at(self.tree, ipa) {
                return match self.tree.kind(found.value, level) {
                    Kind::Reserved => Err(Corrupt { ipa, level }),
                    _ => Ok(found),
                };
            }
            // Again no more than once for each level: a table is taken out after a grace period in which it was seen empty,
            // so none that is linked in this section is.
            if found.parent.is_none_or(|parent| parent.is_unchanged()) {
                return Err(self.tree.blame(ipa));
            }
        }
    }

    /// Shows `look` every table that holds leaves of `range`, from low to high addresses, a table once. Where the tables
    /// end above level 3, that one entry is shown. Stops early, and says where, if `look` returns `false`.
    ///
    /// Grows with the tables there are: a hole is skipped at the level it begins at.
    #[inline(always)]
    pub(crate) fn visit(
        &self,
        range: IpaRange,
        mut look: impl FnMut(Visit<'r>) -> bool,
    ) -> Result<Option<Ipa>, Corrupt> {
        let mut rest = Some(range);
        while let Some(left) = rest {
            let found = self.find(left.start())?;
            let level = found.table.level;
            let last = if level == Level::LEAF {
                M::Granule::table_last(left.start(), level)
            } else {
                M::Granule::entry_last(left.start(), level)
            };
            let part = left.intersection(IpaRange::inclusive(left.start(), last).unwrap_or(left)).unwrap_or(left);
            let shift = M::Granule::shift(level);
            let count = ((part.last().raw() >> shift) - (part.start().raw() >> shift)) as usize + 1;
            if !found.value.is_none() || level == Level::LEAF {
                let visit = Visit { table: found.table, range: part, first: found.index, count };
                if !look(visit) {
                    return Ok(Some(part.start()));
                }
            }
            rest = part.last().checked_add(1).and_then(|next| left.starting_at(next));
        }
        Ok(None)
    }
}
