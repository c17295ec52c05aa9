//! The ways to track writes, as far as this CPU has them.

use alloc::string::String;

use stage2::{
    Reader,
    arch::Aarch64,
    dirty::{DirtyLog, Initial},
    geometry::{Features, GeometryOptions, HardwareUpdate},
    memory::TableMemory,
};
use stage2_tests_qemu::say::OrSay;

use super::lab::LabStage2;

/// A way to track writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// A clean page is write-protected: a write to it faults.
    WriteProtect,
    /// The hardware notes a write in the page's entry.
    Hardware,
}

impl Mode {
    /// Those that a CPU with `features` has.
    pub(crate) fn all(features: &Features) -> impl Iterator<Item = Self> {
        let has_dirty_state = features.hardware_update() == HardwareUpdate::AccessFlagAndDirty;
        [Self::WriteProtect, Self::Hardware]
            .into_iter()
            .filter(move |mode| *mode == Self::WriteProtect || has_dirty_state)
    }

    /// What the host knows it by.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WriteProtect => "write_protect",
            Self::Hardware => "hardware",
        }
    }

    /// What a tree needs for it.
    pub(crate) fn options(self) -> GeometryOptions {
        let update = match self {
            Self::WriteProtect => HardwareUpdate::None,
            Self::Hardware => HardwareUpdate::AccessFlagAndDirty,
        };
        GeometryOptions::default().with_hardware_update(update)
    }

    /// Starts a log of all that is mapped, clean.
    #[inline(always)]
    pub(crate) fn start<'s, 'h, M: TableMemory>(
        self,
        tree: &'s LabStage2<'h, M>,
        reader: &Reader<'_>,
    ) -> Result<DirtyLog<'s, 'h, Aarch64, M>, String> {
        tree.start_logging(reader, Initial::Clean).or_say("start")
    }
}
