//! A tree in a CPU's VTTBR_EL2, and the guest running on it.
//!
//! While the guest runs its CPU is in an extended quiescent state: grace periods do not wait for it. The VMID is published
//! on every entry, so that a rollover either sees it or makes the entry ask anew.

use core::fmt;
use core::marker::PhantomData;

use super::Stage2;
use crate::arch::Arch;
use crate::cpu::CpuSlot;
use crate::memory::TableMemory;
use crate::quiescence::Reader;
use crate::sync::Ordering;
use crate::vmid::OutOfVmids;

/// Why the tree was not loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum LoadError {
    /// The reader is of another machine.
    ForeignReader,
    /// This CPU has a tree loaded.
    Loaded,
    /// More CPUs run guests than there are VMIDs.
    OutOfVmids,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignReader => f.write_str("the reader is of another machine"),
            Self::Loaded => f.write_str("this CPU has a tree loaded"),
            Self::OutOfVmids => OutOfVmids.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}

/// Why the guest was not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RunError {
    /// The reader is not the one of the CPU that has the tree loaded.
    OtherCpu,
    /// More CPUs run guests than there are VMIDs.
    OutOfVmids,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCpu => f.write_str("the reader is not of the CPU that has the tree loaded"),
            Self::OutOfVmids => OutOfVmids.fmt(f),
        }
    }
}

impl core::error::Error for RunError {}

/// This CPU has the tree in its VTTBR_EL2, until this is dropped.
///
/// Bound to the CPU: neither `Send` nor `Sync`. Should it be forgotten, the tree cannot be torn down; nothing worse.
pub struct Loaded<'s, 'h, A: Arch, M: TableMemory> {
    stage2: &'s Stage2<'h, A, M>,
    slot: &'h CpuSlot,
    not_send: PhantomData<*const ()>,
}

impl<'h, A: Arch, M: TableMemory> Stage2<'h, A, M> {
    /// Loads the tree on the reader's CPU: VTCR_EL2, VTTBR_EL2, HCR_EL2.{VM,FWB}.
    ///
    /// # Errors
    /// [`LoadError::ForeignReader`]; [`LoadError::Loaded`] if another tree is loaded; [`LoadError::OutOfVmids`].
    pub fn load(&self, reader: &Reader<'_>) -> Result<Loaded<'_, 'h, A, M>, LoadError> {
        self.tree.check_reader(reader).map_err(|_| LoadError::ForeignReader)?;
        let mmu = self.tree.mmu;
        let slots = mmu.quiescence.slots();
        let slot = slots.get(usize::from(reader.cpu().0)).ok_or(LoadError::ForeignReader)?;
        // Left as it is if another tree is there: only its own `Loaded` takes it away.
        if slot.loaded.compare_exchange(0, self.tree.id.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(LoadError::Loaded);
        }
        let Ok(vmid) = mmu.vmids.enter(&self.tree.vmid, slot, slots, &mmu.arch) else {
            slot.loaded.store(0, Ordering::Release);
            return Err(LoadError::OutOfVmids);
        };
        mmu.arch.load(self.tree.registers(vmid));
        Ok(Loaded { stage2: self, slot, not_send: PhantomData })
    }
}

impl<'s, 'h, A: Arch, M: TableMemory> Loaded<'s, 'h, A, M> {
    /// Runs the guest: `enter` is to do the ERET and to return at the next exception to EL2. No grace period waits
    /// for this CPU meanwhile.
    ///
    /// # Errors
    /// [`RunError::OtherCpu`], [`RunError::OutOfVmids`]; `enter` was not called.
    #[inline(always)]
    pub fn run<T>(&mut self, reader: &mut Reader<'_>, enter: impl FnOnce() -> T) -> Result<T, RunError> {
        if !self.is_of(reader) {
            return Err(RunError::OtherCpu);
        }
        let mmu = self.stage2.tree.mmu;
        let vmid = mmu
            .vmids
            .enter(&self.stage2.tree.vmid, self.slot, mmu.quiescence.slots(), &mmu.arch)
            .map_err(|_| RunError::OutOfVmids)?;
        let registers = self.stage2.tree.registers(vmid);
        // Another VMID after a rollover; or the CPU was off and has lost its registers.
        if !mmu.arch.is_loaded(registers) {
            mmu.arch.load(registers);
        }
        Ok(reader.offline(enter))
    }

    /// Whether `reader` speaks for the CPU that has the tree loaded.
    #[inline(always)]
    pub(crate) fn is_of(&self, reader: &Reader<'_>) -> bool {
        core::ptr::eq(self.slot, reader.slot())
    }

    /// The tree that is loaded.
    pub fn stage2(&self) -> &'s Stage2<'h, A, M> {
        self.stage2
    }
}

impl<A: Arch, M: TableMemory> Drop for Loaded<'_, '_, A, M> {
    fn drop(&mut self) {
        let mmu = self.stage2.tree.mmu;
        mmu.arch.unload();
        mmu.vmids.leave(self.slot);
        self.slot.loaded.store(0, Ordering::Release);
    }
}
