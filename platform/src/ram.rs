//! What QEMU's device tree says of the machine, and the memory that is free.
//!
//! [`take_free`] gives, once, all RAM above the image; the image, its stacks and QEMU's device tree lie below. The
//! caller cuts it up: [`Region::take`] from the bottom, [`Region::split_off`] where the host has loaded guest images at
//! the top.

use core::{ops::Range, ptr, slice};

use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use spin::{Mutex, Once};

use crate::{
    cpus::{self, MAX_CPUS},
    map,
};

unsafe extern "C" {
    /// The first block boundary above the image, by `linker.ld`.
    static image_end: u8;
}

/// What the device tree says.
pub(crate) struct Machine {
    ram: Range<u64>,
    affinities: ArrayVec<u64, MAX_CPUS>,
}

impl Machine {
    pub(crate) fn ram(&self) -> Range<u64> {
        self.ram.clone()
    }

    pub(crate) fn affinities(&self) -> &[u64] {
        &self.affinities
    }
}

static MACHINE: Once<Machine> = Once::new();
static FREE: Mutex<Option<Region>> = Mutex::new(None);

/// Reads the device tree. Once, at boot.
pub(crate) fn discover() -> &'static Machine {
    MACHINE.call_once(|| {
        // SAFETY: QEMU puts a device tree of less than 2 MiB there, which is mapped and never written.
        let tree = unsafe { Fdt::from_raw(map::RAM_BASE as *const u8) }.expect("QEMU's device tree is well-formed");
        let machine = Machine { ram: ram_of(tree), affinities: affinities_of(tree) };
        let start = (&raw const image_end) as u64;
        *FREE.lock() = Some(Region { start, end: machine.ram.end.max(start) });
        machine
    })
}

fn ram_of(tree: Fdt<'_>) -> Range<u64> {
    let memory = tree.memory().expect("the device tree has a memory node");
    let reg = memory.reg().ok().flatten().and_then(|mut reg| reg.next()).expect("the memory node has a range");
    let size: u64 = reg.size().expect("the size of memory fits");
    map::mappable(map::RAM_BASE..map::RAM_BASE + size)
}

fn affinities_of(tree: Fdt<'_>) -> ArrayVec<u64, MAX_CPUS> {
    let nodes = tree.cpus().expect("the device tree has CPUs");
    nodes
        .cpus()
        .filter_map(|cpu| cpu.reg().ok()??.next()?.address::<u64>().ok())
        .map(cpus::affinity_fields)
        .take(MAX_CPUS)
        .collect()
}

/// A page-aligned range of RAM, mapped one to one, that is the holder's alone: no other `Region` overlaps it and no
/// Rust object lies in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Region {
    start: u64,
    end: u64,
}

impl defmt::Format for Region {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{=u64:#x}..{=u64:#x}", self.start, self.end);
    }
}

/// All free RAM, the first time; afterwards `None`.
pub fn take_free() -> Option<Region> {
    FREE.lock().take()
}

impl Region {
    const PAGE: u64 = 4096;

    /// Its first address, physical and virtual.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The address behind its last.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }

    /// A pointer to its first byte, for use within it.
    pub fn pointer(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.start as usize)
    }

    /// Cuts `size` bytes, a multiple of 4 KiB, off the bottom, starting at a multiple of `align` (a power of two, at
    /// least 4 KiB); what lies below that is lost. `None`, with nothing changed, when there is not so much or the
    /// arguments are no such numbers.
    pub fn take(&mut self, size: u64, align: u64) -> Option<Region> {
        if !size.is_multiple_of(Self::PAGE) || !align.is_power_of_two() || align < Self::PAGE {
            return None;
        }
        let start = self.start.checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        if end > self.end {
            return None;
        }
        self.start = end;
        Some(Region { start, end })
    }

    /// Cuts off what lies at and above `address`, rounded down to a page: where the host has loaded guest images.
    pub fn split_off(&mut self, address: u64) -> Region {
        let address = (address - address % Self::PAGE).clamp(self.start, self.end);
        let end = core::mem::replace(&mut self.end, address);
        Region { start: address, end }
    }

    /// Its bytes, for good: what the host has loaded, or what the power-on left.
    pub fn into_bytes(self) -> &'static mut [u8] {
        // SAFETY: mapped RAM, this region's alone, and `self` ends here; any byte is a valid `u8`.
        unsafe { slice::from_raw_parts_mut(self.pointer(), self.size() as usize) }
    }
}
