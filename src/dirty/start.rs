//! Start, and the marking of stores that do not go through the tree.

use core::fmt;

use super::{DirtyLog, LogProgress, Tracking};
use crate::addr::IpaRange;
use crate::arch::Arch;
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::Stage2;
use crate::sync::{Ordering, fence};
use crate::tlb::Gather;
use crate::walk::{Locked, Reserved, Table, Visit, publish_clean};

/// How a log begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Initial {
    /// Everything is dirty: the first harvest takes all pages. Costs nothing now.
    Dirty,
    /// Everything is clean: the caller copies all of memory after the start. Everything is write-protected and
    /// invalidated once.
    Clean,
}

/// Why logging was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum StartError {
    /// The reader is of another machine.
    Argument(ArgumentError),
    /// The guest was made without a bitmap.
    NoBitmap,
    /// The hardware does not manage dirty state for this tree: VTCR_EL2.HD is clear.
    NoHardwareState,
    /// It is being logged.
    Started,
    /// The tree is corrupt; logging is off.
    Corrupt(Corrupt),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::NoBitmap => f.write_str("the guest was made without a bitmap to log in"),
            Self::NoHardwareState => f.write_str("the hardware does not manage dirty state for this guest"),
            Self::Started => f.write_str("the guest is being logged already"),
            Self::Corrupt(corrupt) => write!(f, "the tree is corrupt at {}", corrupt.ipa),
        }
    }
}

impl core::error::Error for StartError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Corrupt(corrupt) => Some(corrupt),
            _ => None,
        }
    }
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Starts logging what the bitmap given at creation covers, tracked as is best here ([`Self::default_tracking`]), and makes the
    /// caller its harvester.
    ///
    /// Locks one table at a time; invalidates all of the VMID if `initial` is [`Initial::Clean`].
    ///
    /// # Errors
    /// See [`StartError`]; logging is then as it was.
    pub fn start_logging(&self, reader: &Reader<'_>, initial: Initial) -> Result<DirtyLog<'_, 'h, A, M>, StartError> {
        self.start_logging_with(reader, initial, self.default_tracking())
    }

    /// The same, tracked as the caller says.
    ///
    /// # Errors
    /// See [`StartError`]; logging is then as it was.
    pub fn start_logging_with(
        &self,
        reader: &Reader<'_>,
        initial: Initial,
        tracking: Tracking,
    ) -> Result<DirtyLog<'_, 'h, A, M>, StartError> {
        self.tree.check_reader(reader).map_err(StartError::Argument)?;
        let logged = self.logged_range().ok_or(StartError::NoBitmap)?;
        if tracking != Tracking::WriteProtect && !self.has_hardware_dirty_state() {
            return Err(StartError::NoHardwareState);
        }
        if !self.log.activate(tracking) {
            return Err(StartError::Started);
        }
        self.log.fill(initial == Initial::Dirty);
        if initial == Initial::Clean
            && let Err(corrupt) = self.clean_all(reader, logged, tracking)
        {
            self.log.deactivate();
            return Err(StartError::Corrupt(corrupt));
        }
        Ok(DirtyLog { stage2: self, tracking, idle: None, progress: LogProgress::default() })
    }

    /// The part of the IPA space that is logged.
    pub(crate) fn logged_range(&self) -> Option<IpaRange> {
        let logged = self.log.bitmap()?.range(M::Granule::PAGE_SHIFT)?;
        IpaRange::new(crate::addr::Ipa::new(0), self.tree.geometry.ipa_size())?.intersection(logged)
    }

    /// Whether a log that is on tells apart pages of `range`.
    pub(crate) fn is_logged(&self, range: IpaRange) -> bool {
        self.log.is_active() && self.logged_range().is_some_and(|logged| logged.intersection(range).is_some())
    }

    fn clean_all(&self, reader: &Reader<'_>, logged: IpaRange, tracking: Tracking) -> Result<(), Corrupt> {
        let mut gather = Gather::new(&self.tree, reader);
        let clean = |locked: &mut Locked<'_, 'h, A, M>, visit: &Visit<'_>| {
            let (groups, level) = (visit.groups::<M::Granule>(), locked.level());
            let cleaned = locked.clean_leaves(visit, groups, tracking.at_start(), |_| u64::MAX);
            locked.expect_flush();
            cleaned.map(drop).map_err(|Reserved(index)| {
                let ipa = visit.ipa_of::<M::Granule>(index);
                (ipa, Corrupt { ipa, level })
            })
        };
        let cleaned = self.for_each_locked_if(reader, logged, |_| true, |_| true, clean);
        // Also if the tree turned out corrupt: what was cleaned is flushed.
        gather.everything();
        let flushed = gather.flush();
        cleaned.map_err(|(_, corrupt): (_, Corrupt)| corrupt)?;
        let may_be_dirty = |table: &Table<'_>| !table.may_be_dirty().is_empty();
        let publish = |visit: &Visit<'_>| {
            publish_clean(&self.tree, reader, visit.table.pa, &flushed);
            true
        };
        self.read_only(reader).visit(logged, may_be_dirty, publish).map(drop)
    }

    /// Notes that the hypervisor or a device has stored to `range` of the guest's memory: to be called after the store. Takes
    /// no lock. Nothing, while logging is off.
    ///
    /// # Errors
    /// [`ArgumentError::NotLogged`] if any of it is outside of what the bitmap covers; nothing was noted.
    pub fn mark_dirty(&self, range: IpaRange) -> Result<(), ArgumentError> {
        self.check_logged(range)?;
        // The store comes before the look whether logging is on. Partner: the fence in `activate`.
        fence(Ordering::SeqCst);
        self.log.publish_range(range, M::Granule::PAGE_SHIFT);
        Ok(())
    }

    /// Whether the bitmap covers all of `range`.
    pub(super) fn check_logged(&self, range: IpaRange) -> Result<(), ArgumentError> {
        match self.logged_range() {
            Some(logged) if logged.contains(range.start()) && logged.contains(range.last()) => Ok(()),
            _ => Err(ArgumentError::NotLogged(range)),
        }
    }
}
