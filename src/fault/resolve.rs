//! The fault path.

use core::fmt;

use super::decode::{Abort, FaultAddress, MmioAccess, NotAnAbort, decode};
use super::inject::{GuestFault, Reflection};
use super::syndrome::{FaultClass, Par, Syndrome};
use super::{Backing, Page, Region, Unavailable};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb, Stage1Access};
use crate::changes::Seen;
use crate::descriptor::{Attributes, Descriptor, Kind, Permissions, Xn};
use crate::dirty::Tracking;
use crate::error::{ChangeCause, Corrupt};
use crate::fault::decode::Access;
use crate::geometry::granule::Granule;
use crate::memory::{OutOfTables, Spares, TableMemory};
use crate::quiescence::Reader;
use crate::stage2::{Loaded, MapCause, NoLeafTable, Stage2};
use crate::sync::Ordering;
use crate::tlb::{Gather, relax_local};
use crate::walk::Position;

/// What the embedder does after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Outcome {
    /// Enter the guest: the access will pass.
    Resumed,
    /// Enter the guest: the access may fault again, since something there is being changed, or was not to be had now.
    Retry,
    /// Emulate this access, then enter the guest behind it.
    Mmio(MmioAccess),
    /// Inject this into the guest.
    Reflect(Reflection),
}

/// Why a fault was not handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FaultError {
    /// The exception is no stage-2 fault.
    NotAnAbort(NotAnAbort),
    /// The reader is not the one of the CPU that has the tree loaded.
    OtherCpu,
    /// There is no table page left, and none to be expected. The guest cannot go on.
    OutOfTables,
    /// The backing gave this as a frame; it is not aligned to a page, or lies beyond the physical address size. Nothing was
    /// mapped, and the page went back to the backing.
    BadFrame(Pa),
    /// The tree is corrupt.
    Corrupt(Corrupt),
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnAbort(_) => f.write_str("the exception is no stage-2 fault"),
            Self::OtherCpu => f.write_str("the reader is not of the CPU that has the tree loaded"),
            Self::OutOfTables => OutOfTables.fmt(f),
            Self::BadFrame(pa) => write!(f, "the backing gave {pa}, which is not the frame of a page"),
            Self::Corrupt(corrupt) => write!(f, "the tree is corrupt at {}", corrupt.ipa),
        }
    }
}

impl core::error::Error for FaultError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::NotAnAbort(error) => Some(error),
            Self::Corrupt(corrupt) => Some(corrupt),
            _ => None,
        }
    }
}

/// What an access needs of the entry that translates it.
#[derive(Clone, Copy)]
struct Need {
    ipa: Ipa,
    write: bool,
    execute: bool,
    /// It failed for a permission: a TLB may hold an entry that is stricter than the tables.
    permission: bool,
}

/// What the entry that translates an address means for an access.
enum Verdict {
    /// Nothing is mapped.
    Missing,
    /// It may pass as it is.
    Passes,
    /// It may pass once the entry is accessed, and dirty if it is a write.
    Needs,
    /// It is being changed.
    Busy,
    /// It may not pass.
    Denied,
}

impl Need {
    #[inline(always)]
    fn of(abort: &Abort, ipa: Ipa) -> Self {
        Self {
            ipa,
            write: abort.wants_write(),
            execute: abort.access == Access::Execute,
            permission: abort.class == FaultClass::Permission,
        }
    }

    /// Judges `entry` of a table of `level`. XN of one EL only cannot be judged here: it is denied if the CPU said so.
    #[inline(always)]
    fn judge(&self, entry: Descriptor, level: Level) -> Verdict {
        match entry.kind(level) {
            Kind::Invalid => return Verdict::Missing,
            Kind::Page(_) | Kind::Block(_) => {}
            // A table: linked since the walk.
            _ => return Verdict::Busy,
        }
        let executes = match entry.xn() {
            Xn::Execute => true,
            Xn::Never => false,
            Xn::El0Only | Xn::El1Only => !self.permission,
        };
        if (self.execute && !executes) || (self.write && !entry.is_writable()) {
            return Verdict::Denied;
        }
        if entry.is_accessed() && (!self.write || entry.grants_write()) { Verdict::Passes } else { Verdict::Needs }
    }

