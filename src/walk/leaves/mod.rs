//! All leaves of one table at once, by its groups ([`Groups`]), and in those by *words* of entries that have a bit each, and *steps* of a few
//! entries, which are folded ([`Folded`](crate::descriptor::Folded)) before any is looked at alone.

mod alike;
mod clean;
mod dirty;

pub(crate) use clean::{Cleaned, Cleaning, publish_clean};

use super::Visit;
use crate::geometry::granule::Granule;
use crate::memory::Groups;

/// The entry at this index is no leaf and nothing else that may be there.
pub(crate) struct Reserved(pub(crate) usize);

/// Entries that are looked at together: as many as are in a group, but not too many for the registers.
const fn step<G: Granule>() -> usize {
    1 << if Groups::shift::<G>() < 3 { Groups::shift::<G>() } else { 3 }
}

/// Entries that have a bit each of one word.
const fn word<G: Granule>() -> usize {
    if G::ENTRIES < 64 { G::ENTRIES } else { 64 }
}

/// The places of the steps in the word at `base` that have an entry in `groups`.
#[inline(always)]
fn steps<G: Granule>(groups: Groups, base: usize) -> impl Iterator<Item = usize> {
    // Where a step is a group, the word's groups are bits that stand together.
    let mut left = if 1 << Groups::shift::<G>() == step::<G>() {
        groups.bits() >> (base >> Groups::shift::<G>()) & u64::MAX >> (64 - word::<G>() / step::<G>())
    } else {
        let of_group = |at: usize| groups.bits() >> ((base + at) >> Groups::shift::<G>()) & 1;
        (0..word::<G>() / step::<G>()).fold(0, |bits, nth| bits | of_group(nth * step::<G>()) << nth)
    };
    core::iter::from_fn(move || {
        let nth = left.trailing_zeros() as usize;
        left &= left.checked_sub(1)?;
        Some(nth * step::<G>())
    })
}

/// Entries that are folded before one of them is looked at.
pub(super) const FOLD: usize = 8;
impl Visit<'_> {
    /// The bases of the words in which the entries are that are shown.
    #[inline(always)]
    fn words<G: Granule>(&self) -> impl Iterator<Item = usize> + use<G> {
        let end = (self.first + self.count).div_ceil(word::<G>());
        (self.first / word::<G>()..end).map(|nth| nth * word::<G>())
    }

    /// A bit for each entry of the word at `base` that is shown.
    #[inline(always)]
    pub(crate) fn shown<G: Granule>(&self, base: usize) -> u64 {
        if self.is_all_of_table::<G>() {
            return u64::MAX;
        }
        let (before, until) = (self.first.saturating_sub(base), self.first + self.count - base);
        let bits = if until < 64 { (1 << until) - 1 } else { u64::MAX };
        bits >> before << before
    }
}
