//! The root: creation, freeze and thaw, teardown.
//!
//! # Freeze (rule 14)
//! Every entry of the root becomes a marker, holes too, so that nothing can be linked there; then `VMALLS12E1IS; DSB`. From
//! that DSB on each vCPU traps at its next access: it is one instant for the whole guest. Software goes on looking
//! through the markers, so a last harvest and a copy can be taken.
//!
//! # Teardown
//! Takes the [`Stage2`] by value. Every walk, guard and log borrows it, so the compiler has proved that no software is in
//! the tree; that no CPU has it in VTTBR_EL2 the slots say; that no TLB holds any of it the invalidation makes sure of.
//! So nothing is left to wait for.

use core::fmt;

use super::{Rejoining, Stage2};
use crate::addr::{Ipa, Level, Pa};
use crate::aging::AgingState;
use crate::arch::Arch;
use crate::changes::Changes;
use crate::cpu::CpuIndex;
use crate::descriptor::{Descriptor, Format, Marker};
use crate::dirty::{DirtyBitmap, LogState};
use crate::error::ArgumentError;
use crate::geometry::{Geometry, HardwareUpdate, VttbrError, granule::Granule};
use crate::memory::{Groups, OutOfTables, OwnTables, Place, Reserve, TableMemory, TableState, TreeId};
use crate::mmu::Mmu;
use crate::quiescence::{GracePeriod, Reader};
use crate::reclaim::ReclaimState;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::tlb::Gather;
use crate::vmid::TreeVmid;
use crate::walk::{Table, Tree};

/// Why there is no new tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CreateError {
    /// The geometry was made for CPUs that have more, or other VMIDs, than the machine's.
    Geometry,
    /// No contiguous table pages for the root are left.
    OutOfTables,
    /// The table memory gave pages that VTTBR_EL2 cannot hold.
    Root(VttbrError),
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry => f.write_str("the geometry was made for CPUs that have more than the machine's"),
            Self::OutOfTables => f.write_str("there are no contiguous table pages left for the root"),
            Self::Root(_) => f.write_str("table memory gave a root that VTTBR_EL2 cannot hold"),
        }
    }
}

impl core::error::Error for CreateError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Geometry | Self::OutOfTables => None,
            Self::Root(error) => Some(error),
        }
    }
}

impl From<OutOfTables> for CreateError {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

/// Why the guest was not frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FreezeError {
    /// Nothing was changed.
    Argument(ArgumentError),
    /// It is frozen already.
    Frozen,
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::Frozen => f.write_str("the guest is frozen already"),
        }
    }
}

impl core::error::Error for FreezeError {}

/// The tree cannot be torn down: this CPU still has it loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum InUse {
    /// This CPU has it in its VTTBR_EL2.
    Loaded(CpuIndex),
    /// The reader is of another machine.
    ForeignReader,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loaded(cpu) => write!(f, "cpu {} has the tree loaded", cpu.0),
            Self::ForeignReader => f.write_str("the reader is of another machine"),
        }
    }
}

impl core::error::Error for InUse {}

/// Something that began before the freeze is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Unsettled {
    /// This CPU may be resolving a fault.
    Fault(CpuIndex),
    /// Something was removed or restricted and is not invalidated yet.
    Invalidation,
}