    /// Whether a region with these attributes allows it.
    fn allowed_by(&self, permissions: Permissions) -> bool {
        (!self.write || permissions.write) && (!self.execute || permissions.execute != Xn::Never)
    }
}

impl<A: Arch, M: TableMemory> Loaded<'_, '_, A, M> {
    /// Resolves the fault that the guest has taken on this CPU. The tree has to be loaded there: addresses are translated
    /// and TLB entries invalidated for what VTTBR_EL2 holds.
    ///
    /// Locks at most one table at a time, and calls `backing` with none locked; allocates tables with none locked. Invalidates
    /// nothing but, after a permission was relaxed or turns out to be fine, this CPU's own entries for the address.
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn resolve(
        &self,
        reader: &Reader<'_>,
        backing: &impl Backing,
        syndrome: Syndrome,
    ) -> Result<Outcome, FaultError> {
        if !self.is_of(reader) {
            return Err(FaultError::OtherCpu);
        }
        let stage2 = self.stage2();
        let decoded = decode(syndrome, &stage2.tree.mmu.features);
        let abort = match &decoded {
            Ok(abort) => abort,
            Err(error) => return Err(FaultError::NotAnAbort(*error)),
        };
        let outcome = if stage2.tree.frozen.load(Ordering::Acquire) {
            Ok(Outcome::Retry)
        } else {
            stage2.resolve_abort(reader, backing, abort)
        };
        let counters = reader.count();
        match &outcome {
            Ok(Outcome::Resumed) | Err(_) => {}
            Ok(Outcome::Retry) => counters.faults_retry(1),
            Ok(Outcome::Mmio(_)) => counters.faults_mmio(1),
            Ok(Outcome::Reflect(_)) => counters.faults_reflected(1),
        }
        outcome
    }
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    #[inline(always)]
    fn resolve_abort(&self, reader: &Reader<'_>, backing: &impl Backing, abort: &Abort) -> Result<Outcome, FaultError> {
        let counters = reader.count();
        match abort.class {
            FaultClass::Translation => counters.faults_translation(1),
            FaultClass::Permission => counters.faults_permission(1),
            FaultClass::AccessFlag => counters.faults_access_flag(1),
            FaultClass::TlbConflict => return Ok(self.clear_tlbs(reader)),
            other => return Ok(Outcome::Reflect(abort.reflect(guest_fault(other)))),
        }
        let ipa = match self.where_is(abort) {
            Where::At(ipa) => ipa,
            Where::Retry => return Ok(Outcome::Retry),
            Where::Unknown => return Ok(Outcome::Reflect(abort.reflect(GuestFault::ExternalAbort))),
        };
        let page = ipa.align_down(M::Granule::PAGE_SHIFT);
        if !IpaRange::new(page, M::Granule::PAGE_SIZE).is_some_and(|range| self.tree.geometry.contains(range)) {
            return Ok(Outcome::Reflect(abort.reflect(GuestFault::AddressSize)));
        }
        let seen = self.tree.changes.seen(page);
        let attributes = match backing.region(ipa) {
            Region::Memory(attributes) => attributes,
            Region::Emulated => {
                return Ok(match abort.mmio(ipa) {
                    Some(access) => Outcome::Mmio(access),
                    None => Outcome::Reflect(abort.reflect(GuestFault::ExternalAbort)),
                });
            }
            Region::Nothing => return Ok(Outcome::Reflect(abort.reflect(GuestFault::ExternalAbort))),
        };
        let need = Need::of(abort, page);
        if !need.allowed_by(attributes.permissions) {
            return Ok(Outcome::Reflect(abort.reflect(GuestFault::ExternalAbort)));
        }
        let found = self.read_only(reader).find(page).map_err(FaultError::Corrupt)?;
        if found.is_behind_marker() {
            return Ok(Outcome::Retry);
        }
        match need.judge(found.value, found.table.level) {
            Verdict::Missing => self.page_in(reader, backing, abort, need, attributes, seen, &found),
            Verdict::Passes => Ok(self.spurious(reader, need)),
            Verdict::Needs => self.upgrade(reader, abort, need, found.table.level),
            Verdict::Busy => Ok(Outcome::Retry),
            Verdict::Denied => Ok(Outcome::Reflect(abort.reflect(GuestFault::ExternalAbort))),
        }
    }

