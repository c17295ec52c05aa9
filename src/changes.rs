//! Whether what a backing has answered may be out of date.
//!
//! A fault asks the backing for region and page with no lock held, and maps what it was told later, with the table's lock.
//! In between another CPU may have mapped that page, unmapped it and moved its content, or protected it. The entry is then
//! empty as it was before, so comparing the entry says nothing. Therefore a tree counts what is taken from the guest; a
//! fault reads the count before it asks and again under the lock. If it is another, the page goes back and the guest tries
//! again. There are [`BUCKETS`] counts, by leaf table's address: a fault is not sent back for what happens elsewhere.
//!
//! # Protocol
//! - Unmap and protect count *before* they look at the first entry, for a backing that changes its mind before it calls
//!   them. A fault that locks the table earlier than they do maps what they then find. One that locks it later sees the count, by
//!   the lock. Where they lock nothing, since there is no table: they count, `fence(SeqCst)`, read the parent's entry; the
//!   fault links a table there, `fence(SeqCst)`, reads the count. One of the two sees what the other did.
//! - Unmap counts *again* after frames were handed over and before their markers go, for a backing that changes its mind
//!   then. A fault that finds the entry empty took the lock after the marker went, and sees the count.
//! - A fault that sees a count when it begins (acquire, of the count's release) is told what the backing knew then, or
//!   later.

use crate::addr::{Ipa, IpaRange, Level};
use crate::geometry::granule::Granule;
use crate::sync::{AtomicU64, Ordering, fence};

/// Counts of one tree: the leaf table over an address has the one numbered by its place, modulo this.
const BUCKETS: u64 = 64;

/// The counts of one tree. Only unmap and protect write them.
#[doc(alias = "mmu_invalidate_seq")]
#[repr(align(128))]
pub(crate) struct Changes {
    counts: [AtomicU64; BUCKETS as usize],
    /// log2 of the bytes that a leaf table covers.
    table_shift: u32,
}

/// The count of an address as a fault has seen it.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    bucket: usize,
    count: u64,
}

impl Changes {
    pub(crate) fn new<G: Granule>() -> Self {
        let table_shift = G::shift(Level::LEAF) + G::INDEX_BITS;
        Self { counts: core::array::from_fn(|_| AtomicU64::new(0)), table_shift }
    }

    fn bucket(&self, table: u64) -> &AtomicU64 {
        &self.counts[(table % BUCKETS) as usize]
    }

    /// Something in `range` is about to be taken from the guest, or was, and its marker is about to go.
    pub(crate) fn count(&self, range: IpaRange) {
        let (first, last) = (range.start().raw() >> self.table_shift, range.last().raw() >> self.table_shift);
        for table in first..=last.min(first + BUCKETS - 1) {
            self.bucket(table).fetch_add(1, Ordering::AcqRel);
        }
        // Partner: the fence in `is_still`.
        fence(Ordering::SeqCst);
    }

    /// The count of `ipa` now: before the backing is asked.
    #[inline(always)]
    pub(crate) fn seen(&self, ipa: Ipa) -> Seen {
        let table = ipa.raw() >> self.table_shift;
        Seen { bucket: (table % BUCKETS) as usize, count: self.bucket(table).load(Ordering::Acquire) }
    }

    /// Whether nothing was counted since, so that the backing's answer holds. With the table's lock held, which keeps it so
    /// until the answer is mapped.
    #[doc(alias = "mmu_invalidate_retry")]
    #[inline(always)]
    pub(crate) fn is_still(&self, seen: Seen) -> bool {
        // Partner: the fence in `count`.
        fence(Ordering::SeqCst);
        self.counts[seen.bucket].load(Ordering::Acquire) == seen.count
    }
}
