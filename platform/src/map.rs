//! EL2's own address map: one to one, in tables that are constants of the image.
//!
//! The boot tables map the devices below RAM and the image, by the regions of `linker.ld`; nothing else, so that
//! no CPU speculates into addresses where there is nothing. [`extend`] adds the rest of RAM once its size is known.
//! Entries only ever go from invalid to valid, which needs no invalidation.

use core::{
    ops::Range,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use aarch64_cpu::asm::barrier;

use crate::cpus::STACK_SLOT;

/// Where RAM starts on `virt`; also where QEMU puts its device tree.
pub(crate) const RAM_BASE: u64 = 0x4000_0000;
/// Translation of one level-2 block.
pub(crate) const BLOCK: u64 = 2 << 20;
/// Translation of one level-2 table.
const GIB: u64 = 1 << 30;
/// How many GiB of RAM can be mapped.
const MAX_GIB: usize = 8;
/// The image's code, constants and stacks: one block each, as `linker.ld` has them; its data follows.
const CODE: usize = 1;
const CONSTANTS: usize = 2;
const STACKS: usize = 3;
const DATA: Range<usize> = 4..8;

const VALID: u64 = 1;
/// At levels 1 and 2: a table, not a block; at level 3: a page.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Attribute 1 of MAIR_EL2, inner shareable.
const NORMAL: u64 = 1 << 2 | 0b11 << 8;
/// Access flag, and bit 1 of AP, which is RES1 at EL2.
const LEAF: u64 = VALID | 1 << 10 | 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const EXECUTE_NEVER: u64 = 1 << 54;

const DEVICE: u64 = LEAF | EXECUTE_NEVER;
const DATA_LEAF: u64 = LEAF | NORMAL | EXECUTE_NEVER;

/// One translation table. Its entries are pointers, because the address of another static is one.
#[repr(C, align(4096))]
pub(crate) struct Table([AtomicPtr<()>; 512]);

impl Table {
    const fn empty() -> Self {
        Self([const { AtomicPtr::new(ptr::null_mut()) }; 512])
    }

    const fn with(mut self, index: usize, descriptor: u64) -> Self {
        self.0[index] = AtomicPtr::new(ptr::without_provenance_mut(descriptor as usize));
        self
    }

    const fn with_table(mut self, index: usize, next: *const Table) -> Self {
        let descriptor = next.wrapping_byte_add((VALID | TABLE_OR_PAGE) as usize);
        self.0[index] = AtomicPtr::new(descriptor.cast_mut().cast());
        self
    }

    fn map(&self, index: usize, descriptor: u64) {
        self.0[index].store(ptr::without_provenance_mut(descriptor as usize), Ordering::Release);
    }
}

/// Level 1: 1 GiB an entry.
pub(crate) static ROOT: Table = {
    let mut table = Table::empty().with(0, DEVICE);
    let mut gib = 0;
    while gib < MAX_GIB {
        table = table.with_table(1 + gib, &raw const RAM[gib]);
        gib += 1;
    }
    table
};

/// Level 2, for RAM: 2 MiB an entry.
static RAM: [Table; MAX_GIB] = {
    let mut tables = [const { Table::empty() }; MAX_GIB];
    // The device tree, which is only read.
    let mut image = Table::empty()
        .with(0, RAM_BASE | DATA_LEAF | READ_ONLY)
        .with(CODE, block(CODE) | LEAF | NORMAL | READ_ONLY)
        .with(CONSTANTS, block(CONSTANTS) | DATA_LEAF | READ_ONLY)
        .with_table(STACKS, &raw const STACK_PAGES);
    let mut index = DATA.start;
    while index < DATA.end {
        image = image.with(index, block(index) | DATA_LEAF);
        index += 1;
    }
    tables[0] = image;
    tables
};

/// Level 3, for the stacks: each slot has guard pages below its fault stack and below its stack.
static STACK_PAGES: Table = {
    let mut table = Table::empty();
    let mut index = 0;
    while index < 512 {
        let page = index as u64 * 4096;
        let in_slot = page % STACK_SLOT.size;
        if in_slot != 0 && in_slot != STACK_SLOT.fault_stack_end {
            table = table.with(index, (block(STACKS) + page) | DATA_LEAF | TABLE_OR_PAGE);
        }
        index += 1;
    }
    table
};

const fn block(index: usize) -> u64 {
    RAM_BASE + index as u64 * BLOCK
}

/// The part of `ram` that can be mapped: whole blocks, up to [`MAX_GIB`].
pub(crate) fn mappable(ram: Range<u64>) -> Range<u64> {
    let end = ram.end.min(RAM_BASE + MAX_GIB as u64 * GIB);
    RAM_BASE..end - end % BLOCK
}

/// Maps the rest of RAM, above the image. On the boot CPU, before there is another.
pub(crate) fn extend(ram: Range<u64>) {
    let mut address = block(DATA.end);
    while address < ram.end {
        let offset = address - RAM_BASE;
        RAM[(offset / GIB) as usize].map((offset % GIB / BLOCK) as usize, address | DATA_LEAF);
        address += BLOCK;
    }
    // The stores are seen by this CPU's table walks before anything is accessed through them.
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}
