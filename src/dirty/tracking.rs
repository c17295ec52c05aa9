//! How a log learns that a page is written.

use core::fmt;

use crate::arch::Arch;
use crate::geometry::HardwareUpdate;
use crate::memory::TableMemory;
use crate::stage2::Stage2;
use crate::walk::Cleaning;

/// How a log learns that a clean page is written. What a page looks like when it is dirty is the same with all of them, so that they
/// can follow one another, over one tree, without a pause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Tracking {
    /// The first store to a clean page faults. On any CPU.
    WriteProtect = 1,
    /// The hardware notes it (DBM), no store faults; each scan looks at every entry. Where VTCR_EL2.HD is set.
    Hardware = 2,
    /// The first store to a clean *table* faults, and arms DBM for all of it, until a harvest finds nothing dirty there: what
    /// is clean costs a scan one look a table, what is hot costs the guest no faults. Where VTCR_EL2.HD is set.
    Adaptive = 3,
}

impl Tracking {
    pub(crate) const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::WriteProtect),
            2 => Some(Self::Hardware),
            3 => Some(Self::Adaptive),
            _ => None,
        }
    }

    /// What all leaves become when a log begins clean.
    pub(crate) fn at_start(self) -> Cleaning {
        match self {
            Self::WriteProtect | Self::Adaptive => Cleaning::Protect,
            Self::Hardware => Cleaning::Arm,
        }
    }

    /// What those become that a harvest cleans.
    pub(crate) fn at_rearm(self) -> Cleaning {
        match self {
            Self::WriteProtect => Cleaning::Protect,
            Self::Adaptive => Cleaning::Keep,
            Self::Hardware => Cleaning::Arm,
        }
    }
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteProtect => "write-protect",
            Self::Hardware => "hardware",
            Self::Adaptive => "adaptive",
        })
    }
}

impl<A: Arch, M: TableMemory> Stage2<'_, A, M> {
    /// What [`Stage2::start_logging`] takes: the best there is for this tree, by the figures in `docs/dirty-logging.md`.
    pub fn default_tracking(&self) -> Tracking {
        if self.has_hardware_dirty_state() { Tracking::Adaptive } else { Tracking::WriteProtect }
    }

    /// Whether VTCR_EL2.HD is set: what [`Tracking::Hardware`] and [`Tracking::Adaptive`] take.
    pub(super) fn has_hardware_dirty_state(&self) -> bool {
        self.tree.geometry.hardware_update() == HardwareUpdate::AccessFlagAndDirty
    }
}
