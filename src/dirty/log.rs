//! The side log: one bit a page, set by anybody, cleared by the harvester's rearm.

use super::Tracking;
use crate::addr::{Ipa, IpaRange};
use crate::sync::{AtomicU8, AtomicU64, Ordering, Word, fence};

/// Memory for the side log: a bit for each page from `base` on. It also says what is logged: pages outside are not.
#[derive(Clone, Copy)]
pub struct DirtyBitmap<'h> {
    /// An address in the first bit's page.
    pub base: Ipa,
    /// The bits, the lowest first. The library's for as long as there is a guest that has them.
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

    /// The number of the bit of `ipa`'s page; `None` below the first.
    fn bit(&self, ipa: Ipa, page_shift: u32) -> Option<u64> {
        Some(ipa.raw().checked_sub(self.base.raw())? >> page_shift)
    }

    /// Words that stand together behind one bit of [`LogState::noted`].
    fn words_per_part(&self) -> usize {
        self.words.len().div_ceil(64)
    }
}

/// The dirty log of one guest.
pub(crate) struct LogState<'h> {
    bitmap: Option<DirtyBitmap<'h>>,
    /// The [`Tracking`] of the log that is on, or 0.
    tracking: AtomicU8,
    /// A bit for each 64th of the bitmap in which a bit may be set. Set after that, so that the harvester, who takes it first, finds
    /// it again.
    noted: AtomicU64,
}

impl<'h> LogState<'h> {
    pub(crate) fn new(bitmap: Option<DirtyBitmap<'h>>, page_shift: u32) -> Self {
        let bitmap = bitmap.map(|bitmap| DirtyBitmap { base: bitmap.base.align_down(page_shift), ..bitmap });
        // What the embedder's words hold nobody knows. No log has read them yet.
        bitmap.iter().flat_map(|bitmap| bitmap.words).for_each(|word| word.store(0, Ordering::Relaxed));
        Self { bitmap, tracking: AtomicU8::new(0), noted: AtomicU64::new(0) }
    }