    /// Two entries for one address in some TLB: takes all of this guest's, and lets it try again.
    #[cold]
    fn clear_tlbs(&self, reader: &Reader<'_>) -> Outcome {
        let mut gather = Gather::new(&self.tree, reader);
        gather.everything();
        let _quiet = gather.flush();
        Outcome::Retry
    }

    /// The address, through the guest's stage 1 if HPFAR_EL2 does not hold it.
    #[inline(always)]
    fn where_is(&self, abort: &Abort) -> Where {
        match abort.address {
            FaultAddress::Ipa(ipa) => Where::At(ipa),
            FaultAddress::Unknown => Where::Unknown,
            FaultAddress::NeedsTranslation { va } => {
                // Fails if another vCPU has changed the guest's tables meanwhile: then the access is tried again.
                let arch = &self.tree.mmu.arch;
                let par = arch.in_guest_regime(|| arch.translate_stage1(va, Stage1Access::Read));
                Par::new(par).ipa(va).map_or(Where::Retry, Where::At)
            }
        }
    }

    /// Another CPU was first, or this CPU's TLB has an entry that is stricter than the tables.
    #[inline]
    fn spurious(&self, reader: &Reader<'_>, need: Need) -> Outcome {
        reader.count().faults_spurious(1);
        if need.permission {
            relax_local(&self.tree, reader, need.ipa);
        }
        Outcome::Resumed
    }

    /// Gives an entry the access flag or the write permission it may have: no break is needed for either. A block that is
    /// logged is split first, so that the store makes no more dirty than its page.
    #[inline(always)]
    fn upgrade(&self, reader: &Reader<'_>, abort: &Abort, need: Need, level: Level) -> Result<Outcome, FaultError> {
        if need.write && level < Level::LEAF && self.logs_pages(need.ipa) {
            match self.split_block(reader, need.ipa, level) {
                // The store meets the page next.
                Ok(()) => return Ok(Outcome::Resumed),
                Err(ChangeCause::Retry) => return Ok(Outcome::Retry),
                Err(ChangeCause::Corrupt(corrupt)) => return Err(FaultError::Corrupt(corrupt)),
                // All of it is dirty then, which is true enough.
                Err(ChangeCause::OutOfTables) => {}
            }
        }
        let mut locked = match self.read_write(reader).lock(need.ipa, level) {
            Ok(locked) => locked,
            Err(corrupt) => return Err(FaultError::Corrupt(corrupt)),
        };
        let (index, level) = (locked.index, locked.level());
        match need.judge(locked.read(index), level) {
            Verdict::Needs => {
                if need.write && self.log.tracking() == Some(Tracking::Adaptive) {
                    locked.arm();
                }
                locked.replace_leaf(index, |leaf| {
                    let accessed = leaf.with_accessed();
                    if need.write { accessed.with_dirty() } else { accessed }
                });
                drop(locked);
                if need.permission {
                    // The stricter entry may be in this CPU's TLB; others find out by a spurious fault.
                    relax_local(&self.tree, reader, need.ipa);
                } else {
                    // Without the access flag it is in no TLB.
                    self.tree.mmu.arch.dsb(Dsb::Ishst);
                }
                Ok(Outcome::Resumed)
            }
            Verdict::Passes => {
                drop(locked);
                Ok(self.spurious(reader, need))
            }
            Verdict::Missing | Verdict::Busy => Ok(Outcome::Retry),
            Verdict::Denied => Ok(Outcome::Reflect(abort.reflect(GuestFault::ExternalAbort))),
        }
    }

