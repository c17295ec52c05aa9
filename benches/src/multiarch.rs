//! page_table_multiarch: one owner, one walk for each page, a TLB flush by each cursor.

use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::{GenericPTE, MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData};

use crate::frames::{self, bits};
use crate::{PAGE, PAGES, Subject, address_of, frame_of};

/// Three levels, nothing to flush.
struct Meta;

impl PagingMetaData for Meta {
    const LEVELS: usize = 3;
    const PA_MAX_BITS: usize = 48;
    const VA_MAX_BITS: usize = 39;
    type VirtAddr = VirtAddr;

    fn flush_tlb(_: Option<VirtAddr>) {}
}

struct Handler;

impl PagingHandler for Handler {
    fn alloc_frames(num: usize, _: usize) -> Option<PhysAddr> {
        Some(frames::allocate(num).into())
    }

    fn dealloc_frames(paddr: PhysAddr, num: usize) {
        frames::free(paddr.as_usize(), num);
    }

    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        paddr.as_usize().into()
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Entry(u64);

const fn of_flags(flags: MappingFlags, is_huge: bool) -> u64 {
    let write = if flags.contains(MappingFlags::WRITE) { bits::WRITE } else { 0 };
    bits::LEAF | write | if is_huge { 0 } else { bits::TABLE_OR_PAGE }
}

impl GenericPTE for Entry {
    fn new_page(paddr: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
        Self(paddr.as_usize() as u64 & bits::ADDRESS | of_flags(flags, is_huge))
    }

    fn new_table(paddr: PhysAddr) -> Self {
        Self(paddr.as_usize() as u64 & bits::ADDRESS | bits::VALID | bits::TABLE_OR_PAGE)
    }

    fn paddr(&self) -> PhysAddr {
        ((self.0 & bits::ADDRESS) as usize).into()
    }

    fn flags(&self) -> MappingFlags {
        if self.0 & bits::WRITE != 0 { MappingFlags::READ | MappingFlags::WRITE } else { MappingFlags::READ }
    }

    fn set_paddr(&mut self, paddr: PhysAddr) {
        self.0 = self.0 & !bits::ADDRESS | paddr.as_usize() as u64 & bits::ADDRESS;
    }

    fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
        self.0 = self.0 & bits::ADDRESS | of_flags(flags, is_huge);
    }

    fn bits(self) -> usize {
        self.0 as usize
    }

    fn is_unused(&self) -> bool {
        self.0 == 0
    }

    fn is_present(&self) -> bool {
        self.0 & bits::VALID != 0
    }

    fn is_huge(&self) -> bool {
        self.0 & (bits::VALID | bits::TABLE_OR_PAGE) == bits::VALID
    }

    fn clear(&mut self) {
        self.0 = 0;
    }
}

/// Its table.
pub struct Multiarch(PageTable64<Meta, Entry, Handler>);

const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

fn address(page: u64) -> VirtAddr {
    (address_of(page) as usize).into()
}

impl Subject for Multiarch {
    fn new() -> Self {
        let mut new = Self(PageTable64::try_new().expect("a table"));
        new.map_all();
        new.unmap_all();
        new
    }

    fn map_page(&mut self, page: u64) {
        let frame = (frame_of(page) as usize).into();
        self.0.cursor().map(address(page), frame, PageSize::Size4K, RW).expect("map");
    }

    fn map_all(&mut self) {
        let frame = |at: VirtAddr| PhysAddr::from(at.as_usize() - address(0).as_usize() + frame_of(0) as usize);
        self.0.cursor().map_region(address(0), frame, (PAGES * PAGE) as usize, RW, false).expect("map");
    }

    fn query(&self, page: u64) -> u64 {
        self.0.query(address(page)).expect("query").0.as_usize() as u64
    }

    fn protect_all(&mut self) {
        self.0.cursor().protect_region(address(0), (PAGES * PAGE) as usize, MappingFlags::READ).expect("protect");
    }

    fn unmap_page(&mut self, page: u64) {
        self.0.cursor().unmap(address(page)).expect("unmap");
    }

    fn unmap_all(&mut self) {
        self.0.cursor().unmap_region(address(0), (PAGES * PAGE) as usize).expect("unmap");
    }
}
