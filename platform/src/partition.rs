//! Giving a CPU to a guest: the EL2 registers that say what traps, and the EL1 registers as after a reset.
//!
//! Everything passes through (static partition) but stage 2, SMC, and what could reach outside the partition:
//! implementation-defined registers, ACTLR_EL1, profiling and trace buffers, memory tags. Their use exits with class
//! [`Syndrome::SYSREG`](crate::vcpu::Syndrome::SYSREG) (or as an unknown instruction), which
//! [`Vcpu::inject_undefined`](crate::vcpu::Vcpu::inject_undefined) answers.
//!
//! Many of these registers have unknown values after a reset, and many bits are RES1 or RES0 by feature: each is
//! written in full, from the ID registers. QEMU forgives most omissions; CPUs do not.

use aarch64_cpu::asm::barrier;

use crate::{
    gic,
    sysreg::{self, field},
};

/// What the stage-2 tables ask of HCR_EL2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, defmt::Format)]
pub struct Controls {
    /// HCR_EL2.FWB: the tables use the memory attributes of FEAT_S2FWB. Only where the CPU has it.
    pub forced_write_back: bool,
}

/// Prepares this CPU for a guest that starts as after a reset. Stage 2 (VTCR_EL2, VTTBR_EL2) is the caller's.
pub fn prepare(controls: Controls) {
    let id = IdRegisters::read();
    hypervisor_configuration(&id, controls);
    hypervisor_configuration_extended(&id);
    floating_point_and_vectors(&id);
    fine_grained_traps(&id);
    debug_and_performance(&id);
    memory_partitioning(&id);
    identity_and_time();
    reset_el1();
    // So that `gic::kick` reaches also a guest that never touches the GIC.
    gic::enable_cpu_interface();
    barrier::isb(barrier::SY);
}

/// The ID registers that decide which bits exist.
struct IdRegisters {
    pfr0: u64,
    pfr1: u64,
    pfr2: u64,
    dfr0: u64,
    isar1: u64,
    isar2: u64,
    mmfr0: u64,
    mmfr1: u64,
    mmfr3: u64,
    smfr0: u64,
}

impl IdRegisters {
    /// By number where an assembler may not know the name; registers of this group that do not exist read as 0.
    fn read() -> Self {
        Self {
            pfr0: sysreg::read!("id_aa64pfr0_el1"),
            pfr1: sysreg::read!("id_aa64pfr1_el1"),
            pfr2: sysreg::read!("S3_0_C0_C4_2"),
            dfr0: sysreg::read!("id_aa64dfr0_el1"),
            isar1: sysreg::read!("id_aa64isar1_el1"),
            isar2: sysreg::read!("S3_0_C0_C6_2"),
            mmfr0: sysreg::read!("id_aa64mmfr0_el1"),
            mmfr1: sysreg::read!("id_aa64mmfr1_el1"),
            mmfr3: sysreg::read!("S3_0_C0_C7_3"),
            smfr0: sysreg::read!("S3_0_C0_C4_5"),
        }
    }

    fn sve(&self) -> bool {
        field(self.pfr0, 32) != 0
    }

    fn sme(&self) -> bool {
        field(self.pfr1, 24) != 0
    }

    fn sme2(&self) -> bool {
        field(self.pfr1, 24) >= 2
    }

    fn gcs(&self) -> bool {
        field(self.pfr1, 44) != 0
    }

    fn the(&self) -> bool {
        field(self.pfr1, 48) != 0
    }

    fn mpam(&self) -> bool {
        field(self.pfr0, 40) != 0 || field(self.pfr1, 16) != 0
    }

    fn scxtnum(&self) -> bool {
        let csv2 = field(self.pfr0, 56);
        csv2 >= 2 || csv2 == 1 && field(self.pfr1, 32) >= 2
    }

    fn pointer_authentication(&self) -> bool {
        // APA, API, GPA, GPI; then APA3, GPA3.
        [4, 8, 24, 28].iter().any(|&low| field(self.isar1, low) != 0)
            || [8, 12].iter().any(|&low| field(self.isar2, low) != 0)
    }

    fn aarch32_el1(&self) -> bool {
        field(self.pfr0, 4) == 2
    }

    fn statistical_profiling(&self) -> bool {
        field(self.dfr0, 32) != 0
    }

    fn performance_monitors(&self) -> bool {
        !matches!(field(self.dfr0, 8), 0 | 0xf)
    }
}

/// Bit `position` if `condition`.
const fn bit(position: u32, condition: bool) -> u64 {
    (condition as u64) << position
}

