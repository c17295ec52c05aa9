//! Query: what an address translates to, by the read-only walk.

use core::fmt;

use super::Stage2;
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::Arch;
use crate::descriptor::{Kind, MemoryType, Permissions};
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;

/// What an address translates to, at some instant of the caller's read section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Mapping {
    /// The address.
    pub pa: Pa,
    /// The level of the entry.
    pub level: Level,
    /// What the guest may do, at once or after a fault.
    pub permissions: Permissions,
    /// The memory type; `None` for an encoding this library does not make.
    pub memory: Option<MemoryType>,
    /// Whether it was written since it was last cleaned.
    pub dirty: bool,
    /// Whether it was accessed since it was last made old.
    pub accessed: bool,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum QueryError {
    /// The question makes no sense.
    Argument(ArgumentError),
    /// The tree is corrupt there.
    Corrupt(Corrupt),
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::Corrupt(corrupt) => write!(f, "the tree is corrupt at {}", corrupt.ipa),
        }
    }
}

impl core::error::Error for QueryError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Corrupt(corrupt) => Some(corrupt),
            _ => None,
        }
    }
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// What `ipa` translates to; `None` if to nothing, or to something that is just being removed. Locks nothing.
    ///
    /// # Errors
    /// [`QueryError::Argument`] for an address beyond the IPA size or a foreign reader; [`QueryError::Corrupt`].
    pub fn query(&self, reader: &Reader<'_>, ipa: Ipa) -> Result<Option<Mapping>, QueryError> {
        self.check_page(reader, ipa)?;
        let found = match self.read_only(reader).find(ipa) {
            Ok(found) => found,
            Err(corrupt) => return Err(QueryError::Corrupt(corrupt)),
        };
        let level = found.table.level;
        let base = match found.value.kind(level) {
            Kind::Page(base) | Kind::Block(base) => base,
            _ => return Ok(None),
        };
        let format = self.tree.format;
        Ok(Some(Mapping {
            pa: base.offset(ipa.raw() & (M::Granule::entry_size(level) - 1)),
            level,
            permissions: format.permissions(found.value),
            memory: format.memory_type(found.value),
            dirty: found.value.is_dirty(),
            accessed: found.value.is_accessed(),
        }))
    }

    /// The reader is of this machine, and the page of `ipa` below the IPA size.
    #[inline(always)]
    pub(crate) fn check_page(&self, reader: &Reader<'_>, ipa: Ipa) -> Result<(), QueryError> {
        match IpaRange::new(ipa.align_down(M::Granule::PAGE_SHIFT), M::Granule::PAGE_SIZE) {
            Some(page) => self.check(reader, page).map_err(QueryError::Argument),
            None => Ok(()),
        }
    }
}
