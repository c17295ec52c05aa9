//! The read-only walk: looks, takes no lock, stores nothing.
//!
//! # Protocol
//! Within a read section each level is one single-copy atomic load. The walk may be looking at a table that was just
//! detached, and for those who only look that is right: the value was true at some instant of the section. There is no
//! method that writes.

use core::ops::Range;

use super::{ParentSnapshot, Position, Table, Tree, descend};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Kind};
use crate::error::Corrupt;
use crate::geometry::granule::Granule;
use crate::memory::{Groups, OwnTables, Place, TableMemory};
use crate::quiescence::Reader;
use crate::sync::{Ordering, Word};

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
            if found.is_there {
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
    /// is known of it. Where the tables end above level 3, that one entry is shown. Stops early if `look` returns
    /// `false`. Returns how many tables it passed over since they were not wanted.
    ///
    /// Grows with the tables there are: a hole is skipped at the level it begins at, and one that is not wanted costs next to nothing.
    #[inline(always)]
    pub(crate) fn visit(
        &self,
        range: IpaRange,
        wanted: impl Fn(&Table<'r>) -> bool,
        mut look: impl FnMut(&Visit<'r>) -> bool,
    ) -> Result<u64, Corrupt> {
        let mut rest = Some(range);
        let mut passed = 0;
        while let Some(left) = rest {
            let found = self.find_to(left.start(), ABOVE_LEAVES)?;
            let level = found.table.level;
            // Where the tables end above, one entry is all there is.
            let last = match level {
                ABOVE_LEAVES | Level::LEAF => M::Granule::table_last(left.start(), level),
                _ => M::Granule::entry_last(left.start(), level),
            };
            let goes_on = match level {
                ABOVE_LEAVES => self.visit_entries(&found, left, &wanted, &mut passed, &mut look)?,
                _ if (level < Level::LEAF && found.value.is_none()) || !wanted(&found.table) => true,
                _ => Self::show(&found, left.start(), last.min(left.last()), &mut look),
            };
            if !goes_on {
                break;
            }
            rest = last.checked_add(1).and_then(|next| left.starting_at(next));
        }
        Ok(passed)
    }

    /// What hangs in the entries of one table from that of `found` on: tables of leaves, and runs of leaves. Counts in `passed`
    /// the tables that are not wanted. Whether to go on.
    #[inline(always)]
    fn visit_entries(
        &self,
        found: &Position<'r>,
        left: IpaRange,
        wanted: &impl Fn(&Table<'r>) -> bool,
        passed: &mut u64,
        look: &mut impl FnMut(&Visit<'r>) -> bool,
    ) -> Result<bool, Corrupt> {
        let table = found.table;
        let shift = M::Granule::shift(ABOVE_LEAVES);
        let last = M::Granule::table_last(left.start(), ABOVE_LEAVES).min(left.last());
        let end = found.index + ((last.raw() >> shift) - (left.start().raw() >> shift)) as usize + 1;
        let base = M::Granule::table_base(left.start(), ABOVE_LEAVES);
        let begins = |index: usize| base.offset((index as u64) << shift).max(left.start());
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
                // All that follow on it and are blocks, or being removed as it is.
                let follows = |next: Descriptor| form.is_of(next) || (next.is_removing() && value.is_removing());
                while index < end && follows(table.read(index)) {
                    index += 1;
                }
                let last = M::Granule::entry_last(begins(index - 1), ABOVE_LEAVES).min(left.last());
                let Some(part) = IpaRange::inclusive(at, last) else { continue };
                let visit = Visit { table, range: part, first, count: index - first, parent: found.parent };
                if wanted(&table) && !look(&visit) {
                    return Ok(false);
                }
                continue;
            };
            if !child.is_at(self.tree, at) {
                // Taken out since: the entry is read again. Or somebody else wrote it.
                self.find(at)?;
                index = first;
                continue;
            }
            if !wanted(&child) {
                // Most often those that follow are not, either.
                let more = self.count_unwanted(&table, index..end, begins(index), wanted);
                *passed += 1 + more as u64;
                index += more;
                continue;
            }
            let parent = table.snapshot(first, value);
            let index = M::Granule::index(at, Level::LEAF);
            let below = Position { table: child, index, value: Descriptor::NONE, is_there: true, parent };
            if !Self::show(&below, at, M::Granule::entry_last(at, ABOVE_LEAVES).min(left.last()), look) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many of `entries`, one after the other from the first on, lead to tables that are there and not `wanted`. The first is
    /// over `at`.
    ///
    /// Not inlined: most tables are of these, and alone it has registers for all that a look at one takes.
    #[inline(never)]
    fn count_unwanted(
        &self,
        table: &Table<'r>,
        entries: Range<usize>,
        at: Ipa,
        wanted: &impl Fn(&Table<'r>) -> bool,
    ) -> usize {
        let tree = self.tree;
        let mut base = M::Granule::table_base(at, Level::LEAF);
        let passes = |entry: &Word| {
            let value = Descriptor::from_raw(entry.load(Ordering::Acquire));
            let there = Place { base, level: Level::LEAF };
            base = base.offset(M::Granule::entry_size(ABOVE_LEAVES));
            // Not behind a marker: that takes a closer look.
            value.is_valid_table()
                && tree.mmu.memory.page(value.address()).is_some_and(|page| {
                    page.meta.is_at(tree.id, there) && !wanted(&Table { page, pa: value.address(), level: Level::LEAF })
                })
        };
        table
            .page
            .entries
            .get(entries)
            .map_or(0, |entries| entries.iter().map(passes).take_while(|&passes| passes).count())
    }

    /// Shows the entries of a table from that of `found`, which is over `at`, to that over `last`. Whether to go on.
    #[inline(always)]
    fn show(found: &Position<'r>, at: Ipa, last: Ipa, look: &mut impl FnMut(&Visit<'r>) -> bool) -> bool {
        let Some(range) = IpaRange::inclusive(at, last) else { return true };
        let shift = M::Granule::shift(found.table.level);
        let count = ((last.raw() >> shift) - (at.raw() >> shift)) as usize + 1;
        look(&Visit { table: found.table, range, first: found.index, count, parent: found.parent })
    }
}
