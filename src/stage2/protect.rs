//! Protect and write-protect: permissions of live mappings.
//!
//! Changing S2AP or XN of a valid leaf needs no break: see [`needs_break`](crate::descriptor::needs_break). To
//! *restrict* takes an invalidation before the new permission can be relied on; to *relax* takes none: a CPU with the stricter entry
//! in its TLB faults, finds the tables fine, and invalidates locally.
//!
//! A page that loses its write permission stays dirty, in its entry, until a harvest cleans it: whose flush is then the
//! one that no store passes through a stale TLB entry, whether or not this one's is over.

use core::cell::Cell;

use super::Stage2;
use super::unmap::{covers, ipa_of};
use crate::addr::IpaRange;
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Descriptor, Kind, Marker, MemoryType, Permissions, Xn};
use crate::error::{ChangeCause, Corrupt, RangeError, Stopped};
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::tlb::Gather;

/// Why a range was not protected, or not all of it: the prefix is changed.
pub type ProtectError = RangeError<ChangeCause>;

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Gives what is mapped in `range` the `permissions`; holes are skipped.
    ///
    /// Locks one table at a time; allocates nothing; invalidates the range once if any permission was taken.
    ///
    /// # Errors
    /// [`ProtectError::Argument`]: nothing was changed. [`ProtectError::Stopped`] with the prefix that is done.
    pub fn protect(&self, reader: &Reader<'_>, range: IpaRange, permissions: Permissions) -> Result<(), ProtectError> {
        let format = self.format();
        self.check(reader, range).map_err(ProtectError::Argument)?;
        if permissions.execute != Xn::Never {
            self.synchronize_mapped(reader, range)
                .map_err(|corrupt| ProtectError::Stopped(Stopped::at(range, range.start(), corrupt.into())))?;
        }
        self.restrict_or_relax(reader, range, |leaf| format.with_permissions(leaf, permissions))
    }

    /// Before pages become executable: fetches see what they hold (rule 13).
    ///
    /// Faults that asked the backing before this are sent back, or have locked their table by now: taking each lock once waits for
    /// those, so that no page comes in unseen that was not meant to be executable.
    fn synchronize_mapped(&self, reader: &Reader<'_>, range: IpaRange) -> Result<(), Corrupt> {
        let (format, features) = (self.tree.format, &self.tree.mmu.features);
        if features.data_coherent() && features.instruction_coherent() {
            return Ok(());
        }
        self.tree.changes.count(range);
        self.for_each_locked(reader, range, |_, _, _, _| Ok(())).map_err(|(_, corrupt): (_, Corrupt)| corrupt)?;
        let mut issued = false;
        self.for_each_frame(reader, range, |leaf, pa, bytes| {
            if leaf.xn() == Xn::Never && format.memory_type(leaf).is_some_and(MemoryType::is_normal) {
                issued |= self.synchronize_instructions(pa, bytes);
            }
        })?;
        if issued {
            self.tree.mmu.arch.dsb(Dsb::Ish);
        }
        Ok(())
    }

    /// Takes the write permission of the pages of `range` for now: the next store to each faults (or, with hardware dirty
    /// state, is noted). Pages that were dirty stay so for the dirty log.
    ///
    /// Locks one table at a time; allocates nothing; invalidates the range once.
    ///
    /// # Errors
    /// As [`Self::protect`].
    pub fn write_protect(&self, reader: &Reader<'_>, range: IpaRange) -> Result<(), ProtectError> {
        self.restrict_or_relax(reader, range, Descriptor::with_write_protection)
    }

    fn restrict_or_relax(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        change: impl Fn(Descriptor) -> Descriptor,
    ) -> Result<(), ProtectError> {
        self.check(reader, range).map_err(ProtectError::Argument)?;
        self.split_ends(reader, range)?;
        self.tree.changes.count(range);
        let format = self.tree.format;
        let mut gather = Gather::new(&self.tree, reader);
        let changed = self.for_each_locked(reader, range, |locked, part, first, count| {
            let level = locked.level();
            let restricted = Cell::new(false);
            let is_restricted = |old: Descriptor, new: Descriptor| {
                (old.grants_write() && !new.grants_write())
                    || !format.permissions(old).within(format.permissions(new))
                    // A fetch that faults there cannot be told from one that may not pass: no stale entries.
                    || (old.xn() != new.xn() && matches!(new.xn(), Xn::El0Only | Xn::El1Only))
            };
            let note = |old, new| restricted.set(restricted.get() || is_restricted(old, new));
            let stopped = locked.change_runs(
                part,
                first,
                count,
                &change,
                |alike| note(alike.old, alike.new),
                |locked, index| {
                    let ipa = ipa_of::<M::Granule>(part.start(), level, first, index);
                    let leaf = locked.read(index);
                    let cause = match locked.kind(index) {
                        Kind::Invalid | Kind::Table(_) => return Ok(()),
                        Kind::Marker(Marker::Removing | Marker::Claimed | Marker::Detached) => return Ok(()),
                        Kind::Page(_) | Kind::Block(_) if covers::<M::Granule>(part, ipa, level) => {
                            let old = locked.replace_leaf(index, &change);
                            note(old, change(old));
                            return Ok(());
                        }
                        Kind::Marker(Marker::Frozen) if leaf.from_marker().is_none() => return Ok(()),
                        // A block that came since its ends were split.
                        Kind::Page(_) | Kind::Block(_) | Kind::Marker(_) => ChangeCause::Retry,
                        Kind::Reserved => ChangeCause::Corrupt(Corrupt { ipa, level }),
                    };
                    Err((ipa, cause))
                },
            );
            if restricted.get() {
                gather.leaves(part, level);
            }
            stopped
        });
        let relaxed_only = gather.is_empty();
        let _quiet = gather.flush_with_others();
        if relaxed_only {
            self.tree.mmu.arch.dsb(Dsb::Ishst);
        }
        changed.map_err(|(at, cause)| ProtectError::Stopped(Stopped::at(range, at, cause)))
    }
}
