//! The little of the GICv3 that EL2 uses. The GIC is the guest's; it is passed through by stage 2.

use core::{ops::Range, ptr, ptr::NonNull};

use aarch64_cpu::asm::barrier;
use arm_gic::{
    IntId, UniqueMmioPointer,
    gicv3::{
        GicCpuInterface, GicDistributor, GicError, GicRedistributorIterator, Group, SgiTarget, SgiTargetGroup,
        registers::{Gicd, GicdCtlr, GicrSgi},
    },
};
use spin::Mutex;

use crate::{
    cpus::{self, CpuIndex},
    sysreg,
};

/// The distributor's registers.
pub const DISTRIBUTOR: Range<u64> = 0x0800_0000..0x0801_0000;
/// Where the redistributors' registers start.
const REDISTRIBUTORS: u64 = 0x080a_0000;
/// The size of one redistributor's registers; there is one for each CPU of the machine.
const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// The registers of all redistributors.
pub fn redistributors() -> Range<u64> {
    REDISTRIBUTORS..REDISTRIBUTORS + REDISTRIBUTOR_SIZE * cpus::count() as u64
}

/// The interrupt of the EL2 physical timer.
const EL2_TIMER: IntId = IntId::ppi(10);
/// The software interrupt of [`kick`]: the last, which Linux does not use.
const KICK: IntId = IntId::sgi(15);

/// Gives EL2 and EL1 the GIC's system registers, with no virtual interrupts. On each CPU after reset.
pub(crate) fn init_cpu() {
    // ICC_SRE_EL2: SRE, DFB, DIB, and Enable for EL1.
    // SAFETY: there is a GICv3; its register interface is turned on before anything else of it is used.
    unsafe { sysreg::write!("S3_4_C12_C9_5", 0b1111_u64) };
    barrier::isb(barrier::SY);
    // ICH_HCR_EL2: no virtual CPU interface, no traps.
    // SAFETY: as above.
    unsafe { sysreg::write!("S3_4_C12_C11_0", 0_u64) };
}

/// Held while EL2 uses the GIC's memory-mapped registers.
static REGISTERS: Mutex<()> = Mutex::new(());

/// Lets the EL2 timer's interrupt end this CPU's WFI. The interrupt is never taken: PSTATE masks it.
///
/// Called before the guest runs, which then has the distributor to itself.
pub(crate) fn enable_timer_wakeup() -> Result<(), GicError> {
    let _registers = REGISTERS.lock();
    enable_private(cpus::current(), EL2_TIMER)?;
    // SAFETY: QEMU's distributor is there, mapped as device memory; the lock makes this EL2's one reference.
    let distributor = unsafe { UniqueMmioPointer::new(device::<Gicd>(DISTRIBUTOR.start)) };
    // QEMU has one security state: then this bit enables group 1, and affinity routing has the other's place.
    GicDistributor::new(distributor).modify_control(GicdCtlr::ARE_S | GicdCtlr::EnableGrp1NS, true);
    enable_cpu_interface();
    Ok(())
}

/// Lets interrupts of group 1 and of any priority through to this CPU.
pub(crate) fn enable_cpu_interface() {
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
}

/// Makes the guest on `cpu` leave, if its tables are frozen: sends it an interrupt, so that a vCPU that sleeps or spins
/// fetches an instruction, which faults. At the guest's end only: the interrupt is none the guest knows.
///
/// It has the highest priority, because a Linux CPU that has been told to stop sleeps within an interrupt handler,
/// where it wakes for nothing less. A guest that has turned its GIC interface off and sleeps is not reached.
///
/// # Panics
///
/// When the GIC is not as on QEMU's `virt`.
pub fn kick(cpu: CpuIndex) {
    let Some(affinity) = cpus::affinity(cpu) else { return };
    let [aff0, affinity1, affinity2, _, affinity3, ..] = affinity.to_le_bytes();
    // One message reaches 16 values of Aff0; `virt` gives no CPU more in one Aff1.
    let target = SgiTarget::List { affinity3, affinity2, affinity1, target_list: 1 << (aff0 % 16) };
    let _registers = REGISTERS.lock();
    let sent =
        enable_private(cpu, KICK).and_then(|()| GicCpuInterface::send_sgi(KICK, target, SgiTargetGroup::CurrentGroup1));
    if let Err(error) = sent {
        panic!("no kick: {error}");
    }
}

/// Enables an interrupt in `cpu`'s redistributor, in group 1, with the highest priority. With [`REGISTERS`] held.
fn enable_private(cpu: CpuIndex, interrupt: IntId) -> Result<(), GicError> {
    let affinity = cpus::affinity(cpu);
    // SAFETY: QEMU's redistributors start there, mapped as device memory; the lock makes these EL2's only references.
    let mut redistributors = unsafe { GicRedistributorIterator::new(device::<GicrSgi>(REDISTRIBUTORS)) }?;
    let Some(mut redistributor) = redistributors.find(|one| Some(one.typer().core_mpidr()) == affinity) else {
        return Err(GicError::InvalidRedistributorIndex(cpu.get()));
    };
    match redistributor.mark_core_awake() {
        Ok(()) | Err(GicError::AlreadyAwake) => {}
        Err(error) => return Err(error),
    }
    redistributor.set_group(interrupt, Group::Group1NS)?;
    redistributor.set_interrupt_priority(interrupt, 0)?;
    redistributor.enable_interrupt(interrupt, true)
}

fn device<T>(address: u64) -> NonNull<T> {
    NonNull::new(ptr::with_exposed_provenance_mut(address as usize)).expect("no device is at address 0")
}
