//! Time, and sleeping on a CPU that has no guest.

use core::{marker::PhantomData, time::Duration};

use aarch64_cpu::{
    asm::{self, barrier},
    registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable},
};

use crate::{cpus, gic, sysreg};

const NANOSECONDS: u128 = 1_000_000_000;

/// The time since power-on.
pub fn now() -> Duration {
    // Without this the counter may be read early, before what is being timed.
    barrier::isb(barrier::SY);
    let nanoseconds = u128::from(CNTPCT_EL0.get()) * NANOSECONDS / u128::from(CNTFRQ_EL0.get());
    Duration::from_nanos(nanoseconds as u64)
}

/// Where QEMU runs all CPUs by turns, as under `-icount`: gives another CPU the turn for `duration`. Then that loses it,
/// whatever instruction it is at. On a CPU without an [`Alarm`], whose timer this uses.
pub fn yield_for(duration: Duration) {
    const ENABLE_MASKED: u64 = 0b11;
    // The division first: once the time has been read it runs.
    let ticks = ticks(duration);
    let deadline = CNTPCT_EL0.get().saturating_add(ticks);
    // SAFETY: this CPU's EL2 timer is nobody else's, and its interrupt stays masked: QEMU ends a turn when a timer expires.
    unsafe { sysreg::write!("cnthp_cval_el2", deadline) };
    // SAFETY: as above.
    unsafe { sysreg::write!("cnthp_ctl_el2", ENABLE_MASKED) };
    // To set a timer may have ended this CPU's turn already.
    while CNTPCT_EL0.get() < deadline {
        cpus::yield_now();
    }
    // SAFETY: as above.
    unsafe { sysreg::write!("cnthp_ctl_el2", 0_u64) };
}

fn ticks(duration: Duration) -> u64 {
    (duration.as_nanos() * u128::from(CNTFRQ_EL0.get()) / NANOSECONDS) as u64
}

/// The alarm clock of one CPU: its EL2 physical timer, which ends its WFI. Neither a parked CPU nor one that runs a
/// guest keeps it.
pub struct Alarm {
    /// Stays on its CPU.
    _not_send: PhantomData<*const ()>,
}

impl Alarm {
    /// Takes this CPU's timer and enables its interrupt in the GIC. Before the first guest instruction: afterwards the
    /// GIC is the guest's.
    ///
    /// A guest that turns the distributor off also delays the alarm, until it turns it on again.
    ///
    /// # Panics
    ///
    /// When the GIC is not as on QEMU's `virt`.
    pub fn new() -> Self {
        if let Err(error) = gic::enable_timer_wakeup() {
            panic!("no alarm: {error}");
        }
        // Interrupts are EL2's own here (AMO, IMO, FMO), so that a pending one ends WFI whatever EL1 state was left.
        let hcr = sysreg::read!("hcr_el2") | 0b111 << 3;
        // SAFETY: no guest runs on this CPU; PSTATE masks the interrupts.
        unsafe { sysreg::write!("hcr_el2", hcr) };
        barrier::isb(barrier::SY);
        Self { _not_send: PhantomData }
    }

    /// Sleeps for `duration`; the host CPU is free meanwhile.
    pub fn sleep(&mut self, duration: Duration) {
        let deadline = CNTPCT_EL0.get().saturating_add(ticks(duration));
        // SAFETY: this CPU's EL2 timer is `self`'s; its interrupt is masked and only ends the WFI.
        unsafe { sysreg::write!("cnthp_cval_el2", deadline) };
        // SAFETY: as above.
        unsafe { sysreg::write!("cnthp_ctl_el2", 1_u64) };
        barrier::isb(barrier::SY);
        while CNTPCT_EL0.get() < deadline {
            asm::wfi();
            barrier::isb(barrier::SY);
        }
        // SAFETY: as above.
        unsafe { sysreg::write!("cnthp_ctl_el2", 0_u64) };
        barrier::isb(barrier::SY);
    }
}

impl Default for Alarm {
    fn default() -> Self {
        Self::new()
    }
}