fn hypervisor_configuration(id: &IdRegisters, controls: Controls) {
    const VM: u64 = 1;
    /// Set/way invalidation also cleans; RES1 where EL1 has no AArch32.
    const SWIO: u64 = 1 << 1;
    const TSC: u64 = 1 << 19;
    const TIDCP: u64 = 1 << 20;
    const TACR: u64 = 1 << 21;
    const RW: u64 = 1 << 31;
    // IMO, FMO, AMO stay 0: the GIC and SErrors are the guest's.
    let hcr = VM
        | SWIO
        | TSC
        | TIDCP
        | TACR
        | RW
        | bit(40, id.pointer_authentication()) // APK: keys
        | bit(41, id.pointer_authentication()) // API: instructions
        | bit(46, controls.forced_write_back) // FWB
        | bit(53, id.scxtnum()); // EnSCXT
    // SAFETY: affects lower ELs only: E2H and TGE stay 0.
    unsafe { sysreg::write!("hcr_el2", hcr) };
    if id.aarch32_el1() || field(id.pfr0, 0) == 2 {
        // HSTR_EL2: no traps of AArch32 coprocessor accesses.
        // SAFETY: as above.
        unsafe { sysreg::write!("hstr_el2", 0_u64) };
    }
}

/// HCRX_EL2: most of its bits enable what a guest sees in the ID registers.
fn hypervisor_configuration_extended(id: &IdRegisters) {
    if field(id.mmfr1, 40) == 0 {
        return;
    }
    let ls64 = field(id.isar1, 60);
    let hcrx = bit(0, ls64 >= 3) // EnAS0: ST64BV0
        | bit(1, ls64 >= 1) // EnALS: LD64B, ST64B
        | bit(2, ls64 >= 2) // EnASR: ST64BV
        | bit(11, field(id.isar2, 16) != 0) // MSCEn: memory copy and set
        | bit(14, field(id.mmfr3, 0) != 0) // TCR2En
        | bit(15, field(id.mmfr3, 4) != 0) // SCTLR2En
        | bit(22, id.gcs()) // GCSEn
        | bit(23, field(id.pfr2, 32) != 0); // EnFPM
    // SAFETY: FEAT_HCX is there; affects lower ELs only.
    unsafe { sysreg::write!("S3_4_C1_C2_2", hcrx) };
}

/// CPTR_EL2 without traps, and the longest vectors. EL2 itself uses none of it.
fn floating_point_and_vectors(id: &IdRegisters) {
    const RES1: u64 = 1 << 13 | 1 << 9 | 0xff;
    // TZ and TSM: RES1 where there is no SVE, no SME.
    let cptr = RES1 | bit(8, !id.sve()) | bit(12, !id.sme());
    // SAFETY: EL2 uses no floating point registers.
    unsafe { sysreg::write!("cptr_el2", cptr) };
    barrier::isb(barrier::SY);
    if id.sve() {
        // ZCR_EL2.LEN
        // SAFETY: FEAT_SVE is there and not trapped any more.
        unsafe { sysreg::write!("S3_4_C1_C2_0", 0xf_u64) };
    }
    if id.sme() {
        // SMCR_EL2: LEN, EZT0, FA64
        let smcr = 0xf | bit(30, id.sme2()) | bit(31, id.smfr0 >> 63 != 0);
        // SAFETY: FEAT_SME is there and not trapped any more.
        unsafe { sysreg::write!("S3_4_C1_C2_6", smcr) };
    }
}