/// The guest is frozen until this is given to [`Frozen::thaw`].
#[must_use = "the guest stays frozen"]
pub struct Frozen<'s, 'h, A: Arch, M: TableMemory> {
    stage2: &'s Stage2<'h, A, M>,
    faults: GracePeriod,
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// An empty tree of `geometry`, whose dirty pages are logged in `log`, if given, when logging is started.
    ///
    /// # Errors
    /// [`CreateError::Geometry`] if it does not suit the machine; [`CreateError::OutOfTables`] if there is no root; [`CreateError::Root`] if table memory breaks its promises.
    pub fn new(
        mmu: &'h Mmu<'h, A, M>,
        geometry: Geometry<M::Granule>,
        log: Option<DirtyBitmap<'h>>,
    ) -> Result<Self, CreateError> {
        if !geometry.suits(&mmu.features) {
            return Err(CreateError::Geometry);
        }
        let root = mmu.memory.alloc_root(geometry.root_order())?;
        let vttbr = match geometry.vttbr(root, 0, false) {
            Ok(vttbr) => vttbr.raw(),
            Err(error) => {
                mmu.memory.give_back(root, geometry.root_order());
                return Err(CreateError::Root(error));
            }
        };
        let format =
            Format { fwb: mmu.features.force_write_back(), xnx: mmu.features.execute_never_by_el(), dbm: false };
        let id = mmu.next_tree();
        let tree = Tree {
            mmu,
            geometry,
            format,
            hardware_writes: geometry.hardware_update() != HardwareUpdate::None,
            root,
            vttbr,
            id,
            vmid: TreeVmid::new(),
            open_gathers: AtomicU32::new(0),
            frozen: AtomicBool::new(false),
            has_freezer: AtomicBool::new(false),
            changes: Changes::new::<M::Granule>(),
        };
        let level = geometry.start_level();
        for index in 0..geometry.root_tables() {
            if let Some(table) = tree.root_at(index) {
                let base = Ipa::new((index as u64) << (M::Granule::shift(level) + M::Granule::INDEX_BITS));
                table.meta().adopt(id, Place { base, level }, 0, Groups::NONE);
            }
        }
        Ok(Self {
            tree,
            log: LogState::new(log, M::Granule::PAGE_SHIFT),
            aging: AgingState::new(),
            reclaim: ReclaimState::new(),
            largest_leaf: Level::LEAF,
            reserve: Reserve::new(),
            rejoining: Rejoining::new(),
        })
    }

    /// What the tree looks like.
    pub fn geometry(&self) -> &Geometry<M::Granule> {
        &self.tree.geometry
    }

    /// What an invalidation hook knows it by.
    pub fn id(&self) -> TreeId {
        self.tree.id
    }

    /// The services it is built on.
    pub fn mmu(&self) -> &'h Mmu<'h, A, M> {
        self.tree.mmu
    }

    /// Stops the guest: each vCPU traps at its next access, and faults answer
    /// [`Outcome::Retry`](crate::fault::Outcome::Retry) until the thaw. Locks each root table in turn; invalidates all of
    /// the VMID.
    ///
    /// # Errors
    /// [`FreezeError::Argument`] for a foreign reader, [`FreezeError::Frozen`] if it is frozen already.
    pub fn freeze(&self, reader: &Reader<'_>) -> Result<Frozen<'_, 'h, A, M>, FreezeError> {
        self.tree.check_reader(reader).map_err(FreezeError::Argument)?;
        if self.tree.has_freezer.swap(true, Ordering::AcqRel) {
            return Err(FreezeError::Frozen);
        }
        self.tree.frozen.store(true, Ordering::Release);
        self.for_each_root_entry(reader, |entry| {
            // A marker of another kind is invalid as it is, and its maker waits to find it again.
            (entry.is_valid() || entry.is_none()).then(|| entry.into_marker(Marker::Frozen))
        });
        let mut gather = Gather::new(&self.tree, reader);
        gather.everything();
        let _quiet = gather.flush();
        Ok(Frozen { stage2: self, faults: self.tree.mmu.quiescence.begin() })
    }

    fn for_each_root_entry(&self, reader: &Reader<'_>, change: impl Fn(Descriptor) -> Option<Descriptor>) {
        let walk = self.read_write(reader);
        for index in 0..self.tree.geometry.root_tables() {
            let level = self.tree.geometry.start_level();
            let base = Ipa::new((index as u64) << (M::Granule::shift(level) + M::Granule::INDEX_BITS));
            // A root has no parent: this cannot fail.
            let Ok(mut locked) = walk.lock(base, level) else { continue };
            for entry in 0..M::Granule::ENTRIES {
                if let Some(new) = change(locked.read(entry)) {
                    locked.replace(entry, new);
                }
            }
        }
    }

