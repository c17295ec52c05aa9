//! Table memory for the others: the heap, at its own addresses.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use crate::PAGE;

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE as usize, PAGE as usize).expect("a layout")
}

/// Zeroed pages.
pub(crate) fn allocate(pages: usize) -> usize {
    // SAFETY: the layout has a size.
    let start = unsafe { alloc_zeroed(layout(pages)) };
    assert!(!start.is_null(), "out of memory");
    start.expose_provenance()
}

/// Gives them back.
pub(crate) fn free(start: usize, pages: usize) {
    // SAFETY: the libraries give back what they were given by `allocate`, once.
    unsafe { dealloc(std::ptr::with_exposed_provenance_mut(start), layout(pages)) };
}

/// The bits of a stage-2 descriptor that all of them use here.
pub(crate) mod bits {
    pub(crate) const VALID: u64 = 1;
    pub(crate) const TABLE_OR_PAGE: u64 = 1 << 1;
    pub(crate) const WRITE: u64 = 1 << 7;
    /// Normal memory, readable, inner shareable, accessed.
    pub(crate) const LEAF: u64 = VALID | 0b1111 << 2 | 1 << 6 | 0b11 << 8 | 1 << 10;
    pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
}
