//! A small heap: crate vm-fdt builds [the guest's device tree](crate::guest_tree) in vectors, and tests make their messages in it.

use core::{cell::UnsafeCell, mem::MaybeUninit};

use linked_list_allocator::LockedHeap;

const SIZE: usize = 1 << 20;

#[repr(align(16))]
struct Memory(UnsafeCell<[MaybeUninit<u8>; SIZE]>);

// SAFETY: only the allocator accesses it, under its lock.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([MaybeUninit::uninit(); SIZE]));

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Once, at boot.
pub(crate) fn init() {
    // SAFETY: the memory is static and nobody else's; this is called once.
    unsafe { HEAP.lock().init(MEMORY.0.get().cast(), SIZE) };
}
