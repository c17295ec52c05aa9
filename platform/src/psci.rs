//! The guest's PSCI: its SMC and HVC calls, and the power state of each vCPU.
//!
//! | from    | to      | by                                                    |
//! |---------|---------|-------------------------------------------------------|
//! | OFF     | TAKEN   | CPU_ON, on any CPU, which then writes the entry point |
//! | TAKEN   | PENDING | the same CPU_ON, when it has                          |
//! | PENDING | ON      | the vCPU's own CPU, in [`Psci::wait`]                 |
//! | ON      | OFF     | CPU_OFF, on the vCPU's own CPU                        |
//!
//! CPU_ON's release of PENDING pairs with `wait`'s acquire: with the state come the entry point and what the caller
//! wrote.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use smccc::psci::{
    Error, PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64, PSCI_FEATURES,
    PSCI_MIGRATE_INFO_TYPE, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, PSCI_VERSION,
};

use crate::{
    cpus::{self, CpuIndex, MAX_CPUS},
    gic,
    vcpu::Vcpu,
};

const OFF: u8 = 0;
const TAKEN: u8 = 1;
const PENDING: u8 = 2;
const ON: u8 = 3;

/// PSCI 1.1.
const VERSION: i64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: no trusted OS that would have to be migrated.
const NO_MIGRATION: i64 = 2;
/// In a function identifier: the 64-bit calling convention.
const SMC64: u64 = 1 << 30;

/// The instruction a call was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub enum Conduit {
    /// SMC, trapped: the exception returns to the SMC itself, so `call` steps over it.
    Smc,
    /// HVC: the exception returns behind it.
    Hvc,
}

/// What the run loop does after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
#[must_use]
pub enum Action {
    /// Goes on with this vCPU.
    Resume,
    /// This vCPU is off: leaves it, and waits for the next start ([`Psci::wait`]).
    Off,
    /// The guest wants its end.
    SystemOff,
    /// The guest wants to start anew.
    SystemReset,
}

/// Where a vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub struct Start {
    /// The guest's entry point.
    pub entry: u64,
    /// What it finds in x0.
    pub context: u64,
}

impl Start {
    /// The vCPU with its registers.
    pub const fn vcpu(self) -> Vcpu {
        Vcpu::new(self.entry, self.context)
    }
}

struct Power {
    state: AtomicU8,
    entry: AtomicU64,
    context: AtomicU64,
}

/// The power states of one guest's vCPUs. vCPU k is CPU k.
pub struct Psci {
    vcpus: usize,
    power: [Power; MAX_CPUS],
    /// The guest has ended.
    down: AtomicBool,
}

impl Psci {
    /// A guest of `vcpus` vCPUs (at most [`MAX_CPUS`]), all off.
    pub const fn new(vcpus: usize) -> Self {
        Self {
            vcpus: if vcpus < MAX_CPUS { vcpus } else { MAX_CPUS },
            power: [const { Power { state: AtomicU8::new(OFF), entry: AtomicU64::new(0), context: AtomicU64::new(0) } };
                MAX_CPUS],
            down: AtomicBool::new(false),
        }
    }

    /// How many vCPUs the guest has.
    pub const fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// Turns a vCPU on: the hypervisor's own call, for the first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameters`] when there is no such vCPU, [`Error::AlreadyOn`] or [`Error::OnPending`] when it is
    /// not off, [`Error::Denied`] after [`shutdown`](Self::shutdown).
    pub fn power_on(&self, vcpu: CpuIndex, start: Start) -> Result<(), Error> {
        if vcpu.get() >= self.vcpus {
            return Err(Error::InvalidParameters);
        }
        if self.is_down() {
            return Err(Error::Denied);
        }
        let power = &self.power[vcpu.get()];
        match power.state.compare_exchange(OFF, TAKEN, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(ON) => return Err(Error::AlreadyOn),
            Err(_) => return Err(Error::OnPending),
        }
        power.entry.store(start.entry, Ordering::Relaxed);
        power.context.store(start.context, Ordering::Relaxed);
        power.state.store(PENDING, Ordering::Release);
        cpus::unpark(vcpu);
        Ok(())
    }

