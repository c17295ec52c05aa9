//! Start, and the marking of stores that do not go through the tree.

use core::fmt;

use super::DirtyLog;
use crate::addr::IpaRange;
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Kind};
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::stage2::{Stage2, entries};
use crate::sync::{Ordering, fence};
use crate::tlb::Gather;
use crate::walk::Locked;

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
    /// Starts logging what the bitmap given at creation covers, and makes the caller its harvester.
    ///
    /// Locks one table at a time; invalidates all of the VMID if `initial` is [`Initial::Clean`].
    ///
    /// # Errors
    /// See [`StartError`]; logging is then as it was.
    pub fn start_logging(&self, reader: &Reader<'_>, initial: Initial) -> Result<DirtyLog<'_, 'h, A, M>, StartError> {
        self.tree.check_reader(reader).map_err(StartError::Argument)?;
        let logged = self.logged_range().ok_or(StartError::NoBitmap)?;
        if !self.log.activate() {
            return Err(StartError::Started);
        }
        self.log.fill(initial == Initial::Dirty);
        if initial == Initial::Clean
            && let Err(corrupt) = self.clean_all(reader, logged)
        {
            self.log.set_active(false);
            return Err(StartError::Corrupt(corrupt));
        }
        Ok(DirtyLog { stage2: self })
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

    fn clean_all(&self, reader: &Reader<'_>, logged: IpaRange) -> Result<(), Corrupt> {
        let mut gather = Gather::new(&self.tree, reader);
        let cleaned = self.for_each_locked(reader, logged, |locked, part, first, count| {
            let level = locked.level();
            for (index, ipa) in entries::<M::Granule>(part.start(), level, first, count) {
                match locked.kind(index) {
                    Kind::Page(_) | Kind::Block(_) => _ = locked.replace_leaf(index, Descriptor::with_clean),
                    Kind::Reserved => return Err((ipa, Corrupt { ipa, level })),
                    _ => {}
                }
            }
            Ok(())
        });
        // Also if the tree turned out corrupt: what was cleaned is flushed.
        gather.everything();
        let _quiet = gather.flush();
        cleaned.map_err(|(_, corrupt): (_, Corrupt)| corrupt)?;
        self.for_each_locked(reader, logged, |locked, _, _, _| {
            clear_flag_if_clean(locked);
            Ok(())
        })
        .map_err(|(_, corrupt): (_, Corrupt)| corrupt)
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
        let shift = M::Granule::PAGE_SHIFT;
        let mut at = range.start().align_down(shift);
        while self.log.is_active() && at <= range.last() {
            self.log.publish(at, shift, shift);
            match at.checked_add(M::Granule::PAGE_SIZE) {
                Some(next) => at = next,
                None => break,
            }
        }
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

/// After a flush: clears the table's flag if nothing in it is dirty or can become so without its lock.
pub(super) fn clear_flag_if_clean<A: Arch, M: TableMemory>(locked: &mut Locked<'_, '_, A, M>) {
    let may_be_dirty = |entry: Descriptor| entry.is_dirty() || entry.has_dbm();
    if !(0..M::Granule::ENTRIES).any(|index| may_be_dirty(locked.read(index))) {
        locked.table().meta().clear_may_be_dirty();
    }
}
