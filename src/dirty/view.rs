//! A view of guest memory, pinned by a read section: where a page's frame is, to copy from.

use core::marker::PhantomData;

use crate::addr::{Ipa, Pa};
use crate::arch::Arch;
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::{QueryError, Stage2};

/// The frame of a page. Who unmaps it gets it for reuse only after the read section this borrows from: until then it
/// is this page's, or was a moment ago.
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
    /// The frame of the page of `ipa`, fit to be read by the hypervisor (rule 13: without FWB the caches are cleaned and
    /// invalidated first). `None` if nothing is mapped there now, or it is just being removed: a harvester who
    /// misses a page gives it back with [`Self::mark_dirty`].
    ///
    /// Locks nothing, invalidates nothing.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn view<'r>(&self, reader: &'r Reader<'_>, ipa: Ipa) -> Result<Option<FrameView<'r>>, QueryError> {
        let page = ipa.align_down(M::Granule::PAGE_SHIFT);
        let Some(mapping) = self.query(reader, page)? else { return Ok(None) };
        let bytes = M::Granule::PAGE_SIZE;
        if !self.tree.mmu.features.force_write_back() {
            self.tree.mmu.arch.clean_invalidate_to_poc(mapping.pa, bytes);
            self.tree.mmu.arch.dsb(crate::arch::Dsb::Ish);
        }
        Ok(Some(FrameView { pa: mapping.pa, bytes, section: PhantomData }))
    }
}
