//! Map: entries from nothing to valid, which needs no invalidation.
//!
//! For each leaf table of the range: frames are made fit for the guest's view of memory (rule 13) and spare tables are
//! at hand, no lock held; the table is locked; entries are stored; unlocked. One `DSB ISHST` at the end makes all of
//! it seen.

use super::Stage2;
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Attributes, Kind, Xn};
use crate::dirty::Content;
use crate::error::{ArgumentError, Corrupt, Stopped};
use crate::geometry::granule::Granule;
use crate::memory::{Spares, TableMemory};
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

/// Why a range was not mapped, or not all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MapError {
    /// Nothing was changed.
    Argument(ArgumentError),
    /// A prefix was mapped.
    Stopped(Stopped<MapCause>),
}

/// What [`Stage2::lock_leaf_table`] found instead.
pub(crate) enum NoLeafTable {
    /// An entry that is not to be replaced by a table stands in the way, at this level.
    Entry(Kind),
    /// No table page is left.
    OutOfTables {
        /// Some were on their way back.
        expecting: bool,
    },
    Corrupt(Corrupt),
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Maps `range` to the frames from `pa` on, page by page. The pages are dirty from the start unless their `content` is
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
        let result = self.map_pages(reader, range, pa, attributes, content);
        self.tree.mmu.arch.dsb(Dsb::Ishst);
        result.map_err(MapError::Stopped)
    }

    fn check_output(&self, range: IpaRange, pa: Pa) -> Result<(), ArgumentError> {
        if !pa.is_aligned(M::Granule::PAGE_SHIFT) {
            return Err(ArgumentError::Misaligned(range));
        }
        match pa.checked_add(range.bytes() - 1) {
            Some(last) if last.raw() < self.tree.geometry.pa_size() => Ok(()),
            _ => Err(ArgumentError::BeyondPaSize(range)),
        }
    }

    fn map_pages(
        &self,
        reader: &Reader<'_>,
        range: IpaRange,
        pa: Pa,
        attributes: Attributes,
        content: Content,
    ) -> Result<(), Stopped<MapCause>> {
        let format = self.tree.format;
        // A clean page is of use to a harvester only.
        let dirty = content.is_dirty() || !self.log.is_active();
        let frame_of = |ipa: Ipa| pa.offset(ipa.raw() - range.start().raw());
        let mut spares = Spares::new(&self.tree.mmu.memory);
        let mut rest = Some(range);
        while let Some(left) = rest {
            let start = left.start();
            let last = M::Granule::table_last(start, Level::LEAF).min(left.last());
            self.prepare_frames(frame_of(start), last.raw() - start.raw() + 1, attributes);
            let mut locked = self
                .lock_leaf_table(reader, start, &mut spares)
                .map_err(|reason| Stopped::at(range, start, self.map_cause(reason)))?;
            let mut at = start;
            for index in locked.index.. {
                let old = locked.read(index);
                if !old.is_none() {
                    let cause = match old.kind(Level::LEAF) {
                        Kind::Page(_) | Kind::Block(_) => MapCause::Exists,
                        Kind::Marker(_) => MapCause::Retry,
                        _ => MapCause::Corrupt(Corrupt { ipa: at, level: Level::LEAF }),
                    };
                    return Err(Stopped::at(range, at, cause));
                }
                locked.replace(index, format.leaf(Level::LEAF, frame_of(at), attributes, dirty));
                match at.checked_add(M::Granule::PAGE_SIZE) {
                    Some(next) if next <= last => at = next,
                    _ => break,
                }
            }
            rest = last.checked_add(1).and_then(|next| left.starting_at(next));
        }
        Ok(())
    }

    /// Makes frames fit for what the guest may see of them, before they are mapped (rule 13): without FWB the guest may
    /// look behind the caches, and without DIC and IDC its fetches do.
    pub(crate) fn prepare_frames(&self, pa: Pa, bytes: u64, attributes: Attributes) {
        let (features, arch) = (&self.tree.mmu.features, &self.tree.mmu.arch);
        if !attributes.memory.is_cacheable() {
            return;
        }
        if !features.force_write_back() {
            arch.clean_invalidate_to_poc(pa, bytes);
        }
        if attributes.permissions.execute != Xn::Never && !(features.instruction_coherent() && features.data_coherent())
        {
            arch.synchronize_instructions(pa, bytes);
        }
    }

    /// Locks the leaf table over `ipa`, linking tables down to it where there are none.
    pub(crate) fn lock_leaf_table<'r>(
        &'r self,
        reader: &'r Reader<'r>,
        ipa: Ipa,
        spares: &mut Spares<'_, M>,
    ) -> Result<Locked<'r, 'h, A, M>, NoLeafTable> {
        let mmu = self.tree.mmu;
        let walk = self.read_write(reader);
        loop {
            let mut locked = walk.lock(ipa, Level::LEAF).map_err(NoLeafTable::Corrupt)?;
            let level = locked.level();
            if level == Level::LEAF {
                return Ok(locked);
            }
            match locked.read(locked.index).kind(level) {
                // Linked by another CPU since the descent: go on down.
                Kind::Table(_) => {}
                Kind::Invalid => match spares.take() {
                    Some(spare) => {
                        let index = locked.index;
                        locked.link(index, ipa, spare);
                        reader.count().tables_linked(1);
                    }
                    None => {
                        drop(locked);
                        // Asked before: what comes back between the two is not missed.
                        let expecting = self.reclaim.is_expecting();
                        // All of the path at once: nothing is linked that then stays empty for want of the next.
                        if spares.prepare(level.levels_below() as usize, &mmu.arch, mmu.coherent_walks).is_err() {
                            return Err(NoLeafTable::OutOfTables { expecting });
                        }
                    }
                },
                Kind::Reserved => return Err(NoLeafTable::Corrupt(Corrupt { ipa, level })),
                entry => return Err(NoLeafTable::Entry(entry)),
            }
        }
    }

    /// What a missing leaf table means for a mapping.
    pub(crate) fn map_cause(&self, reason: NoLeafTable) -> MapCause {
        match reason {
            NoLeafTable::Entry(Kind::Marker(_)) => MapCause::Retry,
            NoLeafTable::Entry(_) => MapCause::Exists,
            // Tables were on their way back: whoever waits for them may be the one who holds the grace period up.
            NoLeafTable::OutOfTables { expecting: true } => MapCause::Retry,
            NoLeafTable::OutOfTables { expecting: false } => MapCause::OutOfTables,
            NoLeafTable::Corrupt(corrupt) => MapCause::Corrupt(corrupt),
        }
    }
}
