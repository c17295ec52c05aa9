//! A ready table memory: pages carved from regions the embedder gives.
//!
//! Each region holds the metadata of its pages in front and the pages behind it, so that both are found by arithmetic. Free
//! pages are kept in one list per order, threaded through their metadata; pages never used yet are taken from the
//! front of a region, which is where the contiguous pages of a root come from. What was freed as a root is reused as a
//! root: orders are not merged or split, since a machine makes few guests compared to tables.

use core::marker::PhantomData;
use core::ptr::NonNull;

use super::{OutOfTables, OwnTables, TableMemory, TableMeta, TablePage};
use crate::addr::Pa;
use crate::geometry::granule::Granule;
use crate::sync::{Mutex, Ordering, Word};

/// Orders of allocations: up to 16 concatenated tables.
const ORDERS: usize = 5;

/// Memory for tables, as the embedder gives it to [`Pool::new`].
#[derive(Clone, Copy, Debug)]
pub struct PoolRegion {
    /// Its physical address.
    pub pa: Pa,
    /// Where it is mapped.
    pub start: NonNull<u8>,
    /// Its length.
    pub bytes: usize,
}

#[cfg(feature = "defmt")]
impl defmt::Format for PoolRegion {
    fn format(&self, f: defmt::Formatter<'_>) {
        let start = self.start.as_ptr().addr();
        defmt::write!(f, "PoolRegion {{ pa: {}, start: {=usize:#x}, bytes: {=usize:#x} }}", self.pa, start, self.bytes);
    }
}

/// How much of a pool is in use, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PoolUse {
    /// Pages given out and not yet given back.
    pub live: u64,
    /// The most there ever were at once.
    pub peak: u64,
    /// Pages there are.
    pub capacity: u64,
}

/// Table memory over up to `REGIONS` regions.
pub struct Pool<G, const REGIONS: usize = 1> {
    /// Those that are not there have no pages.
    regions: [Carved; REGIONS],
    free: Mutex<FreeLists<REGIONS>>,
    granule: PhantomData<G>,
}

/// A region, divided: `pages` table pages from `base` on, their metadata elsewhere in it.
struct Carved {
    base: Pa,
    pages: usize,
    page: NonNull<u8>,
    meta: NonNull<TableMeta>,
}

struct FreeLists<const REGIONS: usize> {
    /// Heads of the lists of freed allocations, by order.
    freed: [Option<Pa>; ORDERS],
    /// Pages of each region that were ever given out, from the front.
    used: [usize; REGIONS],
    pages: PoolUse,
}

// SAFETY: the regions belong to the pool alone (contract of `new`); what is behind its pointers is atomics and
// locks, and `page`s are only handed out as slices of atomics.
unsafe impl<G, const REGIONS: usize> Send for Pool<G, REGIONS> {}
// SAFETY: as above.
unsafe impl<G, const REGIONS: usize> Sync for Pool<G, REGIONS> {}

impl<G: Granule, const REGIONS: usize> Pool<G, REGIONS> {
    /// A pool over `regions`. Regions beyond `REGIONS` in number, or too small for one page, are left unused.
    ///
    /// # Safety
    /// - Each region is memory, readable and writable for as long as the pool exists, mapped contiguously from `start` on,
    ///   physically contiguous from `pa` on, and `start` and `pa` agree modulo the granule.
    /// - The regions do not overlap, and nothing else uses them, the hardware's walks of trees made from this pool
    ///   excepted.
    pub unsafe fn new(regions: &[PoolRegion]) -> Self {
        let mut regions = regions.iter().filter_map(|region| {
            // SAFETY: passed on from the caller.
            unsafe { Carved::new::<G>(region) }
        });
        let regions: [_; REGIONS] = core::array::from_fn(|_| regions.next().unwrap_or(Carved::NONE));
        let capacity = regions.iter().map(|region| region.pages as u64).sum();
        Self {
            regions,
            free: Mutex::new(FreeLists {
                freed: [None; ORDERS],
                used: [0; REGIONS],
                pages: PoolUse { capacity, ..PoolUse::default() },
            }),
            granule: PhantomData,
        }
    }

    /// How much is in use now.
    pub fn usage(&self) -> PoolUse {
        self.free.lock().pages
    }