    pub(crate) fn bitmap(&self) -> Option<&DirtyBitmap<'h>> {
        self.bitmap.as_ref()
    }

    /// How the log that is on tracks stores. Decides only how a clean page looks and whether the side log is written; never whether
    /// a dirty page looks dirty.
    #[inline(always)]
    pub(crate) fn tracking(&self) -> Option<Tracking> {
        Tracking::from_raw(self.tracking.load(Ordering::Acquire))
    }

    /// Whether a log is on.
    #[inline(always)]
    pub(crate) fn is_active(&self) -> bool {
        self.tracking().is_some()
    }

    pub(crate) fn deactivate(&self) {
        self.tracking.store(0, Ordering::Release);
    }

    /// Turns logging on; `false` if it is.
    pub(crate) fn activate(&self, tracking: Tracking) -> bool {
        let activated = self.tracking.compare_exchange(0, tracking as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        // From here on a store that is marked is either noted or before what is copied. Partner: the fence in `mark_dirty`.
        fence(Ordering::SeqCst);
        activated
    }

    /// Sets the bits of the entry of `1 << shift` bytes over `ipa`. Release: who reads the bit reads what was stored before.
    pub(crate) fn publish(&self, ipa: Ipa, shift: u32, page_shift: u32) {
        if let Some(entry) = IpaRange::inclusive(ipa, Ipa::new(ipa.raw() | ((1 << shift) - 1))) {
            self.publish_range(entry, page_shift);
        }
    }

    /// The same for each page of `range`.
    pub(crate) fn publish_range(&self, range: IpaRange, page_shift: u32) {
        let Some(bitmap) = self.bitmap.as_ref().filter(|_| self.is_active()) else { return };
        let Some(logged) = bitmap.range(page_shift).and_then(|logged| logged.intersection(range)) else { return };
        if let (Some(first), Some(last)) =
            (bitmap.bit(logged.start(), page_shift), bitmap.bit(logged.last(), page_shift))
        {
            for index in first / 64..=last / 64 {
                self.publish_word(index as usize, bits_of_word(index, first, last));
            }
        }
    }

    /// Sets bits of one word of the bitmap: first there, then in what leads to it.
    fn publish_word(&self, index: usize, bits: u64) {
        let Some((bitmap, word)) = self.bitmap.as_ref().and_then(|bitmap| Some((bitmap, bitmap.words.get(index)?)))
        else {
            return;
        };
        word.fetch_or(bits, Ordering::Release);
        let part = 1 << (index / bitmap.words_per_part());
        // Also if it is set: the harvester may have taken it, and looked at the word before.
        self.noted.fetch_or(part, Ordering::Release);
    }

    /// Sets the bits of the pages from `at` on that have a bit in `bits`: a harvest comes back.
    pub(crate) fn publish_bits(&self, at: Ipa, bits: u64, page_shift: u32) {
        for (index, bits) in self.words_of(at, bits, page_shift) {
            self.publish_word(index, bits);
        }
    }

    /// The words that 64 bits from the page of `at` on are in, and which bits there.
    fn words_of(&self, at: Ipa, bits: u64, page_shift: u32) -> impl Iterator<Item = (usize, u64)> {
        let first = self.bitmap.as_ref().and_then(|bitmap| bitmap.bit(at, page_shift)).unwrap_or(u64::MAX);
        let (index, shift) = ((first / 64) as usize, first % 64);
        let above = if shift == 0 { 0 } else { bits >> (64 - shift) };
        [(index, bits << shift), (index.wrapping_add(1), above)].into_iter().filter(|&(_, bits)| bits != 0)
    }

    /// Calls `found` with a page of `range`, and a bit for each from there on, up to 64, whose bit is set. Acquire: the partner of
    /// [`Self::publish_word`].
    pub(crate) fn for_each(&self, range: IpaRange, page_shift: u32, mut found: impl FnMut(Ipa, u64)) {
        let Some(bitmap) = &self.bitmap else { return };
        let Some(logged) = bitmap.range(page_shift).and_then(|logged| logged.intersection(range)) else { return };
        let (Some(first), Some(last)) = (bitmap.bit(logged.start(), page_shift), bitmap.bit(logged.last(), page_shift))
        else {
            return;
        };
        // Taken first: what is published from here on is noted again.
        let mut noted = self.noted.swap(0, Ordering::AcqRel);
        let mut again = 0;
        let words = bitmap.words_per_part() as u64;
        while noted != 0 {
            let part = u64::from(noted.trailing_zeros());
            noted &= noted - 1;
            for index in part * words..(part + 1) * words {
                let Some(word) = bitmap.words.get(index as usize) else { break };
                let bits = word.load(Ordering::Acquire);
                if bits == 0 {
                    continue;
                }
                again |= 1 << part;
                let asked =
                    if (first / 64..=last / 64).contains(&index) { bits_of_word(index, first, last) } else { 0 };
                if bits & asked != 0 {
                    found(bitmap.base.offset((index * 64) << page_shift), bits & asked);
                }
            }
        }
        if again != 0 {
            // Until they are rearmed.
            self.noted.fetch_or(again, Ordering::Relaxed);
        }
    }

    /// Whether any bit was set that the last scan has read. To leave one that was set since is right: it is the next harvest's.
    pub(crate) fn is_noted(&self) -> bool {
        self.noted.load(Ordering::Relaxed) != 0
    }

    /// Clears the bits of the pages from `at` on that have a bit in `bits`, before they are copied. Acquire: what was stored before
    /// a bit was set is copied.
    pub(crate) fn clear(&self, at: Ipa, bits: u64, page_shift: u32) {
        let Some(bitmap) = &self.bitmap else { return };
        for (index, bits) in self.words_of(at, bits, page_shift) {
            if let Some(word) = bitmap.words.get(index)
                && word.load(Ordering::Relaxed) & bits != 0
            {
                word.fetch_and(!bits, Ordering::AcqRel);
            }
        }
    }

    /// Sets or clears all bits. Acquire: what was stored before a bit that goes, or that was there already, is copied. A plain store
    /// would hide that bit from [`Self::clear`], and with it the store.
    pub(crate) fn fill(&self, dirty: bool) {
        let Some(bitmap) = &self.bitmap else { return };
        let value = if dirty { u64::MAX } else { 0 };
        // To clear takes a look at what may be set alone. Taken first: what is published from here on is noted again.
        let noted = self.noted.swap(value, Ordering::AcqRel) | value;
        for (part, words) in bitmap.words.chunks(bitmap.words_per_part().max(1)).enumerate() {
            if noted >> part & 1 == 0 {
                continue;
            }
            for word in words {
                if word.load(Ordering::Relaxed) != value {
                    word.swap(value, Ordering::Acquire);
                }
            }
        }
    }
}

/// The bits of the word `index` that are those from `first` to `last`.
pub(super) fn bits_of_word(index: u64, first: u64, last: u64) -> u64 {
    let from = if index == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
    let until = if index == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
    from & until
}
