//! A view of guest memory, pinned by a read section: where a page's frame is, to copy from.

use core::marker::PhantomData;

use crate::addr::{Ipa, IpaRange, Pa};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Descriptor, Kind, Marker};
use crate::error::Corrupt;
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::{QueryError, Stage2, entries};
use crate::walk::Visit;

/// The frame of a page. Who unmaps it gets it for reuse only after the read section this borrows from: until then it
/// is this page's, or was a moment ago.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FrameView<'r> {
    pa: Pa,
    bytes: u64,
    section: PhantomData<&'r Reader<'r>>,
}

impl FrameView<'_> {
    /// Where the page is.
    pub fn pa(&self) -> Pa {
        self.pa
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// The frame of the page of `ipa`, fit to be read by the hypervisor (rule 13: where the guest may look behind the caches they
    /// are cleaned and invalidated first). A page that is just being removed still has its frame, until that is handed over. `None`
    /// if nothing is mapped there now: a harvester who misses a page gives it back with [`Self::mark_dirty`].
    ///
    /// Locks nothing, invalidates nothing.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn view<'r>(&'r self, reader: &'r Reader<'_>, ipa: Ipa) -> Result<Option<FrameView<'r>>, QueryError> {
        let page = ipa.align_down(M::Granule::PAGE_SHIFT);
        self.check_page(reader, page)?;
        let found = self.read_only(reader).find(page).map_err(QueryError::Corrupt)?;
        let level = found.table.level;
        let base = match found.value.kind(level) {
            Kind::Page(base) | Kind::Block(base) => base,
            // Of what is claimed the grace period may have begun: a section that begins now does not hold it up.
            Kind::Marker(Marker::Removing | Marker::Breaking) => found.value.address(),
            _ => return Ok(None),
        };
        let pa = base.offset(page.raw() & (M::Granule::entry_size(level) - 1));
        let bytes = M::Granule::PAGE_SIZE;
        if self.tree.format.memory_type(found.value).is_none_or(|memory| self.looks_behind_caches(memory)) {
            self.tree.mmu.arch.clean_invalidate_to_poc(pa, bytes);
            self.tree.mmu.arch.dsb(Dsb::Ish);
        }
        Ok(Some(FrameView { pa, bytes, section: PhantomData }))
    }

    /// Makes memory of `range` hold what the guest sees, and the caches nothing of it: for traps of set/way maintenance and of a
    /// guest that turns its caches on or off.
    ///
    /// Locks nothing, invalidates no translation.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn flush_mapped(&self, reader: &Reader<'_>, range: IpaRange) -> Result<(), QueryError> {
        self.check(reader, range).map_err(QueryError::Argument)?;
        let (arch, format) = (&self.tree.mmu.arch, self.tree.format);
        self.for_each_frame(reader, range, |leaf, pa, bytes| {
            if format.memory_type(leaf).is_some_and(|memory| self.looks_behind_caches(memory)) {
                arch.clean_invalidate_to_poc(pa, bytes);
            }
        })
        .map_err(QueryError::Corrupt)?;
        arch.dsb(Dsb::Ish);
        Ok(())
    }

    /// Calls `look` with each valid leaf of `range`, and the part of its frame that the range covers.
    pub(crate) fn for_each_frame(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        mut look: impl FnMut(Descriptor, Pa, u64),
    ) -> Result<(), Corrupt> {
        let mut corrupt = Ok(());
        let each = |visit: &Visit<'_>| {
            let level = visit.table.level;
            for (index, ipa) in entries::<M::Granule>(visit.range.start(), level, visit.first, visit.count) {
                let leaf = visit.table.read(index);
                match self.tree.kind(leaf, level) {
                    Kind::Page(base) | Kind::Block(base) => {
                        let last = M::Granule::entry_last(ipa, level).min(visit.range.last());
                        let offset = ipa.raw() & (M::Granule::entry_size(level) - 1);
                        look(leaf, base.offset(offset), last.raw() - ipa.raw() + 1);
                    }
                    Kind::Reserved => {
                        corrupt = Err(Corrupt { ipa, level });
                        return false;
                    }
                    _ => {}
                }
            }
            true
        };
        self.read_only(reader).visit(range, |_| true, each)?;
        corrupt
    }
}
