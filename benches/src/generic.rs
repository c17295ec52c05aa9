//! page-table-generic: one owner; tables that are empty go back at once.

use page_table_generic::{FrameAllocator, MapConfig, PageTable, PageTableEntry, PhysAddr, TableMeta, VirtAddr};

use crate::frames::{self, bits};
use crate::{PAGE, PAGES, Subject, address_of, frame_of};

/// Three levels, nothing to flush.
#[derive(Clone, Copy)]
struct Meta;

impl TableMeta for Meta {
    type P = Entry;
    const PAGE_SIZE: usize = PAGE as usize;
    const LEVEL_BITS: &[usize] = &[9, 9, 9];
    const MAX_BLOCK_LEVEL: usize = 2;

    fn flush(_: Option<VirtAddr>) {}
}

#[derive(Clone)]
struct Heap;

impl FrameAllocator for Heap {
    fn alloc_frame(&self) -> Option<PhysAddr> {
        Some(PhysAddr::from_usize(frames::allocate(1)))
    }

    fn dealloc_frame(&self, frame: PhysAddr) {
        frames::free(frame.as_usize(), 1);
    }

    fn phys_to_virt(&self, paddr: PhysAddr) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(paddr.as_usize())
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Entry(u64);

impl PageTableEntry for Entry {
    /// Whether it may be written.
    type PteConfig = bool;

    fn new_page(paddr: PhysAddr, write: bool, is_huge: bool) -> Self {
        let write = if write { bits::WRITE } else { 0 };
        let page = if is_huge { 0 } else { bits::TABLE_OR_PAGE };
        Self(paddr.as_usize() as u64 & bits::ADDRESS | bits::LEAF | write | page)
    }

    fn new_table(paddr: PhysAddr) -> Self {
        Self(paddr.as_usize() as u64 & bits::ADDRESS | bits::VALID | bits::TABLE_OR_PAGE)
    }

    fn paddr(&self, _: bool) -> PhysAddr {
        PhysAddr::from_usize((self.0 & bits::ADDRESS) as usize)
    }

    fn config(&self, _: bool) -> bool {
        self.0 & bits::WRITE != 0
    }

    fn present(&self) -> bool {
        self.0 & bits::VALID != 0
    }

    fn huge(&self, is_dir: bool) -> bool {
        is_dir && self.0 & (bits::VALID | bits::TABLE_OR_PAGE) == bits::VALID
    }

    fn unused(&self) -> bool {
        self.0 == 0
    }

    fn clear(&mut self) {
        self.0 = 0;
    }
}

/// Its table.
pub struct Generic(PageTable<Meta, Heap>);

fn address(page: u64) -> VirtAddr {
    VirtAddr::from_usize(address_of(page) as usize)
}

impl Subject for Generic {
    fn new() -> Self {
        let mut new = Self(PageTable::new(Heap).expect("a table"));
        new.map_all();
        // Tables that are empty go back at once: it makes them anew.
        new.unmap_all();
        new
    }

    fn map_page(&mut self, page: u64) {
        let frame = PhysAddr::from_usize(frame_of(page) as usize);
        self.0.map_page(address(page), frame, PAGE as usize, true).expect("map");
    }

    fn map_all(&mut self) {
        let config = MapConfig {
            vaddr: address(0),
            paddr: PhysAddr::from_usize(frame_of(0) as usize),
            size: (PAGES * PAGE) as usize,
            pte: true,
            allow_huge: false,
            flush: true,
        };
        self.0.map(&config).expect("map");
    }

    fn query(&self, page: u64) -> u64 {
        self.0.query(address(page)).expect("query").0.as_usize() as u64
    }

    fn protect_all(&mut self) {
        self.0.protect_region(address(0), (PAGES * PAGE) as usize, false).expect("protect");
    }

    fn unmap_page(&mut self, page: u64) {
        self.0.unmap_page(address(page)).expect("unmap");
    }

    fn unmap_all(&mut self) {
        self.0.unmap(address(0), (PAGES * PAGE) as usize).expect("unmap");
    }
}