    /// Parks this CPU until its vCPU is turned on; `None` when the guest has ended. On the vCPU's own CPU. It loses
    /// system registers, as [`cpus::park`] says: prepare the CPU and load the guest's tables afterwards.
    pub fn wait(&self) -> Option<Start> {
        let power = self.power.get(cpus::current().get())?;
        loop {
            if self.is_down() {
                return None;
            }
            if power.state.compare_exchange(PENDING, ON, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(Start {
                    entry: power.entry.load(Ordering::Relaxed),
                    context: power.context.load(Ordering::Relaxed),
                });
            }
            cpus::park();
        }
    }

    /// Ends the guest: every [`wait`](Self::wait) returns `None`, and vCPUs that run are kicked ([`gic::kick`]). Freeze
    /// the guest's tables first; then each of them exits with a fault at once, and its run loop sees
    /// [`is_down`](Self::is_down).
    ///
    /// # Panics
    ///
    /// When the GIC is not as on QEMU's `virt`.
    pub fn shutdown(&self) {
        self.down.store(true, Ordering::Release);
        for cpu in CpuIndex::first(self.vcpus).filter(|&cpu| cpu != cpus::current()) {
            if self.power[cpu.get()].state.load(Ordering::Acquire) == ON {
                gic::kick(cpu);
            }
            cpus::unpark(cpu);
        }
    }

    /// Whether the guest has ended.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Serves the call that `vcpu`, which runs on this CPU, has just made. What is not offered returns NOT_SUPPORTED.
    pub fn call(&self, vcpu: &mut Vcpu, conduit: Conduit) -> Action {
        if conduit == Conduit::Smc {
            vcpu.skip_instruction();
        }
        // The function identifier and, in a 32-bit call, the arguments are the low halves.
        let function = vcpu.x[0] as u32;
        let mask = if vcpu.x[0] & SMC64 != 0 { u64::MAX } else { u64::from(u32::MAX) };
        let [first, second, third] = [vcpu.x[1] & mask, vcpu.x[2] & mask, vcpu.x[3] & mask];
        let result = match function {
            PSCI_VERSION => Ok(VERSION),
            PSCI_FEATURES => features(first as u32),
            PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => self.cpu_on(first, Start { entry: second, context: third }),
            PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => self.affinity_info(first, second),
            PSCI_MIGRATE_INFO_TYPE => Ok(NO_MIGRATION),
            PSCI_CPU_OFF => return self.cpu_off(),
            PSCI_SYSTEM_OFF => return Action::SystemOff,
            PSCI_SYSTEM_RESET => return Action::SystemReset,
            _ => Err(Error::NotSupported),
        };
        vcpu.x[0] = result.unwrap_or_else(i64::from) as u64 & mask;
        Action::Resume
    }

    fn cpu_on(&self, target: u64, start: Start) -> Result<i64, Error> {
        let vcpu = cpus::by_affinity(target).ok_or(Error::InvalidParameters)?;
        self.power_on(vcpu, start).map(|()| 0)
    }

    fn cpu_off(&self) -> Action {
        if let Some(power) = self.power.get(cpus::current().get()) {
            power.state.store(OFF, Ordering::Release);
        }
        Action::Off
    }

    /// 0 is on, 1 is off, 2 is in between.
    fn affinity_info(&self, target: u64, lowest_level: u64) -> Result<i64, Error> {
        let vcpu = cpus::by_affinity(target).filter(|vcpu| vcpu.get() < self.vcpus && lowest_level == 0);
        let power = &self.power[vcpu.ok_or(Error::InvalidParameters)?.get()];
        Ok(match power.state.load(Ordering::Acquire) {
            ON => 0,
            OFF => 1,
            _ => 2,
        })
    }
}

/// Whether a function is offered; none has feature bits.
fn features(function: u32) -> Result<i64, Error> {
    match function {
        PSCI_VERSION
        | PSCI_FEATURES
        | PSCI_CPU_ON_32
        | PSCI_CPU_ON_64
        | PSCI_CPU_OFF
        | PSCI_AFFINITY_INFO_32
        | PSCI_AFFINITY_INFO_64
        | PSCI_MIGRATE_INFO_TYPE
        | PSCI_SYSTEM_OFF
        | PSCI_SYSTEM_RESET => Ok(0),
        _ => Err(Error::NotSupported),
    }
}
