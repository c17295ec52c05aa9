//! The ways to track writes, as far as this CPU has them.

use stage2::{
    dirty::Tracking,
    geometry::{Features, GeometryOptions, HardwareUpdate},
};

/// Those that a CPU with `features` has.
pub(crate) fn modes(features: &Features) -> impl Iterator<Item = Tracking> {
    let has_dirty_state = features.hardware_update() == HardwareUpdate::AccessFlagAndDirty;
    [Tracking::WriteProtect, Tracking::Hardware, Tracking::Adaptive]
        .into_iter()
        .filter(move |tracking| *tracking == Tracking::WriteProtect || has_dirty_state)
}

/// What the host knows it by.
pub(crate) const fn name(tracking: Tracking) -> &'static str {
    match tracking {
        Tracking::WriteProtect => "write_protect",
        Tracking::Hardware => "hardware",
        Tracking::Adaptive => "adaptive",
    }
}

/// What a tree takes for it, and no more.
pub(crate) fn options(tracking: Tracking) -> GeometryOptions {
    let update = match tracking {
        Tracking::WriteProtect => HardwareUpdate::None,
        Tracking::Hardware | Tracking::Adaptive => HardwareUpdate::AccessFlagAndDirty,
    };
    GeometryOptions::default().with_hardware_update(update)
}