    fn take(&self, order: u32) -> Option<Pa> {
        let mut free = self.free.lock();
        let head = *free.freed.get(order as usize)?;
        let count = 1usize << order;
        let table = match head {
            Some(table) => {
                let next = self.page(table)?.meta.link();
                free.freed[order as usize] = next;
                table
            }
            None => self.take_unused(&mut free, count)?,
        };
        free.pages.live += count as u64;
        free.pages.peak = free.pages.peak.max(free.pages.live);
        Some(table)
    }

    /// The first pages that were never given out and are aligned to `count` pages. Those skipped for alignment become
    /// free single pages.
    fn take_unused(&self, free: &mut FreeLists<REGIONS>, count: usize) -> Option<Pa> {
        for (region, used) in self.regions.iter().zip(free.used.iter_mut()) {
            let mut first = *used;
            while !region.base.offset(first as u64 * G::PAGE_SIZE).is_aligned(G::PAGE_SHIFT + count.trailing_zeros()) {
                first += 1;
            }
            if first.saturating_add(count) > region.pages {
                continue;
            }
            for skipped in *used..first {
                let skipped = region.base.offset(skipped as u64 * G::PAGE_SIZE);
                if let Some(page) = self.page(skipped) {
                    page.meta.set_link(free.freed[0]);
                    free.freed[0] = Some(skipped);
                }
            }
            *used = first + count;
            return Some(region.base.offset(first as u64 * G::PAGE_SIZE));
        }
        None
    }
}

impl Carved {
    const NONE: Self = Self { base: Pa::new(0), pages: 0, page: NonNull::dangling(), meta: NonNull::dangling() };

    /// Divides a region and initialises the metadata.
    ///
    /// # Safety
    /// As for [`Pool::new`].
    unsafe fn new<G: Granule>(region: &PoolRegion) -> Option<Self> {
        let page = G::PAGE_SIZE as usize;
        let meta_skip = region.start.align_offset(align_of::<TableMeta>());
        // One page needs its own bytes and one metadata; alignment costs less than a page.
        let upper = region.bytes.checked_sub(meta_skip)? / (page + size_of::<TableMeta>());
        let pages_from = |pages: usize| {
            let metas_end = region.pa.raw() + (meta_skip + pages * size_of::<TableMeta>()) as u64;
            (metas_end.next_multiple_of(page as u64) - region.pa.raw()) as usize
        };
        let pages =
            (upper.saturating_sub(1)..=upper).rev().find(|&n| n > 0 && pages_from(n) + n * page <= region.bytes)?;
        let skip = pages_from(pages);
        // SAFETY: within the region: `meta_skip + pages * size_of::<TableMeta>() <= skip <= region.bytes`.
        let meta = unsafe { region.start.add(meta_skip) }.cast::<TableMeta>();
        for index in 0..pages {
            // SAFETY: as above, for each of the `pages` places.
            let place = unsafe { meta.add(index) };
            // SAFETY: aligned by `meta_skip`, and the region is ours to write.
            unsafe { place.write(TableMeta::new()) };
        }
        // SAFETY: `skip + pages * page <= region.bytes`.
        let first = unsafe { region.start.add(skip) };
        Some(Self { base: region.pa.offset(skip as u64), pages, page: first, meta })
    }
}

// SAFETY: pages are disjoint, aligned as asked, zeroed before they are given out; `table` answers by arithmetic over
// regions that never change; metadata is beside the pages and initialised once.
unsafe impl<G: Granule, const REGIONS: usize> TableMemory for Pool<G, REGIONS> {
    type Granule = G;

    fn alloc(&self) -> Result<Pa, OutOfTables> {
        self.alloc_root(0)
    }

    fn alloc_root(&self, order: u32) -> Result<Pa, OutOfTables> {
        let first = self.take(order).ok_or(OutOfTables)?;
        for index in 0..1u64 << order {
            let page = self.page(first.offset(index * G::PAGE_SIZE)).ok_or(OutOfTables)?;
            for entry in page.entries {
                entry.store(0, Ordering::Relaxed);
            }
        }
        Ok(first)
    }

    unsafe fn free(&self, table: Pa, order: u32) {
        let Some(page) = self.page(table) else { return };
        let mut free = self.free.lock();
        let Some(head) = free.freed.get_mut(order as usize) else { return };
        page.meta.set_link(*head);
        *head = Some(table);
        free.pages.live -= 1 << order;
    }

