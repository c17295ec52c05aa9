//! The working set: for each page, or each leaf table's worth of pages, the intervals since it was last accessed; and how many pages
//! there are of each age.
//!
//! A *pass* makes everything old once, and ends an interval: what was young then has age 0, and everything else is one interval older
//! than before. It is taken in pieces that the caller bounds. What is made old in all pieces but the last stays in the TLBs; the last one
//! flushes. So a pass is one flush, and the boundary between two intervals is somewhere within it: an access meanwhile is of the one that
//! ends, in which its page was young then, or of the one that begins.

use super::{AgingError, Flush, MadeOld, scan::blocks};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::error::Stopped;
use crate::geometry::granule::Granule;
use crate::memory::{TableMemory, TreeId};
use crate::quiescence::Reader;
use crate::stage2::Stage2;
use crate::tlb::Gather;
use crate::walk::{Ages, Visit};

/// Of how much memory one counter keeps the age.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Unit {
    /// Of a page.
    Page,
    /// Of what a table of leaves covers, 2 MiB with the 4K granule: as young as the youngest of its pages.
    Table,
}

/// A counter's value where nothing is mapped.
const NOTHING: u8 = u8::MAX;
/// Who is older is as old.
const OLDEST: u8 = NOTHING - 1;

/// Bins of a [`Histogram`].
const BINS: usize = 9;

/// Pages by their age, at the end of a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Histogram {
    /// First the pages that were accessed in the interval that has ended; then those whose last access is one interval further back; 2 or 3;
    /// 4 to 7; and so on. The last bin has all from 128 on.
    pub pages: [u64; BINS],
}

impl Histogram {
    fn add(&mut self, age: u8, pages: u64) {
        // Of the ages that have so many significant bits.
        let bin = (u8::BITS - age.leading_zeros()) as usize;
        if let Some(of_age) = self.pages.get_mut(bin) {
            *of_age += pages;
        }
    }

    /// All pages that are mapped.
    pub fn mapped(&self) -> u64 {
        self.pages.iter().sum()
    }

    /// The working set: pages that were accessed within the last `intervals`, a number that is rounded down to a power of two.
    pub fn accessed_within(&self, intervals: u32) -> u64 {
        let bins = (u32::BITS - intervals.leading_zeros()) as usize;
        self.pages.iter().take(bins).sum()
    }
}

/// The ages of a range of a guest's memory, kept in the caller's counters: from [`Stage2::working_set`], for [`Stage2::age`].
pub struct WorkingSet<'b> {
    tree: TreeId,
    range: IpaRange,
    counters: &'b mut [u8],
    /// log2 of a counter's bytes.
    shift: u32,
    page_shift: u32,
    /// The counter that the pass is at, and what is known of it.
    at: usize,
    mapped: u64,
    is_young: bool,
    /// Where the pass under way goes on.
    next: Option<Ipa>,
    /// Of the pass under way.
    counting: Histogram,
    /// Of the last that is over.
    histogram: Histogram,
    passes: u64,
}

impl<'b> WorkingSet<'b> {
    /// Of the last pass that is over; nothing before there is one.
    pub fn histogram(&self) -> &Histogram {
        &self.histogram
    }

    /// How many passes are over.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// How many intervals ago the unit of `ipa` was last accessed, 254 or more being 254; `None` if nothing was mapped there, or it is
    /// outside of the range.
    pub fn age(&self, ipa: Ipa) -> Option<u8> {
        let age = self.counters.get(self.range.contains(ipa).then(|| self.unit(ipa))?).copied();
        age.filter(|&age| age != NOTHING)
    }

