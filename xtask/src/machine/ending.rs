//! How a boot ended.

use crate::machine::watchdog::Hang;

/// How a boot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The image left with this code, or QEMU did for it.
    Exited(i32),
    /// QEMU was ended by this signal.
    Signalled(i32),
    /// The watchdog ended it.
    Hung(Hang),
}
