//! Entering and leaving the guest.
//!
//! [`Vcpu::enter`] is a function call that returns at the guest's next exception to EL2. On EL2's stack, while the
//! guest runs, from the top: the callee-saved registers of `enter`'s caller, then the address of the [`Vcpu`]. The
//! vector pushes the guest's x0 and x1 below them and goes to `guest_exit`. Registers of EL1 and EL0 other than these
//! here stay in the CPU.

use core::{arch::naked_asm, mem::offset_of};

use crate::sysreg;

pub(crate) const SYNC: u64 = 0;
pub(crate) const IRQ: u64 = 1;
pub(crate) const FIQ: u64 = 2;
pub(crate) const SERROR: u64 = 3;

/// SPSR: EL1 with its own stack pointer, all of DAIF masked, as after a reset.
const EL1H_MASKED: u64 = 0b1111 << 6 | 0b0101;

/// The registers of a guest CPU that EL2 needs for itself.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Vcpu {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where the guest goes on.
    pub elr: u64,
    /// Its PSTATE.
    pub spsr: u64,
}

// `enter` and `guest_exit` address the registers by these.
const _: () = assert!(offset_of!(Vcpu, x) == 0 && offset_of!(Vcpu, elr) == 248 && offset_of!(Vcpu, spsr) == 256);

impl defmt::Format for Vcpu {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "ELR {=u64:#x}, SPSR {=u64:#x}, x {=[?]:#x}", self.elr, self.spsr, self.x.as_slice());
    }
}

/// Why the guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub enum Exit {
    /// A synchronous exception.
    Sync(Syndrome),
    /// An interrupt routed to EL2.
    Irq,
    /// A fast interrupt routed to EL2.
    Fiq,
    /// An SError routed to EL2.
    SError,
}

/// What the CPU says about a synchronous exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2: for aborts.
    pub far: u64,
    /// HPFAR_EL2: for aborts, where the architecture says it is valid.
    pub hpfar: u64,
}

impl defmt::Format for Syndrome {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "ESR {=u64:#x}, FAR {=u64:#x}, HPFAR {=u64:#x}", self.esr, self.far, self.hpfar);
    }
}

impl Syndrome {
    /// HVC from AArch64.
    pub const HVC: u64 = 0x16;
    /// SMC from AArch64, trapped by HCR_EL2.TSC.
    pub const SMC: u64 = 0x17;
    /// A trapped access to a system register.
    pub const SYSREG: u64 = 0x18;
    /// Instruction abort.
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    /// Data abort.
    pub const DATA_ABORT: u64 = 0x24;

    /// The exception class, ESR_EL2.EC.
    pub const fn class(&self) -> u64 {
        (self.esr >> 26) & 0x3f
    }
}

impl Vcpu {
    /// A CPU as PSCI's CPU_ON leaves it: at `entry`, MMU off, with `context` in x0.
    pub const fn new(entry: u64, context: u64) -> Self {
        let mut x = [0; 31];
        x[0] = context;
        Self { x, elr: entry, spsr: EL1H_MASKED }
    }

    /// Runs the guest on this CPU until its next exception to EL2.
    ///
    /// # Safety
    ///
    /// This CPU is prepared ([`partition::prepare`](crate::partition::prepare)), and VTCR_EL2 and VTTBR_EL2 hold a
    /// stage-2 translation through which the guest can reach no memory that Rust code at EL2 uses as its own.
    #[inline]
    pub unsafe fn enter(&mut self) -> Exit {
        // SAFETY: `self` is exclusively borrowed; the rest is this function's own contract.
        let kind = unsafe { enter(self) };
        match kind {
            SYNC => Exit::Sync(Syndrome {
                esr: sysreg::read!("esr_el2"),
                far: sysreg::read!("far_el2"),
                hpfar: sysreg::read!("hpfar_el2"),
            }),
            IRQ => Exit::Irq,
            FIQ => Exit::Fiq,
            _ => Exit::SError,
        }
    }

    /// Goes on behind the instruction that trapped (which is 4 bytes long, as all of AArch64 are).
    pub fn skip_instruction(&mut self) {
        self.elr = self.elr.wrapping_add(4);
    }

    /// Makes the guest take a synchronous exception at EL1 with this syndrome and fault address, as if the instruction
    /// at `elr` had raised it there. On the CPU that ran this vCPU last: it writes EL1's registers.
    pub fn inject(&mut self, esr: u64, far: u64) {
        let sctlr = sysreg::read!("sctlr_el1");
        // Offsets from VBAR_EL1 (R_LSPHP): by the EL, stack pointer and execution state the exception comes from.
        let offset = match self.spsr & 0x1f {
            0b0_0101 => 0x200,
            0b0_0100 => 0x000,
            mode if mode & 0x10 == 0 => 0x400,
            _ => 0x600,
        };
        // SAFETY: these registers only have a meaning to the guest.
        unsafe { sysreg::write!("esr_el1", esr) };
        // SAFETY: as above.
        unsafe { sysreg::write!("far_el1", far) };
        // SAFETY: as above.
        unsafe { sysreg::write!("elr_el1", self.elr) };
        // SAFETY: as above.
        unsafe { sysreg::write!("spsr_el1", self.spsr) };
        self.elr = sysreg::read!("vbar_el1").wrapping_add(offset);
        self.spsr = exception_pstate(self.spsr, sctlr);
    }

