//! How a boot ended.

use std::fmt;

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

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(formatter, "left with exit code {code}"),
            Self::Signalled(signal) => write!(formatter, "QEMU was ended by signal {signal}"),
            Self::Hung(hang) => write!(formatter, "hang: {hang}"),
        }
    }
}