    /// Gives all tables back to table memory, and the VMID. Frames are not told about: unmap first what must be handed
    /// back one by one.
    ///
    /// Locks a table at a time; invalidates all of the VMID. Grows with the number of live tables.
    ///
    /// # Errors
    /// Gives the tree back, unchanged, if a CPU has it loaded or the reader is of another machine.
    #[expect(clippy::result_large_err, reason = "the tree is given back by value, once in its life")]
    pub fn teardown(self, reader: &Reader<'_>) -> Result<(), (Self, InUse)> {
        if self.tree.check_reader(reader).is_err() {
            return Err((self, InUse::ForeignReader));
        }
        let slots = self.tree.mmu.quiescence.slots();
        if let Some(cpu) = slots.iter().position(|slot| slot.loaded.load(Ordering::Acquire) == self.tree.id.0) {
            return Err((self, InUse::Loaded(CpuIndex(cpu as u16))));
        }
        let mut gather = Gather::new(&self.tree, reader);
        gather.everything();
        let _quiet = gather.flush();
        self.tree.mmu.vmids.release(&self.tree.vmid);
        self.reclaim.drain(&self.tree, reader);
        self.reserve.give_back(&self.tree.mmu.memory);
        for index in 0..self.tree.geometry.root_tables() {
            if let Some(table) = self.tree.root_at(index) {
                self.free_below(reader, table);
                retire_meta(&table);
            }
        }
        self.tree.mmu.memory.give_back(self.tree.root, self.tree.geometry.root_order());
        Ok(())
    }

    /// Whether the table is this tree's, and of the level it is found at: an entry that somebody else wrote frees nothing.
    fn owns(&self, table: &Table<'_>) -> bool {
        let meta = table.meta();
        meta.is_owned_by(self.tree.id) && meta.place().level == table.level
    }

    /// Frees the tables `table` points to, and theirs: no more than three levels deep.
    fn free_below(&self, reader: &Reader<'_>, table: Table<'_>) {
        if table.level == Level::LEAF {
            return;
        }
        for index in 0..M::Granule::ENTRIES {
            let entry = table.read(index);
            if let Ok(Some(child)) = self.tree.child(Ipa::new(0), table.level, entry)
                && self.owns(&child)
            {
                self.free_below(reader, child);
                retire_meta(&child);
                free(self.tree.mmu, reader, child.pa);
            }
        }
    }
}

/// Marks the table as nobody's, so that a tree that names it twice frees it once.
fn retire_meta(table: &Table<'_>) {
    table.meta().disown();
    table.meta().set_state(TableState::Free);
}

/// Gives one table back.
fn free<A: Arch, M: TableMemory>(mmu: &Mmu<'_, A, M>, reader: &Reader<'_>, table: Pa) {
    mmu.memory.give_back(table, 0);
    reader.count().tables_freed(1);
}

impl<A: Arch, M: TableMemory> Frozen<'_, '_, A, M> {
    /// Whether all that was under way when the guest was frozen is over: the last fault, which may still map a page that the
    /// guest cannot reach, and the last unmap or protect. What comes then is the truth: the time of a last harvest.
    ///
    /// # Errors
    /// What is not over.
    pub fn is_settled(&self) -> Result<(), Unsettled> {
        let tree = &self.stage2.tree;
        tree.mmu.quiescence.poll(self.faults).map_err(|waiting| Unsettled::Fault(waiting.0))?;
        // Acquire: if none is open, what they did is seen.
        if tree.open_gathers.load(Ordering::Acquire) != 0 {
            return Err(Unsettled::Invalidation);
        }
        Ok(())
    }

    /// Lets the guest go on. Locks each root table in turn; invalidates nothing (invalid to valid).
    ///
    /// # Errors
    /// [`ArgumentError::ForeignReader`]; the guest stays frozen.
    pub fn thaw(self, reader: &Reader<'_>) -> Result<(), (Self, ArgumentError)> {
        let stage2 = self.stage2;
        if let Err(error) = stage2.tree.check_reader(reader) {
            return Err((self, error));
        }
        stage2.tree.frozen.store(false, Ordering::Release);
        stage2
            .for_each_root_entry(reader, |entry| (entry.marker() == Some(Marker::Frozen)).then(|| entry.from_marker()));
        stage2.tree.mmu.arch.dsb(crate::arch::Dsb::Ishst);
        stage2.tree.has_freezer.store(false, Ordering::Release);
        Ok(())
    }
}
