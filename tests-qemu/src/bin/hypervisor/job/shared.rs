//! What all CPUs of the job share.

use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use stage2_platform::psci::Psci;
use stage2_tests_qemu::machine::GuestStage2;

use super::{backing::GuestMemory, devices::Devices};

/// How the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
#[repr(u8)]
pub(crate) enum Ending {
    /// It runs.
    None = 0,
    /// SYSTEM_OFF.
    PoweredOff = 1,
    /// SYSTEM_RESET: what a Linux does that has panicked.
    Reset = 2,
    /// The hypervisor could not let it go on.
    Stopped = 3,
}

impl Ending {
    /// As the report names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "running",
            Self::PoweredOff => "powered-off",
            Self::Reset => "reset",
            Self::Stopped => "stopped",
        }
    }
}

/// One guest and what belongs to it.
pub(crate) struct Shared<'h> {
    pub(crate) stage2: GuestStage2<'h>,
    pub(crate) memory: GuestMemory<'h>,
    pub(crate) devices: Devices,
    pub(crate) psci: Psci,
    ending: AtomicU8,
    /// vCPUs that were ever turned on.
    started: AtomicUsize,
    /// CPUs that will not run the guest any more.
    left: AtomicUsize,
    violations: AtomicU64,
}

impl<'h> Shared<'h> {
    pub(crate) fn new(stage2: GuestStage2<'h>, memory: GuestMemory<'h>, devices: Devices, vcpus: usize) -> Self {
        Self {
            stage2,
            memory,
            devices,
            psci: Psci::new(vcpus),
            ending: AtomicU8::new(Ending::None as u8),
            started: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            violations: AtomicU64::new(0),
        }
    }

    /// Notes that the guest has ended; what was noted first counts.
    pub(crate) fn end(&self, ending: Ending) {
        let _ = self.ending.compare_exchange(Ending::None as u8, ending as u8, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether and how the guest has ended.
    pub(crate) fn ending(&self) -> Ending {
        match self.ending.load(Ordering::Relaxed) {
            0 => Ending::None,
            1 => Ending::PoweredOff,
            2 => Ending::Reset,
            _ => Ending::Stopped,
        }
    }

    /// A vCPU was turned on for the first time.
    pub(crate) fn note_started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// How many vCPUs were ever turned on.
    pub(crate) fn started(&self) -> usize {
        self.started.load(Ordering::Relaxed)
    }

    /// This CPU will not run the guest any more. Release: what it did before is seen by who counts it.
    pub(crate) fn note_left(&self) {
        self.left.fetch_add(1, Ordering::Release);
    }

    /// Whether no CPU will run the guest any more.
    pub(crate) fn all_left(&self) -> bool {
        self.left.load(Ordering::Acquire) == self.psci.vcpus()
    }

    /// Something happened that never should; the caller logs what.
    pub(crate) fn violation(&self) {
        self.violations.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was.
    pub(crate) fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }
}