    /// Calls `found` with runs of what is mapped and was last accessed `intervals` ago or earlier, from low to high addresses: what may be
    /// swapped, or asked back from the guest. While a pass is under way, what it has not come to yet is as it was.
    pub fn for_each_idle(&self, intervals: u8, mut found: impl FnMut(IpaRange)) {
        let mut run: Option<IpaRange> = None;
        for unit in 0..self.units() {
            let is_idle = self.counters.get(unit).is_some_and(|&age| age >= intervals && age != NOTHING);
            let Some(next) = self.range_of(unit).filter(|_| is_idle) else { continue };
            run = match run {
                Some(before) if before.last().checked_add(1) == Some(next.start()) => {
                    IpaRange::inclusive(before.start(), next.last())
                }
                before => {
                    before.into_iter().for_each(&mut found);
                    Some(next)
                }
            };
        }
        run.into_iter().for_each(found);
    }

    /// The counter of `ipa`, an address of the range or after it.
    fn unit(&self, ipa: Ipa) -> usize {
        ((ipa.raw() >> self.shift) - (self.range.start().raw() >> self.shift)) as usize
    }

    fn units(&self) -> usize {
        self.unit(self.range.last()) + 1
    }

    /// What a counter is of.
    fn range_of(&self, unit: usize) -> Option<IpaRange> {
        let first = self.range.start().align_down(self.shift).offset((unit as u64) << self.shift);
        IpaRange::inclusive(first, Ipa::new(first.raw() | ((1 << self.shift) - 1)))?.intersection(self.range)
    }

    /// The pass comes to `unit`; between the last and this nothing is mapped. Adds to it so many pages.
    fn count(&mut self, unit: usize, pages: u64, is_young: bool) {
        self.come_to(unit);
        if unit == self.at {
            self.mapped += pages;
            self.is_young |= is_young;
        }
    }

    fn come_to(&mut self, unit: usize) {
        if unit <= self.at {
            return;
        }
        if let Some(counter) = self.counters.get_mut(self.at) {
            *counter = match (self.mapped, self.is_young, *counter) {
                (0, ..) => NOTHING,
                // Mapped since the last pass, and made old by somebody else: it was accessed.
                (_, true, _) | (_, _, NOTHING) => 0,
                (.., age) => (age + 1).min(OLDEST),
            };
            if self.mapped != 0 {
                self.counting.add(*counter, self.mapped);
            }
        }
        let between = self.counters.get_mut(self.at + 1..unit).unwrap_or_default();
        between.fill(NOTHING);
        (self.at, self.mapped, self.is_young) = (unit, 0, false);
    }

    /// All of `block`, or of what the range has of it, is young or old.
    fn count_block(&mut self, block: IpaRange, is_young: bool) {
        for unit in self.unit(block.start())..=self.unit(block.last()) {
            let part = self.range_of(unit).and_then(|unit| unit.intersection(block));
            self.count(unit, part.map_or(0, |part| part.bytes() >> self.page_shift), is_young);
        }
    }

    /// The pages from `ipa` on that have a bit in `ages`.
    fn count_pages(&mut self, ipa: Ipa, ages: Ages) {
        if self.shift > self.page_shift {
            if ages.mapped != 0 {
                // A word of pages is in one unit. The range may begin within the word.
                let unit = self.unit(ipa.max(self.range.start()));
                self.count(unit, u64::from(ages.mapped.count_ones()), ages.young != 0);
            }
            return;
        }
        for nth in (0..64).filter(|nth| ages.mapped >> nth & 1 == 1) {
            self.count(self.unit(ipa.offset(nth << self.page_shift)), 1, ages.young >> nth & 1 == 1);
        }
    }

    /// The pass goes on at `next`, or is over.
    fn pause(&mut self, next: Option<Ipa>) {
        let next = next.filter(|&next| self.range.contains(next));
        self.come_to(next.map_or(self.units(), |next| self.unit(next)));
        self.next = next;
        if next.is_none() {
            self.histogram = core::mem::take(&mut self.counting);
            self.passes += 1;
            self.at = 0;
        }
    }
}

