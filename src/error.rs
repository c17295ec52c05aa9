//! Errors, typed by what the caller can do about them.
//!
//! An [`ArgumentError`] changed nothing. A state error comes in a [`Stopped`], which says how far the operation got: the
//! prefix is done and stays done.

use core::fmt;

use crate::addr::{Ipa, IpaRange, Level, Pa};

/// The arguments do not fit; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ArgumentError {
    /// The range does not begin and end at page boundaries.
    Misaligned(IpaRange),
    /// The frame does not begin at a page boundary.
    MisalignedFrame(Pa),
    /// The range passes the guest's IPA size.
    BeyondIpaSize(IpaRange),
    /// What this range would map passes the machine's physical address size.
    BeyondPaSize(IpaRange),
    /// The range is not all covered by the dirty log's bitmap.
    NotLogged(IpaRange),
    /// The reader belongs to another machine's domain.
    ForeignReader,
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(range) => write!(f, "{range} is not whole pages"),
            Self::MisalignedFrame(pa) => write!(f, "frame {pa} does not begin at a page boundary"),
            Self::BeyondIpaSize(range) => write!(f, "{range} passes the IPA size"),
            Self::BeyondPaSize(range) => write!(f, "{range} would map beyond the physical address size"),
            Self::NotLogged(range) => write!(f, "{range} is not all covered by the dirty log"),
            Self::ForeignReader => f.write_str("the reader is of another machine"),
        }
    }
}

impl core::error::Error for ArgumentError {}

/// A descriptor that no code of ours writes: a table outside table memory, a table that belongs elsewhere, a reserved
/// encoding. It was not followed. Somebody else wrote to the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Corrupt {
    /// The address whose walk met it.
    pub ipa: Ipa,
    /// The level of the table that holds it.
    pub level: Level,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "corrupt descriptor at level {} for {}", self.level as u8, self.ipa)
    }
}

impl core::error::Error for Corrupt {}

/// An operation on a range ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stopped<Cause> {
    /// The prefix that was completed.
    pub done: Option<IpaRange>,
    /// The address it ended at.
    pub at: Ipa,
    /// Why.
    pub cause: Cause,
}

impl<Cause> Stopped<Cause> {
    /// Stopped at `at`, within `range`.
    pub(crate) fn at(range: IpaRange, at: Ipa, cause: Cause) -> Self {
        let done = at.raw().checked_sub(1).and_then(|last| IpaRange::inclusive(range.start(), Ipa::new(last)));
        Self { done, at, cause }
    }
}

impl<Cause: fmt::Display> fmt::Display for Stopped<Cause> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped at {}: {}; ", self.at, self.cause)?;
        match self.done {
            Some(done) => write!(f, "{done} is done"),
            None => f.write_str("nothing is done"),
        }
    }
}

impl<Cause: core::error::Error> core::error::Error for Stopped<Cause> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        self.cause.source()
    }
}

/// Why an operation on a range did not do all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RangeError<Cause> {
    /// Nothing was changed.
    Argument(ArgumentError),
    /// A prefix was done and stays done.
    Stopped(Stopped<Cause>),
}

impl<Cause: fmt::Display> fmt::Display for RangeError<Cause> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::Stopped(stopped) => stopped.fmt(f),
        }
    }
}

impl<Cause: core::error::Error> core::error::Error for RangeError<Cause> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Argument(error) => error.source(),
            Self::Stopped(stopped) => stopped.source(),
        }
    }
}

/// Why a change of what is mapped stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ChangeCause {
    /// The range covers a part of a block, and there is no table to split it into.
    OutOfTables,
    /// Something there is being changed by another CPU. Try again from there.
    Retry,
    /// The tree is corrupt.
    Corrupt(Corrupt),
}

impl From<Corrupt> for ChangeCause {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

impl fmt::Display for ChangeCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfTables => f.write_str("there is no table to split a block into"),
            Self::Retry => f.write_str("another CPU is changing it, try again"),
            Self::Corrupt(_) => f.write_str("the tree is corrupt"),
        }
    }
}

impl core::error::Error for ChangeCause {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Corrupt(corrupt) => Some(corrupt),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn what_stopped_names_the_place_the_cause_and_the_prefix() {
        let range = IpaRange::new(Ipa::new(0x1000), 0x3000).unwrap();
        let corrupt = Corrupt { ipa: Ipa::new(0x2000), level: Level::L3 };
        assert_eq!(
            Stopped::at(range, Ipa::new(0x2000), corrupt).to_string(),
            "stopped at 0x2000: corrupt descriptor at level 3 for 0x2000; 0x1000..=0x1fff is done"
        );
        assert!(Stopped::at(range, range.start(), corrupt).to_string().ends_with("; nothing is done"));
    }
}
