//! A tree: root, geometry, identity. What walks descend and invalidations name.

use super::ParentSnapshot;
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Stage2Registers};
use crate::changes::Changes;
use crate::descriptor::{Descriptor, Format, Kind, LeafForm};
use crate::error::{ArgumentError, Corrupt};
use crate::geometry::{Geometry, granule::Granule};
use crate::memory::{Groups, OwnTables, Place, TableMemory, TableMeta, TablePage, TreeId};
use crate::mmu::Mmu;
use crate::quiescence::Reader;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::vmid::{TreeVmid, Vmid};

const VTTBR_VMID_SHIFT: u32 = 48;

/// One guest's tree.
pub(crate) struct Tree<'h, A: Arch, M: TableMemory> {
    pub(crate) mmu: &'h Mmu<'h, A, M>,
    pub(crate) geometry: Geometry<M::Granule>,
    pub(crate) format: Format,
    /// Whether the hardware writes to valid leaves: the access flag, or dirty state too.
    pub(crate) hardware_writes: bool,
    pub(crate) root: Pa,
    /// VTTBR_EL2 without the VMID.
    pub(crate) vttbr: u64,
    pub(crate) id: TreeId,
    pub(crate) vmid: TreeVmid,
    /// Gathers that are open: what they removed may still be in TLBs.
    pub(crate) open_gathers: AtomicU32,
    /// Whether the root is frozen: faults wait. Set before its entries are frozen and cleared before they are thawed: who
    /// reads it with a root table's lock held, and freezes an entry, does so before the thaw comes there.
    pub(crate) frozen: AtomicBool,
    /// Whether somebody has frozen the guest and not thawed it to the end: one at a time.
    pub(crate) has_freezer: AtomicBool,
    /// What was taken from the guest, for faults under way.
    pub(crate) changes: Changes,
}

/// A table as a walk found it, for as long as its read section lasts. Outside of this module it can be read, and only that.
#[derive(Clone, Copy)]
pub(crate) struct Table<'r> {
    /// Reached by the read-write walk alone: entries can be stored to through it, and the lock is there.
    pub(super) page: TablePage<'r>,
    pub(crate) pa: Pa,
    pub(crate) level: Level,
}

impl Table<'_> {
    /// One single-copy atomic load. Acquire: what the entry points to is seen as it was when linked.
    #[inline(always)]
    pub(crate) fn read(&self, index: usize) -> Descriptor {
        self.page
            .entries
            .get(index)
            .map_or(Descriptor::NONE, |entry| Descriptor::from_raw(entry.load(Ordering::Acquire)))
    }
}

impl<'r> Table<'r> {
    /// Of the entry at `index`, that held `value` when the walk went through it.
    #[inline(always)]
    pub(super) fn snapshot(&self, index: usize, value: Descriptor) -> Option<ParentSnapshot<'r>> {
        self.page.entries.get(index).map(|entry| ParentSnapshot { entry, value })
    }

    /// Where an entry may be dirty: see [`TableMeta`].
    #[inline(always)]
    pub(crate) fn may_be_dirty(&self) -> Groups {
        self.page.meta.may_be_dirty()
    }

    /// Whether it is the table of its level over `ipa` in `tree`, by what it says itself. A table that is being taken out
    /// says no, after its parent's entry has changed.
    #[inline(always)]
    pub(crate) fn is_at<A: Arch, M: TableMemory>(&self, tree: &Tree<'_, A, M>, ipa: Ipa) -> bool {
        let place = Place { base: M::Granule::table_base(ipa, self.level), level: self.level };
        self.page.meta.is_at(tree.id, place)
    }

    /// What is known of it, for lists, and for who owns the tree.
    pub(crate) fn meta(&self) -> &'r TableMeta {
        self.page.meta
    }
}

