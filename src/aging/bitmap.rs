//! The caller's bitmap: a bit for each page of a range.

use crate::addr::{Ipa, IpaRange};
use crate::geometry::granule::Granule;

pub(super) struct Bitmap<'b> {
    words: &'b mut [u64],
    /// The page of the first bit.
    first: u64,
    page_shift: u32,
    /// Bits that were set and had not been.
    pub(super) found: u64,
}

impl<'b> Bitmap<'b> {
    /// Over the pages of `range`; how many words it takes, if there are fewer.
    pub(super) fn new<G: Granule>(range: IpaRange, words: &'b mut [u64]) -> Result<Self, u64> {
        let needed = (range.bytes() >> G::PAGE_SHIFT).div_ceil(64);
        if (words.len() as u64) < needed {
            return Err(needed);
        }
        Ok(Self { words, first: range.start().raw() >> G::PAGE_SHIFT, page_shift: G::PAGE_SHIFT, found: 0 })
    }

    /// Sets the bits of the pages that have one in `bits`, from that at `ipa` on. Those before the first have none.
    pub(super) fn add(&mut self, ipa: Ipa, bits: u64) {
        // Below the first page it is negative.
        let at = (ipa.raw() >> self.page_shift).wrapping_sub(self.first);
        let (index, shift) = ((at.cast_signed() >> 6) as usize, at % 64);
        self.set(index, bits << shift);
        if shift != 0 {
            self.set(index.wrapping_add(1), bits >> (64 - shift));
        }
    }

    /// Sets the bits of the pages of `range`.
    pub(super) fn add_range(&mut self, range: IpaRange) {
        let mut left = range.bytes() >> self.page_shift;
        let mut at = range.start();
        while left > 0 {
            let pages = left.min(64);
            self.add(at, u64::MAX >> (64 - pages));
            at = at.offset(pages << self.page_shift);
            left -= pages;
        }
    }

    fn set(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.words.get_mut(index) {
            self.found += u64::from((bits & !*word).count_ones());
            *word |= bits;
        }
    }
}