impl<A: Arch, M: TableMemory> Stage2<'_, A, M> {
    /// Begins to keep the ages of `range`, in a counter of `counters` for each `unit`. A block that the range covers a part of stays young.
    ///
    /// Locks nothing, invalidates nothing.
    ///
    /// # Errors
    /// [`AgingError::Argument`], [`AgingError::TooShort`].
    pub fn working_set<'b>(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        unit: Unit,
        counters: &'b mut [u8],
    ) -> Result<WorkingSet<'b>, AgingError> {
        self.check(reader, range).map_err(AgingError::Argument)?;
        let page_shift = M::Granule::PAGE_SHIFT;
        let shift = match unit {
            Unit::Page => page_shift,
            Unit::Table => page_shift + M::Granule::INDEX_BITS,
        };
        let needed = (range.last().raw() >> shift) - (range.start().raw() >> shift) + 1;
        if (counters.len() as u64) < needed {
            return Err(AgingError::TooShort { needed });
        }
        counters.fill(NOTHING);
        Ok(WorkingSet {
            tree: self.id(),
            range,
            counters,
            shift,
            page_shift,
            at: 0,
            mapped: 0,
            is_young: false,
            next: None,
            counting: Histogram::default(),
            histogram: Histogram::default(),
            passes: 0,
        })
    }

    /// Takes a pass, or goes on with the one under way, over no more than `budget` leaf tables' worth of addresses and what a block there
    /// reaches beyond. When `next` is `None` the pass is over, and an interval begins.
    ///
    /// Locks one table at a time, if anything in it is young; allocates nothing; invalidates once, when the pass is over.
    ///
    /// # Errors
    /// [`AgingError::OtherGuest`], [`AgingError::Argument`]: nothing was changed. [`AgingError::Stopped`]: what came before is counted, and the
    /// pass goes on there.
    pub fn age(&self, reader: &Reader<'_>, set: &mut WorkingSet<'_>, budget: u32) -> Result<MadeOld, AgingError> {
        if set.tree != self.id() {
            return Err(AgingError::OtherGuest);
        }
        let from = set.next.unwrap_or(set.range.start());
        let left = set.range.starting_at(from).unwrap_or(set.range);
        self.check(reader, left).map_err(AgingError::Argument)?;
        // The end of a table.
        let table = M::Granule::entry_size(Level::LEAF) << M::Granule::INDEX_BITS;
        let ahead = table.saturating_mul(u64::from(budget.max(1)) - 1);
        let last = M::Granule::table_last(Ipa::new(from.raw().saturating_add(ahead)), Level::LEAF);
        let mut gather = Gather::new(&self.tree, reader);
        let mut seen = last;
        let goes_on = |visit: &Visit<'_>| {
            let goes_on = visit.range.start() <= last;
            if goes_on {
                seen = seen.max(visit.range.last());
            }
            goes_on
        };
        let made_old = self.make_tables_old(reader, left, &mut gather, goes_on, |visit, base, ages| {
            if visit.table.level == Level::LEAF {
                set.count_pages(visit.ipa_of::<M::Granule>(base), ages);
                return;
            }
            // A bit at a time, since there may be both kinds: in order.
            for nth in (0..64).filter(|nth| ages.mapped >> nth & 1 == 1) {
                let is_young = ages.young >> nth & 1 == 1;
                blocks::<M::Granule>(visit, base, 1 << nth).for_each(|block| set.count_block(block, is_young));
            }
        });
        let next = match &made_old {
            // A table that others are about to take out, or one that is not all right.
            Ok(MadeOld { next: Some(at), .. }) if *at <= last => Some(*at),
            Err(corrupt) => Some(corrupt.ipa.max(from)),
            Ok(_) => seen.checked_add(1),
        };
        set.pause(next);
        let flush = if set.next.is_none() { Flush::Now } else { Flush::Later };
        self.aging.end(gather, flush);
        match made_old {
            Ok(MadeOld { young, .. }) => Ok(MadeOld { young, next: set.next }),
            Err(corrupt) => Err(AgingError::Stopped(Stopped::at(set.range, corrupt.ipa, corrupt))),
        }
    }
}
