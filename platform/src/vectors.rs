//! EL2's exception vectors.
//!
//! From a lower EL (AArch64, or AArch32 at EL0): to [`guest_exit`](crate::vcpu::guest_exit), which returns from
//! `Vcpu::enter`. From EL2 itself: a bug; the CPU moves to its fault stack (its own may have overflowed) and panics.

use core::arch::{global_asm, naked_asm};

use aarch64_cpu::asm::barrier;

use crate::{cpus, cpus::STACK_SLOT, sysreg, vcpu};

unsafe extern "C" {
    /// The table below. Only its address is of use.
    static stage2_vector_table: u8;
}

/// Points VBAR_EL2 of this CPU at the vectors.
pub(crate) fn install() {
    let table = &raw const stage2_vector_table;
    // SAFETY: the table is aligned as VBAR_EL2 asks, and handles every exception.
    unsafe { sysreg::write!("vbar_el2", table as u64) };
    barrier::isb(barrier::SY);
}

// 16 entries of 128 bytes: from EL2 with SP_EL0, from EL2 with SP_EL2, from lower AArch64, from lower AArch32; each
// with synchronous, IRQ, FIQ, SError.
global_asm!(
    ".macro from_el2, number",
    ".balign 128",
    "mov x0, #\\number",
    "b {el2_fault}",
    ".endm",
    ".macro from_guest, kind",
    ".balign 128",
    "stp x0, x1, [sp, #-16]!",
    "mov x1, #\\kind",
    "b {guest_exit}",
    ".endm",
    ".pushsection .text.vectors, \"ax\"",
    ".balign 2048",
    ".global stage2_vector_table",
    "stage2_vector_table:",
    ".irp number, 0, 1, 2, 3, 4, 5, 6, 7",
    "from_el2 \\number",
    ".endr",
    ".rept 2",
    "from_guest {sync}",
    "from_guest {irq}",
    "from_guest {fiq}",
    "from_guest {serror}",
    ".endr",
    ".popsection",
    ".purgem from_el2",
    ".purgem from_guest",
    el2_fault = sym el2_fault,
    guest_exit = sym vcpu::guest_exit,
    sync = const vcpu::SYNC,
    irq = const vcpu::IRQ,
    fiq = const vcpu::FIQ,
    serror = const vcpu::SERROR,
);

/// Moves to the fault stack of the slot SP points into, keeping the old SP for the message.
#[unsafe(naked)]
unsafe extern "C" fn el2_fault(number: u64) -> ! {
    naked_asm!(
        "mov x1, sp",
        "and x2, x1, #{slot_mask}",
        "add x2, x2, #{fault_stack_end}",
        "mov sp, x2",
        "b {report}",
        slot_mask = const !(STACK_SLOT.size - 1),
        fault_stack_end = const STACK_SLOT.fault_stack_end,
        report = sym report,
    )
}

extern "C" fn report(number: u64, sp: u64) -> ! {
    let kind = ["synchronous exception", "IRQ", "FIQ", "SError"][number as usize % 4];
    panic!(
        "{kind} at EL2 on CPU {}: ESR {:#x}, ELR {:#x}, FAR {:#x}, SP {sp:#x}",
        cpus::current().get(),
        sysreg::read!("esr_el2"),
        sysreg::read!("elr_el2"),
        sysreg::read!("far_el2"),
    );
}
