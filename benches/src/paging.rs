//! aarch64-paging: one owner; a page is a range of one, and to unmap is to map with no attributes.

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes};
use aarch64_paging::linearmap::LinearTranslation;
use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2};

use crate::{PAGE, PAGES, Subject, address_of, frame_of};

/// Its table.
pub struct Paging(Mapping<LinearTranslation<Stage2Attributes>, Stage2>);

/// The level of a root for 39 bits.
const ROOT_LEVEL: usize = 1;

const READ: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::S2AP_ACCESS_RO)
    .union(Stage2Attributes::ACCESS_FLAG);
const READ_WRITE: Stage2Attributes = READ.union(Stage2Attributes::S2AP_ACCESS_WO);

impl Paging {
    fn set(&mut self, first: u64, pages: u64, attributes: Stage2Attributes) {
        let frame = PhysicalAddress(frame_of(first) as usize);
        self.0.map_range(&region(first, pages), frame, attributes, Constraints::NO_BLOCK_MAPPINGS).expect("map");
    }
}

fn region(first: u64, pages: u64) -> MemoryRegion {
    let start = address_of(first) as usize;
    MemoryRegion::new(start, start + (pages * PAGE) as usize)
}

impl Subject for Paging {
    fn new() -> Self {
        let mut new = Self(Mapping::new(LinearTranslation::new(0), ROOT_LEVEL, Stage2));
        new.map_all();
        new.unmap_all();
        new
    }

    fn map_page(&mut self, page: u64) {
        self.set(page, 1, READ_WRITE);
    }

    fn map_all(&mut self) {
        self.set(0, PAGES, READ_WRITE);
    }

    fn query(&self, page: u64) -> u64 {
        let mut found = None;
        let see = &mut |_: &MemoryRegion, descriptor: &aarch64_paging::descriptor::Descriptor<Stage2Attributes>, _| {
            found = descriptor.is_valid().then(|| descriptor.output_address().0 as u64);
            Ok(())
        };
        self.0.walk_range(&region(page, 1), see).expect("walk");
        found.expect("a mapping")
    }

    fn protect_all(&mut self) {
        self.set(0, PAGES, READ);
    }

    fn unmap_page(&mut self, page: u64) {
        self.set(page, 1, Stage2Attributes::empty());
    }

    fn unmap_all(&mut self) {
        self.set(0, PAGES, Stage2Attributes::empty());
    }
}
