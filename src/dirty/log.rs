//! The side log: one bit a page, set by anybody, cleared by the harvester's rearm.

use crate::addr::{Ipa, IpaRange};
use crate::sync::{AtomicBool, Ordering, Word, fence};

/// Memory for the side log: a bit for each page from `base` on. It also says what is logged: pages outside are not.
#[derive(Clone, Copy)]
pub struct DirtyBitmap<'h> {
    /// An address in the first bit's page.
    pub base: Ipa,
    /// The bits, the lowest first.
    pub words: &'h [Word],
}

#[cfg(feature = "defmt")]
impl defmt::Format for DirtyBitmap<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "DirtyBitmap {{ base: {}, {=usize} words }}", self.base, self.words.len());
    }
}

impl DirtyBitmap<'_> {
    /// The pages there are bits for; `None` if none.
    pub(crate) fn range(&self, page_shift: u32) -> Option<IpaRange> {
        let pages = self.words.len() as u64 * 64;
        IpaRange::new(self.base, pages.checked_mul(1 << page_shift)?)
    }

    /// The bit of the page of `ipa`: its word and its mask.
    fn bit(&self, ipa: Ipa, page_shift: u32) -> Option<(&Word, u64)> {
        let page = ipa.raw().checked_sub(self.base.raw())? >> page_shift;
        Some((self.words.get((page / 64) as usize)?, 1 << (page % 64)))
    }
}

/// The dirty log of one guest.
pub(crate) struct LogState<'h> {
    bitmap: Option<DirtyBitmap<'h>>,
    active: AtomicBool,
}

impl<'h> LogState<'h> {
    pub(crate) fn new(bitmap: Option<DirtyBitmap<'h>>, page_shift: u32) -> Self {
        let bitmap = bitmap.map(|bitmap| DirtyBitmap { base: bitmap.base.align_down(page_shift), ..bitmap });
        Self { bitmap, active: AtomicBool::new(false) }
    }

    pub(crate) fn bitmap(&self) -> Option<&DirtyBitmap<'h>> {
        self.bitmap.as_ref()
    }

    /// Whether logging is on. Decides only how a page begins (clean pages are of use to a harvester only) and whether the
    /// side log is written; never whether a dirty page looks dirty.
    #[inline(always)]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(crate) fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::Release);
    }

    /// Turns logging on; `false` if it is.
    pub(crate) fn activate(&self) -> bool {
        let activated = !self.active.swap(true, Ordering::AcqRel);
        // From here on a store that is marked is either noted or before what is copied. Partner: the fence in `mark_dirty`.
        fence(Ordering::SeqCst);
        activated
    }

    /// Sets the bits of the entry of `1 << shift` bytes over `ipa`. Release: who reads the bit reads what was stored before.
    pub(crate) fn publish(&self, ipa: Ipa, shift: u32, page_shift: u32) {
        if !self.is_active() {
            return;
        }
        let Some(bitmap) = &self.bitmap else { return };
        let first = ipa.align_down(page_shift);
        let last = ipa.raw() | ((1 << shift) - 1);
        let mut at = first;
        while at.raw() <= last {
            if let Some((word, mask)) = bitmap.bit(at, page_shift) {
                word.fetch_or(mask, Ordering::Release);
            }
            match at.checked_add(1 << page_shift) {
                Some(next) => at = next,
                None => break,
            }
        }
    }

    /// Calls `found` with each page of `range` whose bit is set. Acquire: the partner of [`Self::publish`].
    pub(crate) fn for_each(&self, range: IpaRange, page_shift: u32, mut found: impl FnMut(Ipa)) {
        let Some(bitmap) = &self.bitmap else { return };
        let Some(logged) = bitmap.range(page_shift).and_then(|logged| logged.intersection(range)) else { return };
        let page_of = |ipa: Ipa| (ipa.raw() - bitmap.base.raw()) >> page_shift;
        let (first, last) = (page_of(logged.start()), page_of(logged.last()));
        for index in first / 64..=last / 64 {
            let Some(word) = bitmap.words.get(index as usize) else { return };
            let mut bits = word.load(Ordering::Acquire);
            while bits != 0 {
                let page = index * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                if (first..=last).contains(&page) {
                    found(bitmap.base.offset(page << page_shift));
                }
            }
        }
    }

    /// Clears the bit of one page, before it is copied. Acquire: what was stored before the bit was set is copied.
    pub(crate) fn clear(&self, ipa: Ipa, page_shift: u32) {
        if let Some((word, mask)) = self.bitmap.as_ref().and_then(|bitmap| bitmap.bit(ipa, page_shift))
            && word.load(Ordering::Relaxed) & mask != 0
        {
            word.fetch_and(!mask, Ordering::AcqRel);
        }
    }

    /// Sets or clears all bits. Acquire: what was stored before a bit that goes, or that was there already, is copied. A plain store
    /// would hide that bit from [`Self::clear`], and with it the store.
    pub(crate) fn fill(&self, dirty: bool) {
        if let Some(bitmap) = &self.bitmap {
            for word in bitmap.words {
                word.swap(if dirty { u64::MAX } else { 0 }, Ordering::Acquire);
            }
        }
    }
}
