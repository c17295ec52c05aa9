//! What all guests of a machine share: the instructions, table memory, quiescence and VMIDs.

use crate::addr::IpaRange;
use crate::arch::Arch;
use crate::cpu::{CpuIndex, CpuSlot, Statistics};
use crate::geometry::Features;
use crate::memory::{TableMemory, TreeId};
use crate::quiescence::{ClaimError, Quiescence, Reader};
use crate::sync::{AtomicU64, Ordering, const_unless_loom};
use crate::vmid::{Vmid, VmidAllocator};

/// What was invalidated, for what holds the same translations besides the CPUs.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Invalidation<'a> {
    /// Whose they were: [`Stage2::id`](crate::stage2::Stage2::id).
    pub tree: TreeId,
    /// The VMID, which stays that tree's until the hook returns; `None` if it had none.
    pub vmid: Option<Vmid>,
    /// What; `None` for everything of the tree.
    pub ranges: Option<&'a [IpaRange]>,
}

/// Called once per flush, after the CPUs' TLBs are invalidated and before anything that was removed is used again: the
/// place to invalidate what an SMMU or a device's ATC holds.
pub type InvalidationHook<'h> = &'h (dyn Fn(Invalidation<'_>) + Sync);

/// The services all trees of one machine are built on. One per hypervisor; every [`Stage2`](crate::stage2::Stage2)
/// and every [`Reader`] belongs to one.
pub struct Mmu<'h, A, M> {
    pub(crate) arch: A,
    pub(crate) memory: M,
    pub(crate) features: Features,
    pub(crate) quiescence: Quiescence<'h>,
    pub(crate) vmids: VmidAllocator,
    pub(crate) hook: Option<InvalidationHook<'h>>,
    trees: AtomicU64,
}

impl<'h, A: Arch, M: TableMemory> Mmu<'h, A, M> {
    const_unless_loom! {
        /// The machine with the given instructions, table memory and CPUs; `features` are what *all* of its CPUs have
        /// ([`Features::meet`]).
        pub fn new(arch: A, memory: M, features: Features, cpus: &'h [CpuSlot]) -> Self {
            Self {
                arch,
                memory,
                features,
                quiescence: Quiescence::new(cpus),
                vmids: VmidAllocator::new(features.vmid16()),
                hook: None,
                trees: AtomicU64::new(1),
            }
        }
    }

    /// The same, with a hook that every flush calls.
    pub fn with_invalidation_hook(mut self, hook: InvalidationHook<'h>) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Claims the reader of `cpu`, on that CPU.
    ///
    /// # Errors
    /// See [`Quiescence::claim`].
    pub fn reader(&self, cpu: CpuIndex) -> Result<Reader<'_>, ClaimError> {
        self.quiescence.claim(cpu)
    }

    /// The readers of this machine.
    pub fn quiescence(&self) -> &Quiescence<'h> {
        &self.quiescence
    }

    /// Table memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// What issues the instructions.
    pub fn arch(&self) -> &A {
        &self.arch
    }

    /// The VMIDs.
    pub fn vmids(&self) -> &VmidAllocator {
        &self.vmids
    }

    /// What all CPUs have counted so far.
    pub fn statistics(&self) -> Statistics {
        Statistics::of(self.quiescence.slots())
    }

    pub(crate) fn next_tree(&self) -> TreeId {
        TreeId(self.trees.fetch_add(1, Ordering::Relaxed))
    }
}