    /// [`inject`](Self::inject) for an instruction that is undefined: "unknown reason", as for a register that does not
    /// exist.
    pub fn inject_undefined(&mut self) {
        const INSTRUCTION_LENGTH_32: u64 = 1 << 25;
        self.inject(INSTRUCTION_LENGTH_32, 0);
    }
}

/// PSTATE on taking an exception to EL1 (the Arm ARM's AArch64.TakeException).
fn exception_pstate(old: u64, sctlr: u64) -> u64 {
    const FLAGS: u64 = 0b1111 << 28;
    const DIT: u64 = 1 << 24;
    const PAN: u64 = 1 << 22;
    const SSBS: u64 = 1 << 12;
    const SCTLR_SPAN: u64 = 1 << 23;
    const SCTLR_DSSBS: u64 = 1 << 44;
    let mut new = old & (FLAGS | DIT | PAN) | EL1H_MASKED;
    let has_pan = sysreg::field(sysreg::read!("id_aa64mmfr1_el1"), 20) != 0;
    if has_pan && sctlr & SCTLR_SPAN == 0 {
        new |= PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= SSBS;
    }
    new
}

/// The entry: keeps EL2's callee-saved registers and `vcpu` on the stack, loads the guest's, and goes.
///
/// # Safety
///
/// As [`Vcpu::enter`]; `vcpu` is valid and not accessed by others until this returns.
#[unsafe(naked)]
unsafe extern "C" fn enter(vcpu: *mut Vcpu) -> u64 {
    naked_asm!(
        "stp x29, x30, [sp, #-112]!",
        "stp x27, x28, [sp, #16]",
        "stp x25, x26, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x21, x22, [sp, #64]",
        "stp x19, x20, [sp, #80]",
        "str x0, [sp, #96]",
        "ldp x1, x2, [x0, #248]",
        "msr elr_el2, x1",
        "msr spsr_el2, x2",
        "ldp x2, x3, [x0, #16]",
        "ldp x4, x5, [x0, #32]",
        "ldp x6, x7, [x0, #48]",
        "ldp x8, x9, [x0, #64]",
        "ldp x10, x11, [x0, #80]",
        "ldp x12, x13, [x0, #96]",
        "ldp x14, x15, [x0, #112]",
        "ldp x16, x17, [x0, #128]",
        "ldp x18, x19, [x0, #144]",
        "ldp x20, x21, [x0, #160]",
        "ldp x22, x23, [x0, #176]",
        "ldp x24, x25, [x0, #192]",
        "ldp x26, x27, [x0, #208]",
        "ldp x28, x29, [x0, #224]",
        "ldr x30, [x0, #240]",
        "ldp x0, x1, [x0]",
        "eret",
        // No speculation past the ERET.
        "dsb nsh",
        "isb",
    )
}

/// The way back, from the vectors: the guest's x0 and x1 are on the stack, x1 is the kind of exit; returns from
/// [`enter`].
///
/// # Safety
///
/// Only the vectors come here.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn guest_exit() -> ! {
    naked_asm!(
        "ldr x0, [sp, #112]",
        "stp x2, x3, [x0, #16]",
        "stp x4, x5, [x0, #32]",
        "stp x6, x7, [x0, #48]",
        "stp x8, x9, [x0, #64]",
        "stp x10, x11, [x0, #80]",
        "stp x12, x13, [x0, #96]",
        "stp x14, x15, [x0, #112]",
        "stp x16, x17, [x0, #128]",
        "stp x18, x19, [x0, #144]",
        "stp x20, x21, [x0, #160]",
        "stp x22, x23, [x0, #176]",
        "stp x24, x25, [x0, #192]",
        "stp x26, x27, [x0, #208]",
        "stp x28, x29, [x0, #224]",
        "str x30, [x0, #240]",
        "ldp x2, x3, [sp], #16",
        "stp x2, x3, [x0]",
        "mrs x2, elr_el2",
        "mrs x3, spsr_el2",
        "stp x2, x3, [x0, #248]",
        "mov x0, x1",
        "ldp x27, x28, [sp, #16]",
        "ldp x25, x26, [sp, #32]",
        "ldp x23, x24, [sp, #48]",
        "ldp x21, x22, [sp, #64]",
        "ldp x19, x20, [sp, #80]",
        "ldp x29, x30, [sp], #112",
        "ret",
    )
}
