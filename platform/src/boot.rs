//! From reset to the binary's main function.
//!
//! Crate aarch64-rt supplies the entry points (boot CPU, started CPU, resumed CPU). Each first calls
//! `enable_mmu`, below, before it touches memory; then comes [`init_cpu`] on every CPU, and on the boot CPU
//! [`primary`].

use core::arch::global_asm;

use crate::{cpus, cpus::CpuIndex, exit, heap, map, ram, sysreg, vectors};

aarch64_rt::entry!(primary, 55);

unsafe extern "Rust" {
    /// The binary's main function, by [`main!`](crate::main).
    safe fn stage2_platform_main() -> crate::ExitCode;
}

/// HCR_EL2 while no guest is prepared: EL1 is AArch64; E2H and TGE clear, so "EL2" below means plain EL2.
const HCR_BOOT: u64 = 1 << 31;

/// MAIR_EL2: attribute 0 is Device-nGnRE, attribute 1 is Normal write-back.
const MAIR: u64 = 0xff04;

/// TCR_EL2: 4K granule, 39-bit addresses (512 GiB), write-back inner-shareable walks, 40-bit output; RES1 bits 23, 31.
const TCR: u64 = 1 << 31 | 1 << 23 | 0b010 << 16 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8 | (64 - 39);

/// SCTLR_EL2: RES1 bits; MMU, caches, stack alignment check, and WXN: what is writable is never executable.
const SCTLR: u64 = 0x30c5_0830 | 1 << 19 | 1 << 12 | 1 << 3 | 1 << 2 | 1;

// Own code in place of aarch64-rt's, which (0.4.3) at EL2 invalidates the EL1 TLB instead of EL2's and copies PARange
// to TCR_EL1's place for it, where TCR_EL2 has DS and MTX. Called before there is a stack; must keep x0 to x3.
global_asm!(
    ".pushsection .init, \"ax\"",
    ".global enable_mmu",
    "enable_mmu:",
    "ldr x8, =({hcr})",
    "msr hcr_el2, x8",
    "ldr x8, =({mair})",
    "msr mair_el2, x8",
    "ldr x8, =({tcr})",
    "msr tcr_el2, x8",
    "adrp x8, {root}",
    "msr ttbr0_el2, x8",
    // Registers first, then drop what reset left in TLB and instruction cache, then turn translation on.
    "isb",
    "tlbi alle2",
    "ic iallu",
    "dsb nsh",
    "isb",
    "ldr x8, =({sctlr})",
    "msr sctlr_el2, x8",
    "isb",
    "ret",
    ".ltorg",
    ".popsection",
    hcr = const HCR_BOOT,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    root = sym map::ROOT,
);

/// The boot CPU, with a stack and zeroed bss. QEMU passes an ELF image no arguments.
fn primary(_: u64, _: u64, _: u64, _: u64) -> ! {
    init_cpu(CpuIndex::BOOT);
    heap::init();
    let machine = ram::discover();
    map::extend(machine.ram());
    cpus::init(machine);
    exit(stage2_platform_main())
}

/// What each CPU needs after its reset and after each resumption: its vectors and its index.
pub(crate) fn init_cpu(cpu: CpuIndex) {
    vectors::install();
    // SAFETY: TPIDR_EL2 is the platform's; `cpus::current` reads back what is written here.
    unsafe { sysreg::write!("tpidr_el2", cpu.get() as u64) };
    crate::gic::init_cpu();
}
