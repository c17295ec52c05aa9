//! Parking a CPU: powered off by the machine's own PSCI, resumed where it stopped.
//!
//! Neither WFE (QEMU only yields, and the host CPU spins) nor WFI (wakes by interrupts, whose enables belong to the
//! guest) would do: CPU_OFF really sleeps, needs nothing from the GIC, and leaves the CPU's registers as at reset,
//! which is what a guest expects of a CPU it turns on.
//!
//! | state    | means                                  | `park`                      | `unpark`               |
//! |----------|----------------------------------------|-----------------------------|------------------------|
//! | RUNNING  | no wake-up is owed                     | to PARKED, power off        | to NOTIFIED            |
//! | NOTIFIED | a wake-up is owed                      | to RUNNING, return at once  | stays                  |
//! | PARKED   | off, or about to be                    | cannot be: it is off        | to NOTIFIED, power on  |
//!
//! As with `std::thread::park`, a wake-up may come for no reason: callers check their condition in a loop. `unpark`'s
//! release pairs with `park`'s acquire: what was written before the one is seen after the other.

use core::{
    arch::naked_asm,
    hint,
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU8, Ordering},
};

use aarch64_rt::SuspendContext;
use smccc::{Smc, psci};

use crate::{
    boot,
    cpus::{self, CpuIndex, MAX_CPUS},
};

const RUNNING: u8 = 0;
const NOTIFIED: u8 = 1;
const PARKED: u8 = 2;

struct Spot {
    state: AtomicU8,
    /// While PARKED: how to resume, on the parked CPU's stack.
    context: AtomicPtr<SuspendContext>,
}

static SPOTS: [Spot; MAX_CPUS] =
    [const { Spot { state: AtomicU8::new(RUNNING), context: AtomicPtr::new(ptr::null_mut()) } }; MAX_CPUS];

/// Powers this CPU off until another calls [`unpark`] for it, or returns at once if one has since the last `park`.
/// May also return for no reason.
///
/// System registers are lost, as by a reset, except those the platform itself needs: what belongs to a guest
/// (VTTBR_EL2, [`partition::prepare`](crate::partition::prepare)) or to an [`Alarm`](crate::timer::Alarm) is set up
/// again afterwards.
pub fn park() {
    let cpu = cpus::current();
    let spot = &SPOTS[cpu.get()];
    let mut context = SuspendContext { stack_ptr: ptr::null_mut(), entry: resume, arg: 0 };
    spot.context.store(&raw mut context, Ordering::Relaxed);
    // Release: who sees PARKED sees the context's address.
    let parked = spot.state.compare_exchange(RUNNING, PARKED, Ordering::Release, Ordering::Relaxed);
    if parked.is_ok() {
        // SAFETY: the context lives in this frame, which stays until `power_off` returns; `init_cpu`, next, restores
        // what Rust code at EL2 relies on.
        unsafe { power_off(&raw mut context) };
        boot::init_cpu(cpu);
    }
    spot.state.swap(RUNNING, Ordering::Acquire);
}

/// Ends the current or the next [`park`] of `cpu`.
///
/// # Panics
///
/// When the machine refuses to turn `cpu` on.
pub fn unpark(cpu: CpuIndex) {
    let spot = &SPOTS[cpu.get()];
    if spot.state.swap(NOTIFIED, Ordering::AcqRel) != PARKED {
        return;
    }
    let Some(affinity) = cpus::affinity(cpu) else { return };
    let context = spot.context.load(Ordering::Relaxed);
    loop {
        let entry = aarch64_rt::warm_boot_entry as *const () as u64;
        match psci::cpu_on::<Smc>(affinity, entry, context as u64) {
            Ok(()) => return,
            // It has announced that it parks, and is not off yet.
            Err(psci::Error::AlreadyOn | psci::Error::OnPending) => hint::spin_loop(),
            Err(error) => panic!("CPU {} does not resume: {error}", cpu.get()),
        }
    }
}

/// Saves what a function call must keep, fills in the stack pointer, and powers this CPU off. Returns when the CPU
/// is turned on at `warm_boot_entry` with `context`, or at once if the machine refuses.
///
/// # Safety
///
/// `context` is valid until this returns and names [`resume`]. Afterwards EL2's system registers are as after reset and
/// `enable_mmu`.
#[unsafe(naked)]
unsafe extern "C" fn power_off(context: *mut SuspendContext) {
    naked_asm!(
        "stp x29, x30, [sp, #-96]!",
        "stp x27, x28, [sp, #16]",
        "stp x25, x26, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x21, x22, [sp, #64]",
        "stp x19, x20, [sp, #80]",
        "mov x9, sp",
        "str x9, [x0, #{stack_ptr}]",
        "mov w0, #0x0002",
        "movk w0, #0x8400, lsl #16", // PSCI CPU_OFF
        "smc #0",
        "b {resume}",
        stack_ptr = const offset_of!(SuspendContext, stack_ptr),
        resume = sym resume,
    )
}

/// Returns from [`power_off`], on its stack.
#[unsafe(naked)]
extern "C" fn resume(_: u64) -> ! {
    naked_asm!(
        "ldp x27, x28, [sp, #16]",
        "ldp x25, x26, [sp, #32]",
        "ldp x23, x24, [sp, #48]",
        "ldp x21, x22, [sp, #64]",
        "ldp x19, x20, [sp, #80]",
        "ldp x29, x30, [sp], #96",
        "ret",
    )
}
