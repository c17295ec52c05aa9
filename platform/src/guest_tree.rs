//! The device tree of a guest: what a Linux needs to run in the static partition, and nothing that could do DMA.

use alloc::{format, vec::Vec};
use core::{ops::Range, slice};

use vm_fdt::{Error, FdtWriter};

use crate::{
    cpus::{self, CpuIndex},
    gic,
};

/// The PL011's registers.
pub const UART: Range<u64> = 0x0900_0000..0x0900_1000;

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// What differs between guests.
#[derive(Clone, Debug)]
pub struct GuestTree<'a> {
    /// Guest RAM, as IPA.
    pub memory: Range<u64>,
    /// How many CPUs, from CPU 0.
    pub vcpus: usize,
    /// The kernel's command line. With `earlycon=pl011,0x9000000` a guest that dies early says why.
    pub bootargs: &'a str,
    /// Where the initial ramdisk is, as IPA.
    pub initrd: Option<Range<u64>>,
    /// The registers of a PL031 clock, if the hypervisor emulates one. It has no interrupt.
    pub rtc: Option<Range<u64>>,
}

impl GuestTree<'_> {
    /// The flattened tree, to be copied to an 8-byte aligned place in guest RAM.
    ///
    /// # Errors
    ///
    /// Those of the writer, for text with a NUL byte in it.
    pub fn build(&self) -> Result<Vec<u8>, Error> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
        self.chosen(&mut fdt)?;
        self.memory(&mut fdt)?;
        self.cpus(&mut fdt)?;
        psci(&mut fdt)?;
        interrupt_controller(&mut fdt)?;
        timer(&mut fdt)?;
        clock(&mut fdt)?;
        uart(&mut fdt)?;
        if let Some(registers) = &self.rtc {
            rtc(&mut fdt, registers)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn chosen(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.bootargs)?;
        fdt.property_string("stdout-path", &format!("/pl011@{:x}", UART.start))?;
        if let Some(initrd) = &self.initrd {
            fdt.property_u64("linux,initrd-start", initrd.start)?;
            fdt.property_u64("linux,initrd-end", initrd.end)?;
        }
        fdt.end_node(node)
    }

    fn memory(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node(&format!("memory@{:x}", self.memory.start))?;
        fdt.property_string("device_type", "memory")?;
        reg(fdt, slice::from_ref(&self.memory))?;
        fdt.end_node(node)
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for affinity in CpuIndex::first(self.vcpus).filter_map(cpus::affinity) {
            let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u64("reg", affinity)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(node)
    }
}

fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    string_list(fdt, "compatible", "arm,psci-1.0\0arm,psci-0.2\0")?;
    fdt.property_string("method", "smc")?;
    fdt.end_node(node)
}

/// Linux walks the redistributors up to the machine's last one, so the region has them all, not only the guest's.
fn interrupt_controller(fdt: &mut FdtWriter) -> Result<(), Error> {
    let redistributors = gic::redistributors();
    let node = fdt.begin_node(&format!("intc@{:x}", gic::DISTRIBUTOR.start))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#redistributor-regions", 1)?;
    reg(fdt, &[gic::DISTRIBUTOR, redistributors])?;
    fdt.property_phandle(GIC_PHANDLE)?;
    fdt.end_node(node)
}

/// The generic timers: secure EL1, EL1 physical, EL1 virtual, EL2.
fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    let interrupts = [13, 14, 11, 10].map(|number| [PPI, number, LEVEL_HIGH]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.end_node(node)
}

/// What the UART and the RTC are clocked by.
fn clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(node)
}

fn rtc(fdt: &mut FdtWriter, registers: &Range<u64>) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("pl031@{:x}", registers.start))?;
    string_list(fdt, "compatible", "arm,pl031\0arm,primecell\0")?;
    reg(fdt, slice::from_ref(registers))?;
    fdt.property_u32("clocks", CLOCK_PHANDLE)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

fn uart(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("pl011@{:x}", UART.start))?;
    string_list(fdt, "compatible", "arm,pl011\0arm,primecell\0")?;
    reg(fdt, &[UART])?;
    fdt.property_array_u32("interrupts", &[SPI, 1, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE])?;
    string_list(fdt, "clock-names", "uartclk\0apb_pclk\0")?;
    fdt.end_node(node)
}

fn reg(fdt: &mut FdtWriter, ranges: &[Range<u64>]) -> Result<(), Error> {
    let cells: Vec<u64> = ranges.iter().flat_map(|range| [range.start, range.end - range.start]).collect();
    fdt.property_array_u64("reg", &cells)
}

/// A property of several strings, each with its NUL.
fn string_list(fdt: &mut FdtWriter, name: &str, strings: &str) -> Result<(), Error> {
    fdt.property(name, strings.as_bytes())
}