impl<'h, A: Arch, M: TableMemory> Tree<'h, A, M> {
    /// The root table that translates `ipa`: one of up to 16 concatenated ones.
    #[inline(always)]
    pub(crate) fn root_table<'r>(&'r self, ipa: Ipa) -> Result<Table<'r>, Corrupt> {
        self.root_at(self.geometry.root_index(ipa)).ok_or(Corrupt { ipa, level: self.geometry.start_level() })
    }

    /// The root table with the given place in the concatenation.
    #[inline(always)]
    pub(crate) fn root_at(&self, index: usize) -> Option<Table<'_>> {
        let pa = self.root.offset(index as u64 * M::Granule::PAGE_SIZE);
        Some(Table { page: self.mmu.memory.page(pa)?, pa, level: self.geometry.start_level() })
    }

    /// The table an entry of a table of `level` points to.
    ///
    /// `None` if the entry points to none; [`Corrupt`] if it points to something that is no table of ours.
    #[inline(always)]
    pub(crate) fn child<'r>(&'r self, ipa: Ipa, level: Level, entry: Descriptor) -> Result<Option<Table<'r>>, Corrupt> {
        let (Some(pa), Some(child)) = (entry.next_table(level), level.child()) else { return Ok(None) };
        match self.mmu.memory.page(pa) {
            Some(page) => Ok(Some(Table { page, pa, level: child })),
            None => Err(Corrupt { ipa, level }),
        }
    }

    /// What `entry` of a table of `level` is: [`Kind::Reserved`], too, if what it maps is not the frame of a page or a block: not
    /// aligned to its size, beyond the physical address size, or a block where the granule has none.
    #[inline(always)]
    pub(crate) fn kind(&self, entry: Descriptor, level: Level) -> Kind {
        match entry.kind(level) {
            Kind::Page(pa) | Kind::Block(pa) if !self.is_frame(pa, level) => Kind::Reserved,
            kind => kind,
        }
    }

    /// What [`Self::kind`] takes for a leaf at `level`.
    #[inline(always)]
    pub(crate) fn leaf_form(&self, level: Level) -> LeafForm {
        LeafForm::new::<M::Granule>(level, self.geometry.pa_size())
    }

    #[inline(always)]
    fn is_frame(&self, pa: Pa, level: Level) -> bool {
        level >= M::Granule::FIRST_BLOCK_LEVEL
            && pa.is_aligned(M::Granule::shift(level))
            && pa.raw() < self.geometry.pa_size()
    }

    /// The first entry on the way to `ipa` that points to what is no table of this tree, or not the one of that place: when what the
    /// way ends at is not.
    #[cold]
    pub(super) fn blame(&self, ipa: Ipa) -> Corrupt {
        let mut level = self.geometry.start_level();
        let mut table = self.root_table(ipa);
        while let Ok(parent) = table {
            level = parent.level;
            match self.child(ipa, level, parent.read(M::Granule::index(ipa, level))) {
                Ok(Some(child)) if child.is_at(self, ipa) => table = Ok(child),
                Ok(_) => break,
                Err(corrupt) => return corrupt,
            }
        }
        Corrupt { ipa, level }
    }

    /// What VTCR_EL2 and VTTBR_EL2 hold for this tree under `vmid`.
    #[inline(always)]
    pub(crate) fn registers(&self, vmid: Vmid) -> Stage2Registers {
        Stage2Registers {
            vtcr: self.geometry.vtcr().raw(),
            vttbr: self.vttbr | u64::from(vmid.raw()) << VTTBR_VMID_SHIFT,
            fwb: self.format.fwb,
        }
    }

    /// The checks every operation begins with: the reader is of this machine, the range is whole pages and below the IPA size.
    #[inline]
    pub(crate) fn check(&self, reader: &Reader<'_>, range: IpaRange) -> Result<(), ArgumentError> {
        self.check_reader(reader)?;
        let whole = range.start().is_aligned(M::Granule::PAGE_SHIFT)
            && range.last().raw() & (M::Granule::PAGE_SIZE - 1) == M::Granule::PAGE_SIZE - 1;
        if !whole {
            return Err(ArgumentError::Misaligned(range));
        }
        if !self.geometry.contains(range) {
            return Err(ArgumentError::BeyondIpaSize(range));
        }
        Ok(())
    }

    /// Only a reader of this machine's domain keeps this machine's tables from being freed.
    #[inline(always)]
    pub(crate) fn check_reader(&self, reader: &Reader<'_>) -> Result<(), ArgumentError> {
        if reader.is_of(&self.mmu.quiescence) { Ok(()) } else { Err(ArgumentError::ForeignReader) }
    }
}
