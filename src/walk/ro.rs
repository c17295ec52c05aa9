//! The read-only walk: looks, takes no lock, stores nothing.
//!
//! # Protocol
//! Within a read section each level is one single-copy atomic load. The walk may be looking at a table that was just
//! detached, and for those who only look that is right: the value was true at some instant of the section. There is no
//! method that writes.

use super::{ParentSnapshot, Position, Table, Tree, descend};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Kind};
use crate::error::Corrupt;
use crate::geometry::granule::Granule;
use crate::memory::{Groups, TableMemory};
use crate::quiescence::Reader;

/// The level of the tables whose entries lead to tables of leaves.
const ABOVE_LEAVES: Level = Level::L2;

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
    /// How the table was reached; a root has no parent.
    pub(super) parent: Option<ParentSnapshot<'r>>,
}

impl Visit<'_> {
    /// The first address that the entry at `index` of the table translates.
    #[inline(always)]
    pub(crate) fn ipa_of<G: Granule>(&self, index: usize) -> Ipa {
        let level = self.table.level;
        G::table_base(self.range.start(), level).offset((index as u64) << G::shift(level))
    }

    /// Whether these are all entries of the table.
    #[inline(always)]
    pub(crate) fn is_all_of_table<G: Granule>(&self) -> bool {
        self.count == G::ENTRIES
    }

    /// The groups they are in.
    #[inline(always)]
    pub(crate) fn groups<G: Granule>(&self) -> Groups {
        Groups::covering::<G>(self.first, self.first + self.count - 1)
    }
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
        self.find_to(ipa, Level::LEAF)
    }

    /// The same, no deeper than the tables of level `stop`.
    #[inline(always)]
    pub(crate) fn find_to(&self, ipa: Ipa, stop: Level) -> Result<Position<'r>, Corrupt> {
        loop {
            let found = descend(self.tree, self.section, ipa, stop)?;
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

    /// Shows `look` every table that holds leaves of `range`, from low to high addresses, a table once, if it is `wanted` by what
    /// is known of it. Where the tables end above level 3, that one entry is shown. Stops early, and says where, if `look`
    /// returns `false`.
    ///
    /// Grows with the tables there are: a hole is skipped at the level it begins at, and one that is not wanted costs next to nothing.
    #[inline(always)]
    pub(crate) fn visit(
        &self,
        range: IpaRange,
        wanted: impl Fn(&Table<'r>) -> bool,
        mut look: impl FnMut(Visit<'r>) -> bool,
    ) -> Result<Option<Ipa>, Corrupt> {
        let mut rest = Some(range);
        while let Some(left) = rest {
            let found = self.find_to(left.start(), ABOVE_LEAVES)?;
            let stopped = match found.table.level {
                ABOVE_LEAVES => self.visit_entries(&found, left, &wanted, &mut look)?,
                _ => self.show(&found, left, &wanted, &mut look),
            };
            if stopped.is_some() {
                return Ok(stopped);
            }
            let last = match found.table.level {
                ABOVE_LEAVES | Level::LEAF => M::Granule::table_last(left.start(), found.table.level),
                level => M::Granule::entry_last(left.start(), level),
            };
            rest = last.checked_add(1).and_then(|next| left.starting_at(next));
        }
        Ok(None)
    }

    /// What hangs in the entries of one table from that of `found` on: tables of leaves, and runs of leaves.
    #[inline(always)]
    fn visit_entries(
        &self,
        found: &Position<'r>,
        left: IpaRange,
        wanted: &impl Fn(&Table<'r>) -> bool,
        look: &mut impl FnMut(Visit<'r>) -> bool,
    ) -> Result<Option<Ipa>, Corrupt> {
        let table = found.table;
        let shift = M::Granule::shift(ABOVE_LEAVES);
        let last = M::Granule::table_last(left.start(), ABOVE_LEAVES).min(left.last());
        let end = found.index + ((last.raw() >> shift) - (left.start().raw() >> shift)) as usize + 1;
        let begins = |index: usize| {
            if index == found.index {
                left.start()
            } else {
                left.start().align_down(shift).offset(((index - found.index) as u64) << shift)
            }
        };
        let form = self.tree.leaf_form(ABOVE_LEAVES);
        let mut index = found.index;
        while index < end {
            let value = table.read(index);
            let (first, at) = (index, begins(index));
            index += 1;
            if value.is_none() {
                continue;
            }
            let Some(child) = self.tree.child(at, ABOVE_LEAVES, value).map_err(|_| self.tree.blame(at))? else {
                if self.tree.kind(value, ABOVE_LEAVES) == Kind::Reserved {
                    return Err(Corrupt { ipa: at, level: ABOVE_LEAVES });
                }
                // All that follow on it and are blocks.
                while index < end && form.is_of(table.read(index)) {
                    index += 1;
                }
                let last = M::Granule::entry_last(begins(index - 1), ABOVE_LEAVES).min(left.last());
                let Some(part) = IpaRange::inclusive(at, last) else { continue };
                let visit = Visit { table, range: part, first, count: index - first, parent: found.parent };
                if wanted(&table) && !look(visit) {
                    return Ok(Some(at));
                }
                continue;
            };
            let is_there = child.is_at(self.tree, at);
            if is_there && !wanted(&child) {
                continue;
            }
            let last = M::Granule::entry_last(at, ABOVE_LEAVES).min(left.last());
            let Some(part) = IpaRange::inclusive(at, last) else { continue };
            let below = if is_there {
                let parent = Some(ParentSnapshot { table, index: first, value });
                Position { table: child, index: M::Granule::index(at, Level::LEAF), value: Descriptor::NONE, parent }
            } else {
                // Taken out since; or somebody else wrote the entry.
                self.find(at)?
            };
            if let Some(stopped) = self.show(&below, part, wanted, look) {
                return Ok(Some(stopped));
            }
        }
        Ok(None)
    }

    /// Shows a table of leaves, or the one entry at which the tables end if that holds something.
    #[inline(always)]
    fn show(
        &self,
        found: &Position<'r>,
        left: IpaRange,
        wanted: &impl Fn(&Table<'r>) -> bool,
        look: &mut impl FnMut(Visit<'r>) -> bool,
    ) -> Option<Ipa> {
        let (level, at) = (found.table.level, left.start());
        let last = match level {
            Level::LEAF => M::Granule::table_last(at, level),
            _ if found.value.is_none() => return None,
            _ => M::Granule::entry_last(at, level),
        };
        let part = IpaRange::inclusive(at, last.min(left.last()))?;
        let shift = M::Granule::shift(level);
        let count = ((part.last().raw() >> shift) - (at.raw() >> shift)) as usize + 1;
        let visit = Visit { table: found.table, range: part, first: found.index, count, parent: found.parent };
        (wanted(&found.table) && !look(visit)).then_some(at)
    }
}
