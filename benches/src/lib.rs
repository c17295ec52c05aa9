//! The library and three others from the registry, doing the same work on a host: mapping 4K pages in tables that are there already, asking
//! for them, protecting and unmapping them, one by one and as a range.
//!
//! Nothing walks these tables, so that barriers and TLB invalidations are nothing here for any of them. What the library does and the
//! others do not is done all the same: a table's lock, the recheck of its parent, markers between mapping and nothing, dirty state.
//!
//! Wall clock means little on a noisy machine; what is comparable is measured in one run.

mod frames;
mod generic;
mod multiarch;
mod ours;
mod paging;

pub use generic::Generic;
pub use multiarch::Multiarch;
pub use ours::{Machine, NoMmu, Ours, PAGES_PER_TABLE, features, ipa_of, machine};
pub use paging::Paging;

/// How many pages are worked on: those of two tables.
pub const PAGES: u64 = 1024;
/// The bytes of a page.
pub const PAGE: u64 = 4096;
/// Where they are mapped.
pub const BASE: u64 = 0x4000_0000;
/// Their frames, one after the other.
pub const FRAMES: u64 = 0x8_0000_0000;

/// Page tables of some library. All methods panic if the library refuses.
pub trait Subject: Sized {
    /// Empty tables, which are there for all of the pages.
    fn new() -> Self;
    /// Maps one page, to be read and written.
    fn map_page(&mut self, page: u64);
    /// Maps all pages at once.
    fn map_all(&mut self);
    /// The frame of a page.
    fn query(&self, page: u64) -> u64;
    /// Makes all pages read-only at once.
    fn protect_all(&mut self);
    /// Unmaps one page.
    fn unmap_page(&mut self, page: u64);
    /// Unmaps all pages at once.
    fn unmap_all(&mut self);
}

/// The address of a page.
pub const fn address_of(page: u64) -> u64 {
    BASE + page * PAGE
}

/// The frame of a page.
pub const fn frame_of(page: u64) -> u64 {
    FRAMES + page * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All do the same work, or their figures are of something else.
    fn does_its_work<S: Subject>() {
        let mut subject = S::new();
        for page in 0..PAGES {
            subject.map_page(page);
        }
        assert!((0..PAGES).all(|page| subject.query(page) == frame_of(page)));
        subject.protect_all();
        assert!((0..PAGES).all(|page| subject.query(page) == frame_of(page)));
        for page in 0..PAGES {
            subject.unmap_page(page);
        }
        subject.map_all();
        assert!((0..PAGES).all(|page| subject.query(page) == frame_of(page)));
        subject.unmap_all();
        subject.map_page(0);
    }

    #[test]
    fn every_library_does_the_same_work() {
        does_its_work::<Ours>();
        does_its_work::<Multiarch>();
        does_its_work::<Paging>();
        does_its_work::<Generic>();
    }
}