    #[inline(always)]
    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>> {
        for region in &self.regions {
            let offset = table.raw().wrapping_sub(region.base.raw());
            let index = (offset >> G::PAGE_SHIFT) as usize;
            if index < region.pages && table.is_aligned(G::PAGE_SHIFT) {
                // SAFETY: `index < pages`, so within the region's pages; at the beginning of one, as `base` is aligned, too.
                let page = unsafe { region.page.add(offset as usize) }.cast::<Word>();
                // SAFETY: as above.
                let meta = unsafe { region.meta.add(index) };
                return Some(TablePage {
                    // SAFETY: a page of the pool, aligned to its size, initialised (all bit patterns are values), and
                    // only ever accessed as atomics.
                    entries: unsafe { core::slice::from_raw_parts(page.as_ptr(), G::ENTRIES) },
                    // SAFETY: initialised in `Carved::new` and shared only from then on.
                    meta: unsafe { meta.as_ref() },
                });
            }
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::geometry::granule::Granule4K;
    use std::vec::Vec;

    #[repr(align(65536))]
    #[derive(Clone, Copy)]
    struct Granules(#[expect(dead_code, reason = "the pool uses its bytes")] [u8; 65536]);

    /// Miri takes its time with each page.
    const GRANULES: usize = if cfg!(miri) { 2 } else { 8 };

    fn pool(memory: &mut [Granules], pa: u64) -> Pool<Granule4K> {
        let region = PoolRegion {
            pa: Pa::new(pa),
            start: NonNull::new(memory.as_mut_ptr().cast()).unwrap(),
            bytes: size_of_val(memory),
        };
        // SAFETY: the memory is borrowed exclusively, and every test drops the pool before it.
        unsafe { Pool::new(&[region]) }
    }

    #[test]
    fn pages_are_zeroed_disjoint_and_all_come_back() {
        let mut memory = [Granules([0xff; 65536]); GRANULES / 2];
        let pool = pool(&mut memory, 0x8000_0000);
        let capacity = pool.usage().capacity;
        let mut pages: Vec<Pa> = std::iter::from_fn(|| pool.alloc().ok()).collect();
        assert_eq!(pages.len() as u64, capacity);
        assert!(capacity >= 8 * GRANULES as u64 - 2, "{capacity} of {} pages", 8 * GRANULES);
        for page in &pages {
            assert!(pool.page(*page).unwrap().entries.iter().all(|entry| entry.load(Ordering::Relaxed) == 0));
        }
        pages.sort();
        pages.dedup();
        assert_eq!(pages.len() as u64, capacity);
        for page in pages {
            pool.give_back(page, 0);
        }
        assert_eq!(pool.usage(), PoolUse { live: 0, peak: capacity, capacity });
        assert!(pool.alloc().is_ok());
    }

    #[test]
    fn a_root_is_contiguous_and_aligned_to_its_whole_size_and_what_was_skipped_is_not_lost() {
        let mut memory = [Granules([0; 65536]); GRANULES];
        let pool = pool(&mut memory, 0x8000_0000);
        let single = pool.alloc().unwrap();
        let root = pool.alloc_root(4).unwrap();
        assert!(root.is_aligned(16) && root > single);
        for index in 0..16 {
            assert!(pool.page(root.offset(index << 12)).is_some());
        }
        let rest = std::iter::from_fn(|| pool.alloc().ok()).count() as u64;
        assert_eq!(rest + 17, pool.usage().capacity);
        pool.give_back(root, 4);
        assert_eq!(pool.alloc_root(4), Ok(root));
        assert_eq!(pool.alloc_root(5), Err(OutOfTables));
    }

    #[test]
    fn an_address_that_is_no_table_page_is_not_followed() {
        let mut memory = [Granules([0; 65536]); 1];
        let pool = pool(&mut memory, 0x8000_0000);
        let page = pool.alloc().unwrap();
        assert!(pool.page(page).is_some());
        for wrong in [page.raw() + 8, 0x7fff_f000, 0x8001_0000, 0x8000_0000, !0xfff] {
            assert!(pool.page(Pa::new(wrong)).is_none(), "{wrong:#x}");
        }
    }

    #[test]
    fn a_region_too_small_for_a_page_is_an_empty_pool() {
        let mut memory = [Granules([0; 65536]); 1];
        let region =
            PoolRegion { pa: Pa::new(0), start: NonNull::new(memory.as_mut_ptr().cast()).unwrap(), bytes: 4096 };
        // SAFETY: as in `pool`.
        let pool: Pool<Granule4K> = unsafe { Pool::new(&[region]) };
        assert_eq!(pool.alloc(), Err(OutOfTables));
    }
}
