//! Map: entries from nothing to valid, which needs no invalidation.
//!
//! For each table of the range: frames are made fit for the guest's view of memory (rule 13) and spare tables are
//! at hand, no lock held; the table is locked; entries are stored; unlocked. One `DSB ISHST` at the end makes all of
//! it seen.
//!
//! The leaves are the largest that the addresses and the tree allow ([`Stage2::with_largest_leaf`]); where there is a table
//! already, even an empty one, they are its entries.

use core::fmt;

use super::Stage2;
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Attributes, Kind, MemoryType, Xn};
use crate::dirty::Content;
use crate::error::{ArgumentError, Corrupt, RangeError, Stopped};
use crate::geometry::granule::Granule;
use crate::memory::{OutOfTables, Spares, TableMemory};
use crate::quiescence::Reader;
use crate::walk::Locked;

/// Why a map stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MapCause {
    /// Something is mapped there.
    Exists,
    /// Something there is being removed, or the guest is frozen; or there are no tables now, but some wait for a grace
    /// period. Try again from there.
    Retry,
    /// There are no tables.
    OutOfTables,
    /// The tree is corrupt.
    Corrupt(Corrupt),
}

impl fmt::Display for MapCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => f.write_str("something is mapped there"),
            Self::Retry => f.write_str("it is not to be had now, try again"),
            Self::OutOfTables => OutOfTables.fmt(f),
            Self::Corrupt(_) => f.write_str("the tree is corrupt"),
        }
    }
}

impl core::error::Error for MapCause {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Corrupt(corrupt) => Some(corrupt),
            _ => None,
        }
    }
}

/// Why a range was not mapped, or not all of it: the prefix is mapped.
pub type MapError = RangeError<MapCause>;

/// What [`Stage2::lock_table`] found instead.
pub(crate) enum NoLeafTable {
    /// An entry that is not to be replaced by a table stands in the way, at this level.
    Entry(Kind),
    /// No table page is left.
    OutOfTables {
        /// Some were on their way back.
        expecting: bool,
    },
    /// Others link and unlink tables here faster than this CPU gets to the bottom.
    Contended,
    Corrupt(Corrupt),
}

