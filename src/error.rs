//! Errors, typed by what the caller can do about them.
//!
//! An [`ArgumentError`] changed nothing. A state error comes in a [`Stopped`], which says how far the operation got: the
//! prefix is done and stays done.

use core::fmt;

use crate::addr::{Ipa, IpaRange, Level};

/// The arguments do not fit; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ArgumentError {
    /// The range does not begin and end at page boundaries.
    Misaligned(IpaRange),
    /// The range passes the guest's IPA size.
    BeyondIpaSize(IpaRange),
    /// What this range would map passes the machine's physical address size.
    BeyondPaSize(IpaRange),
    /// The reader belongs to another machine's domain.
    ForeignReader,
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(range) => write!(f, "{range:?} is not whole pages"),
            Self::BeyondIpaSize(range) => write!(f, "{range:?} passes the IPA size"),
            Self::BeyondPaSize(range) => write!(f, "{range:?} would map beyond the physical address size"),
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
