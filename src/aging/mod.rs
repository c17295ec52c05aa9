//! Aging: which pages the guest accesses, found out while everything goes on.
//!
//! The access flag of a leaf says that the page was accessed since it was last made old. A page is *young* with it and *old*
//! without. Where VTCR_EL2.HA is set the hardware sets it; elsewhere the first access to an old page faults, and the fault path
//! does. A page that is mapped begins young. An interval is
//!
//! 1. [`Stage2::make_old`](crate::stage2::Stage2::make_old): takes the flags;
//! 2. time passes;
//! 3. [`Stage2::scan_accessed`](crate::stage2::Stage2::scan_accessed): read-only; the caller's bitmap gets a 1 for each young page.
//!
//! [`Stage2::age`](crate::stage2::Stage2::age) is the same for good: it makes old what is young, and counts for each page, or each
//! leaf table's worth of them, the intervals since the last access ([`WorkingSet`]).
//!
//! # Contract
//! After [`Flush::Now`] each access is noted: who looks later finds the page young. A page that is young need not have been accessed by an
//! instruction: a CPU may set the flag for what it only expects to need. An access while pages are being made old may be of the
//! interval that ends.
//!
//! # Invalidation
//! An access flag that is taken needs no break-before-make, and an entry without it is in no TLB. But an entry that was cached with it lets
//! accesses pass unnoticed for as long as it is there. So there is a choice, [`Flush`]. Who relies on pages that another has made old
//! takes his invalidation on himself (`state.rs`).
//!
//! # What stays as it is
//! Frame, permissions and dirty state of a leaf: only the flag changes, by read-modify-write where the hardware may write, and what that
//! returned is what was counted. Markers: whoever put one there finds the flag as it was. A leaf of which a range covers a part:
//! the rest would be old for no reason. A block is as young as any of its pages, its parts are as young as it was, and a table
//! that is joined makes a block that is as young as any of its leaves.

mod bitmap;
mod make_old;
mod scan;
mod state;
mod working_set;

pub use make_old::{Flush, MadeOld, MakeOldError};
pub(crate) use state::AgingState;
pub use working_set::{Histogram, Unit, WorkingSet};

use core::fmt;

use crate::error::{ArgumentError, Corrupt, Stopped};

/// Why pages were not looked at, or not all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum AgingError {
    /// Nothing was changed.
    Argument(ArgumentError),
    /// The caller's memory is too short for the range; nothing was changed.
    TooShort {
        /// The words of a bitmap, or the counters, that it takes.
        needed: u64,
    },
    /// The working set is of another guest; nothing was changed.
    OtherGuest,
    /// The tree is corrupt. What came before is done.
    Stopped(Stopped<Corrupt>),
}

impl fmt::Display for AgingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::TooShort { needed } => write!(f, "the range takes {needed} words or counters"),
            Self::OtherGuest => f.write_str("the working set is of another guest"),
            Self::Stopped(stopped) => stopped.fmt(f),
        }
    }
}

impl core::error::Error for AgingError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Stopped(stopped) => Some(stopped),
            _ => None,
        }
    }
}