/// Rounds of linking and looking again before a fault or a map lets its caller try again.
const MAX_ROUNDS: usize = 16;

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Maps `range` to the frames from `pa` on, with the largest leaves the tree may have there. The pages are dirty from the start unless their `content` is
    /// what the IPA read before.
    ///
    /// Locks one table at a time, allocates with none locked; invalidates nothing.
    ///
    /// # Errors
    /// [`MapError::Argument`] for a range that is not whole pages, or passes the IPA size or maps beyond the physical address
    /// size: nothing was changed. [`MapError::Stopped`] with the prefix that is mapped and stays so.
    pub fn map(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        pa: Pa,
        attributes: Attributes,
        content: Content,
    ) -> Result<(), MapError> {
        self.check(reader, range).map_err(MapError::Argument)?;
        self.check_output(range, pa).map_err(MapError::Argument)?;
        let result = self.map_leaves(reader, range, pa, attributes, content);
        self.tree.mmu.arch.dsb(Dsb::Ishst);
        result.map_err(MapError::Stopped)
    }

    fn check_output(&self, range: IpaRange, pa: Pa) -> Result<(), ArgumentError> {
        if !pa.is_aligned(M::Granule::PAGE_SHIFT) {
            return Err(ArgumentError::MisalignedFrame(pa));
        }
        match pa.checked_add(range.bytes() - 1) {
            Some(last) if last.raw() < self.tree.geometry.pa_size() => Ok(()),
            _ => Err(ArgumentError::BeyondPaSize(range)),
        }
    }

    fn map_leaves(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        pa: Pa,
        attributes: Attributes,
        content: Content,
    ) -> Result<(), Stopped<MapCause>> {
        // A clean page is of use to a harvester only.
        let dirty = content.is_dirty() || !self.log.is_active();
        let frame_of = |ipa: Ipa| pa.offset(ipa.raw() - range.start().raw());
        let mut spares = Spares::new(&self.tree.mmu.memory);
        let mut rest = Some(range);
        // Where there is a table in the way of a block, what is mapped is its entries.
        let mut below: Option<(IpaRange, Level)> = None;
        while let Some(left) = rest {
            let start = left.start();
            let (left, largest) = match below {
                Some((part, level)) if part.contains(start) => (part.intersection(left).unwrap_or(left), level),
                _ => (left, self.largest_leaf),
            };
            let level = self.leaf_level(left, frame_of(start), largest);
            let run = leaves_of_one_table::<M::Granule>(left, level);
            self.prepare_frames(frame_of(start), run.bytes(), attributes);
            self.keep_reserve(level).map_err(|reason| Stopped::at(range, start, self.map_cause(reason)))?;
            let mut locked = self
                .lock_table(reader, start, level, &mut spares)
                .map_err(|reason| Stopped::at(range, start, self.map_cause(reason)))?;
            let count = run_length::<M::Granule>(run, level);
            let leaf = self.format().leaf(level, frame_of(start), attributes, dirty);
            let index = locked.index;
            let filled = locked.fill(index, count, leaf);
            reader.count().blocks_mapped(if level < Level::LEAF { filled as u64 } else { 0 });
            if filled < count {
                let (index, at) = (index + filled, start.offset((filled as u64) << M::Granule::shift(level)));
                let cause = match locked.kind(index) {
                    Kind::Table(_) => {
                        let entry = IpaRange::inclusive(at, M::Granule::entry_last(at, level)).unwrap_or(run);
                        below = level.child().map(|child| (entry, child));
                        rest = range.starting_at(at);
                        continue;
                    }
                    Kind::Page(_) | Kind::Block(_) => MapCause::Exists,
                    Kind::Marker(_) => MapCause::Retry,
                    _ => MapCause::Corrupt(Corrupt { ipa: at, level }),
                };
                return Err(Stopped::at(range, at, cause));
            }
            let next = run.last().checked_add(1);
            rest = next.and_then(|next| range.starting_at(next));
        }
        Ok(())
    }

    /// The level of the leaf that `left` begins with: the highest, up to `largest`, whose block is aligned at both sides and not
    /// longer. Pages where a log is on: what it tells apart is pages.
    fn leaf_level(&self, left: IpaRange, pa: Pa, largest: Level) -> Level {
        let fits = |level: Level| {
            let (start, shift) = (left.start(), M::Granule::shift(level));
            start.is_aligned(shift) && pa.is_aligned(shift) && left.contains(M::Granule::entry_last(start, level))
        };
        if self.is_logged(left) {
            return Level::LEAF;
        }
        let mut level = largest.max(M::Granule::FIRST_BLOCK_LEVEL).max(self.tree.geometry.start_level());
        while let Some(child) = level.child()
            && !fits(level)
        {
            level = child;
        }
        level
    }

    /// Makes frames fit for what the guest may see of them, before they are mapped (rule 13): without FWB the guest may
    /// look behind the caches, and without DIC and IDC its fetches do.
    #[inline(always)]
    pub(crate) fn prepare_frames(&self, pa: Pa, bytes: u64, attributes: Attributes) {
        let arch = &self.tree.mmu.arch;
        let mut issued = false;
        if self.looks_behind_caches(attributes.memory) {
            arch.clean_invalidate_to_poc(pa, bytes);
            issued = true;
        }
        if attributes.memory.is_normal() && attributes.permissions.execute != Xn::Never {
            issued |= self.synchronize_instructions(pa, bytes);
        }
        if issued {
            // Maintenance is complete before the entry is valid; the DSB that publishes the entry is for stores only.
            arch.dsb(Dsb::Ish);
        }
    }

    /// Whether a guest may see what memory of this type holds behind the data caches.
    #[inline(always)]
    pub(crate) fn looks_behind_caches(&self, memory: MemoryType) -> bool {
        match memory {
            MemoryType::Normal => !self.tree.mmu.features.force_write_back(),
            MemoryType::NormalNonCacheable => true,
            MemoryType::DeviceNGnRnE | MemoryType::DeviceNGnRE | MemoryType::DeviceNGRE | MemoryType::DeviceGRE => {
                false
            }
        }
    }

    /// Makes fetches see what `bytes` from `pa` on hold, as far as the CPUs need it; whether anything was issued.
    #[inline]
    pub(crate) fn synchronize_instructions(&self, pa: Pa, bytes: u64) -> bool {
        let features = &self.tree.mmu.features;
        let (clean, invalidate) = (!features.data_coherent(), !features.instruction_coherent());
        if clean || invalidate {
            self.tree.mmu.arch.synchronize_instructions(pa, bytes, clean, invalidate);
        }
        clean || invalidate
    }

    /// Locks the table of level `stop` over `ipa`, linking tables down to it where there are none.
    #[inline(always)]
    pub(crate) fn lock_table<'r>(
        &'r self,
        reader: &'r Reader<'r>,
        ipa: Ipa,
        stop: Level,
        spares: &mut Spares<'_, M>,
    ) -> Result<Locked<'r, 'h, A, M>, NoLeafTable> {
        let walk = self.read_write(reader);
        for _ in 0..MAX_ROUNDS {
            let locked = walk.lock(ipa, stop).map_err(NoLeafTable::Corrupt)?;
            if locked.level() == stop {
                return Ok(locked);
            }
            drop(locked);
            self.link_tables(reader, ipa, stop, spares)?;
        }
        Err(NoLeafTable::Contended)
    }

    /// Links tables down to that of level `stop` over `ipa`, where there are none. Not inlined: most often there is one.
    #[cold]
    #[inline(never)]
    pub(crate) fn link_tables(
        &self,
        reader: &Reader<'_>,
        ipa: Ipa,
        stop: Level,
        spares: &mut Spares<'_, M>,
    ) -> Result<(), NoLeafTable> {
        let walk = self.read_write(reader);
        for _ in 0..MAX_ROUNDS {
            let mut locked = walk.lock(ipa, stop).map_err(NoLeafTable::Corrupt)?;
            let level = locked.level();
            if level == stop {
                return Ok(());
            }
            match locked.kind(locked.index) {
                // Linked by another CPU since the descent: go on down.
                Kind::Table(_) => {}
                Kind::Invalid => {
                    // All of the path or nothing: a table is not linked only to stay empty for want of the next.
                    let missing = (level.levels_below() - stop.levels_below()) as usize;
                    if spares.has(missing)
                        && let Some(spare) = spares.take()
                    {
                        let index = locked.index;
                        locked.link(index, ipa, spare);
                        reader.count().tables_linked(1);
                        if missing == 1 {
                            return Ok(());
                        }
                    } else {
                        drop(locked);
                        // Asked before: what comes back between the two is not missed.
                        let expecting = self.reclaim.is_expecting();
                        if spares.prepare(missing).is_err() {
                            return Err(NoLeafTable::OutOfTables { expecting });
                        }
                    }
                }
                Kind::Reserved => return Err(NoLeafTable::Corrupt(Corrupt { ipa, level })),
                entry => return Err(NoLeafTable::Entry(entry)),
            }
        }
        Err(NoLeafTable::Contended)
    }

    /// What a missing leaf table means for a mapping.
    pub(crate) fn map_cause(&self, reason: NoLeafTable) -> MapCause {
        match reason {
            NoLeafTable::Entry(Kind::Marker(_)) | NoLeafTable::Contended => MapCause::Retry,
            NoLeafTable::Entry(_) => MapCause::Exists,
            // Tables were on their way back: whoever waits for them may be the one who holds the grace period up.
            NoLeafTable::OutOfTables { expecting: true } => MapCause::Retry,
            NoLeafTable::OutOfTables { expecting: false } => MapCause::OutOfTables,
            NoLeafTable::Corrupt(corrupt) => MapCause::Corrupt(corrupt),
        }
    }
}

/// What `left` begins with: leaves of `level` in one table. As many as there are, and at least one.
fn leaves_of_one_table<G: Granule>(left: IpaRange, level: Level) -> IpaRange {
    let last = G::table_last(left.start(), level).min(left.last());
    // Whole leaves: `left` may end within one of a block's size.
    let whole = (last.raw() - left.start().raw() + 1) >> G::shift(level) << G::shift(level);
    IpaRange::new(left.start(), whole).unwrap_or(left)
}

fn run_length<G: Granule>(run: IpaRange, level: Level) -> usize {
    (run.bytes() >> G::shift(level)) as usize
}