    /// Whether the page of `ipa` is told apart from its neighbours by a log that is on.
    fn logs_pages(&self, ipa: Ipa) -> bool {
        self.largest_leaf < Level::LEAF && IpaRange::inclusive(ipa, ipa).is_some_and(|page| self.is_logged(page))
    }

    /// Maps a page where there is none, or a block, if the backing has one.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what a fault has learnt so far")]
    fn page_in<'r>(
        &'r self,
        reader: &'r Reader<'r>,
        backing: &impl Backing,
        abort: &Abort,
        need: Need,
        attributes: Attributes,
        seen: Seen,
        found: &Position<'r>,
    ) -> Result<Outcome, FaultError> {
        if self.largest_leaf < Level::LEAF
            && let Some(outcome) = self.block_in(reader, backing, need, attributes, seen, *found)?
        {
            return Ok(outcome);
        }
        let page = match backing.page(need.ipa, need.write) {
            Ok(page) => page,
            Err(Unavailable::Later) => return Ok(Outcome::Retry),
            Err(Unavailable::Never) => return Ok(Outcome::Reflect(abort.reflect(GuestFault::ExternalAbort))),
        };
        match self.install(reader, need, Level::LEAF, attributes, page, seen, *found) {
            Ok(Installed::Ours) => Ok(Outcome::Resumed),
            outcome => {
                backing.unused(need.ipa, page);
                Ok(self.outcome_of(reader, need, outcome?))
            }
        }
    }

    /// Maps a block of the level above the pages'; `None` where there is none to be had, or a table in its place. What has changed
    /// meanwhile ([`Changes`](crate::changes::Changes)) is counted by just that much.
    #[inline(never)]
    fn block_in<'r>(
        &'r self,
        reader: &'r Reader<'r>,
        backing: &impl Backing,
        need: Need,
        attributes: Attributes,
        seen: Seen,
        found: Position<'r>,
    ) -> Result<Option<Outcome>, FaultError> {
        let Some(level) = Level::LEAF.parent().filter(|&level| self.largest_leaf <= level) else { return Ok(None) };
        let first = need.ipa.align_down(M::Granule::shift(level));
        let block = IpaRange::inclusive(first, M::Granule::entry_last(need.ipa, level));
        let block = block.filter(|&block| self.tree.geometry.contains(block) && !self.logs_pages(need.ipa));
        let Some(block) = block.filter(|_| level >= self.tree.geometry.start_level()) else { return Ok(None) };
        if self.keep_reserve(level).is_err() {
            return Ok(None);
        }
        let Some(page) = backing.block(block, need.write) else { return Ok(None) };
        let outcome = self.install(reader, need, level, attributes, page, seen, found);
        if !matches!(outcome, Ok(Installed::Ours)) {
            backing.unused_block(block, page);
        }
        match outcome? {
            Installed::InPieces => Ok(None),
            installed => Ok(Some(self.outcome_of(reader, need, installed))),
        }
    }

    fn outcome_of(&self, reader: &Reader<'_>, need: Need, installed: Installed) -> Outcome {
        match installed {
            Installed::Ours => Outcome::Resumed,
            Installed::Theirs => self.spurious(reader, need),
            Installed::Busy | Installed::InPieces => Outcome::Retry,
        }
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what a fault has learnt so far")]
    fn install<'r>(
        &'r self,
        reader: &'r Reader<'r>,
        need: Need,
        level: Level,
        attributes: Attributes,
        page: Page,
        seen: Seen,
        found: Position<'r>,
    ) -> Result<Installed, FaultError> {
        // Its bits go into a descriptor as they are.
        if !page.frame.is_aligned(M::Granule::shift(level)) || page.frame.raw() >= self.tree.geometry.pa_size() {
            return Err(FaultError::BadFrame(page.frame));
        }
        self.prepare_frames(page.frame, M::Granule::entry_size(level), attributes);
        // A clean page is of use to a harvester only.
        let dirty = need.write || page.content.is_dirty() || !self.log.is_active();
        let leaf = self.format().leaf(level, page.frame, attributes, dirty);
        let found = if found.table.level == level {
            found
        } else {
            match self.find_or_link(reader, need.ipa, level) {
                Ok(found) => found,
                Err(reason) => return self.not_installed(reason),
            }
        };
        // Said once more, so that what depends on it is a constant.
        let mut found = found;
        found.table.level = level;
        let index = found.index;
        let installed = match self.read_write(reader).at(need.ipa, &found) {
            Some(mut locked) => {
                match need.judge(locked.read(index), level) {
                    Verdict::Missing if self.tree.changes.is_still(seen) => {
                        locked.replace(index, leaf);
                        if level < Level::LEAF {
                            reader.count().blocks_mapped(1);
                        }
                        Installed::Ours
                    }
                    // What the backing said may hold no more.
                    Verdict::Missing => {
                        self.hint_if_empty(&mut locked);
                        Installed::Busy
                    }
                    Verdict::Passes => Installed::Theirs,
                    Verdict::Busy if locked.read(index).next_table(level).is_some() => Installed::InPieces,
                    Verdict::Needs | Verdict::Busy | Verdict::Denied => Installed::Busy,
                }
            }
            // Taken out since.
            None => Installed::Busy,
        };
        self.tree.mmu.arch.dsb(Dsb::Ishst);
        Ok(installed)
    }

    /// The entry for `ipa` in its table of `level`, which is linked if there is none.
    #[cold]
    #[inline(never)]
    fn find_or_link<'r>(&'r self, reader: &'r Reader<'r>, ipa: Ipa, level: Level) -> Result<Position<'r>, NoLeafTable> {
        let mut spares = Spares::new(&self.tree.mmu.memory);
        self.link_tables(reader, ipa, level, &mut spares)?;
        let found = self.read_only(reader).find_to(ipa, level).map_err(NoLeafTable::Corrupt)?;
        if found.table.level == level { Ok(found) } else { Err(NoLeafTable::Contended) }
    }

    #[cold]
    fn not_installed(&self, reason: NoLeafTable) -> Result<Installed, FaultError> {
        // A table may have been linked all the same.
        self.tree.mmu.arch.dsb(Dsb::Ishst);
        match self.map_cause(reason) {
            MapCause::Exists | MapCause::Retry => Ok(Installed::Busy),
            MapCause::OutOfTables => Err(FaultError::OutOfTables),
            MapCause::Corrupt(corrupt) => Err(FaultError::Corrupt(corrupt)),
        }
    }
}

enum Installed {
    Ours,
    Theirs,
    Busy,
    /// There is a table where a block was to be.
    InPieces,
}

enum Where {
    At(Ipa),
    /// Not to be translated just now.
    Retry,
    Unknown,
}

/// What the guest sees of a fault that is not stage 2's to resolve.
fn guest_fault(class: FaultClass) -> GuestFault {
    match class {
        FaultClass::AddressSize => GuestFault::AddressSize,
        FaultClass::Alignment => GuestFault::Alignment,
        FaultClass::UnsupportedAtomicUpdate => GuestFault::UnsupportedAtomicUpdate,
        FaultClass::UnsupportedExclusive => GuestFault::UnsupportedExclusive,
        _ => GuestFault::ExternalAbort,
    }
}
