//! Table memory that a tracer knows: a [`Pool`] that marks what it gives and takes back.

use stage2::{
    Pa,
    geometry::Granule,
    memory::{OutOfTables, Pool, PoolRegion, PoolUse, TableMemory, TablePage},
};
use stage2_platform::trace::{self, Lessened, Mark};

/// A [`Pool`] of one region.
pub struct TracedPool<G>(Pool<G>);

impl<G: Granule> TracedPool<G> {
    /// A pool over `region` (an empty one over none), for a library from which `lessened` was taken.
    ///
    /// # Safety
    /// As for [`Pool::new`].
    pub unsafe fn new(region: Option<PoolRegion>, lessened: Lessened) -> Self {
        if let Some(PoolRegion { pa, bytes, .. }) = region {
            let (start, bytes) = (pa.raw(), bytes as u64);
            trace::mark(Mark::Pool(trace::Pool { start, bytes, page_shift: G::PAGE_SHIFT, lessened }));
        }
        // SAFETY: this function's own contract.
        Self(unsafe { Pool::new(region.as_slice()) })
    }

    /// How much of it is in use.
    pub fn usage(&self) -> PoolUse {
        self.0.usage()
    }
}

// SAFETY: every promise is the pool's.
unsafe impl<G: Granule> TableMemory for TracedPool<G> {
    type Granule = G;

    fn alloc(&self) -> Result<Pa, OutOfTables> {
        self.alloc_root(0)
    }

    fn alloc_root(&self, order: u32) -> Result<Pa, OutOfTables> {
        let table = self.0.alloc_root(order)?;
        trace::mark(Mark::TableGiven { table: table.raw(), order });
        Ok(table)
    }

    unsafe fn free(&self, table: Pa, order: u32) {
        trace::mark(Mark::TableFreed { table: table.raw(), order });
        // SAFETY: the caller's own promise.
        unsafe { self.0.free(table, order) }
    }

    #[inline(always)]
    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>> {
        // SAFETY: the caller's own promise.
        unsafe { self.0.table(table) }
    }
}