/// FEAT_FGT: no trap. Bits whose name starts with n trap while 0, so they are set where their feature exists.
fn fine_grained_traps(id: &IdRegisters) {
    if field(id.mmfr0, 56) == 0 {
        return;
    }
    let s1pie = field(id.mmfr3, 8) != 0;
    let s1poe = field(id.mmfr3, 16) != 0;
    let aie = field(id.mmfr3, 24) != 0;
    let accdata = field(id.isar1, 60) >= 3;
    let brbe = field(id.dfr0, 52) != 0;
    let registers = bit(50, accdata) // nACCDATA_EL1
        | bit(52, id.gcs()) // nGCS_EL0
        | bit(53, id.gcs()) // nGCS_EL1
        | bit(54, id.sme()) // nSMPRI_EL1
        | bit(55, id.sme()) // nTPIDR2_EL0
        | bit(56, id.the()) // nRCWMASK_EL1
        | bit(57, s1pie) // nPIRE0_EL1
        | bit(58, s1pie) // nPIR_EL1
        | bit(59, s1poe) // nPOR_EL0
        | bit(60, s1poe) // nPOR_EL1
        | bit(62, aie) // nMAIR2_EL1
        | bit(63, aie); // nAMAIR2_EL1
    let instructions = bit(55, brbe) // nBRBINJ
        | bit(56, brbe) // nBRBIALL
        | bit(57, id.gcs()) // nGCSPUSHM_EL1
        | bit(58, id.gcs()) // nGCSSTR_EL1
        | bit(59, id.gcs()); // nGCSEPP
    let debug_writes = bit(60, brbe) // nBRBCTL
        | bit(61, brbe) // nBRBDATA
        | bit(62, field(id.dfr0, 32) >= 3); // nPMSNEVFR_EL1
    let debug_reads = debug_writes | bit(59, brbe); // nBRBIDR
    // HFGRTR_EL2
    // SAFETY: FEAT_FGT is there; this and the following affect lower ELs only.
    unsafe { sysreg::write!("S3_4_C1_C1_4", registers) };
    // HFGWTR_EL2
    // SAFETY: as above.
    unsafe { sysreg::write!("S3_4_C1_C1_5", registers) };
    // HFGITR_EL2
    // SAFETY: as above.
    unsafe { sysreg::write!("S3_4_C1_C1_6", instructions) };
    // HDFGRTR_EL2
    // SAFETY: as above.
    unsafe { sysreg::write!("S3_4_C3_C1_4", debug_reads) };
    // HDFGWTR_EL2
    // SAFETY: as above.
    unsafe { sysreg::write!("S3_4_C3_C1_5", debug_writes) };
    if field(id.pfr0, 44) != 0 {
        // HAFGRTR_EL2: the activity monitors
        // SAFETY: as above; FEAT_AMUv1 is there.
        unsafe { sysreg::write!("S3_4_C3_C1_6", 0_u64) };
    }
}

/// MDCR_EL2: debug and all event counters are the guest's; its profiling and trace buffers, whose addresses would need
/// stage 2 too, stay trapped (E2PB, E2TB 0).
fn debug_and_performance(id: &IdRegisters) {
    let counters = if id.performance_monitors() { (sysreg::read!("pmcr_el0") >> 11) & 0x1f } else { 0 };
    let mdcr = counters | bit(14, id.statistical_profiling()); // HPMN, TPMS
    // SAFETY: affects lower ELs, and the counters, which EL2 only measures with.
    unsafe { sysreg::write!("mdcr_el2", mdcr) };
}

/// FEAT_MPAM: no traps, default partition.
fn memory_partitioning(id: &IdRegisters) {
    if !id.mpam() {
        return;
    }
    // MPAM2_EL2
    // SAFETY: FEAT_MPAM is there; the default partition is always valid.
    unsafe { sysreg::write!("S3_4_C10_C5_0", 0_u64) };
    const HAS_HCR: u64 = 1 << 17;
    if sysreg::read!("S3_0_C10_C4_4") & HAS_HCR != 0 {
        // MPAMHCR_EL2
        // SAFETY: it exists, by MPAMIDR_EL1.HAS_HCR.
        unsafe { sysreg::write!("S3_4_C10_C4_0", 0_u64) };
    }
}

/// The guest sees the CPU it runs on, and the machine's time.
fn identity_and_time() {
    let (midr, mpidr) = (sysreg::read!("midr_el1"), sysreg::read!("mpidr_el1"));
    // SAFETY: VPIDR_EL2 is what EL1 reads as MIDR_EL1.
    unsafe { sysreg::write!("vpidr_el2", midr) };
    // SAFETY: VMPIDR_EL2 is what EL1 reads as MPIDR_EL1.
    unsafe { sysreg::write!("vmpidr_el2", mpidr) };
    // CNTHCTL_EL2: EL1PCTEN, EL1PCEN: physical counter and timer are not trapped.
    // SAFETY: affects lower ELs only.
    unsafe { sysreg::write!("cnthctl_el2", 0b11_u64) };
    // SAFETY: as above.
    unsafe { sysreg::write!("cntvoff_el2", 0_u64) };
}

/// What the architecture, PSCI and Linux's boot protocol ask of EL1 at the start.
fn reset_el1() {
    /// MMU and caches off, little-endian; the bits that are RES1 in Armv8.0 and select its behaviour later.
    const SCTLR: u64 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11;
    // SAFETY: this and the following have a meaning to the guest alone.
    unsafe { sysreg::write!("sctlr_el1", SCTLR) };
    // SAFETY: as above.
    unsafe { sysreg::write!("cpacr_el1", 0_u64) };
    // SAFETY: as above.
    unsafe { sysreg::write!("mdscr_el1", 0_u64) };
    // SAFETY: as above.
    unsafe { sysreg::write!("cntkctl_el1", 0_u64) };
    // SAFETY: as above.
    unsafe { sysreg::write!("cntv_ctl_el0", 0_u64) };
    // SAFETY: as above.
    unsafe { sysreg::write!("cntp_ctl_el0", 0_u64) };
}
