//! Invalidation: what was removed is collected in a [`Gather`], and only its flush makes a [`Flushed`].
//!
//! # The sequence (Arm ARM D8.17; TF-RMM's rule ILRXYX is the same)
//! 1. `DSB ISHST`: all walkers see the changed tables.
//! 2. The VMID is read and held, and made the current one (VTTBR_EL2; VHE's TGE out of the way). Read after the DSB: a
//!    VMID that is given to the tree later than that has no entry of before.
//! 3. `TLBI IPAS2E1IS` (or the range form, with the leaf's level as a hint where all that was removed is leaves of one level;
//!    never where a table entry was removed), for entries of stage 2 alone.
//! 4. `DSB ISH`: those are complete, so that no combined entry can be made from them again.
//! 5. `TLBI VMALLE1IS`: combined entries are cached by virtual address, which nobody here knows.
//! 6. `DSB ISH`; `ISB`.
//!
//! # Two at once
//! An operation may find that another CPU has already done what it was asked for, but not yet flushed: a page that is read-only
//! in the tables and writable in a TLB. What it tells its caller must be true all the same. So a tree counts its open
//! gathers, before the first entry is changed and until after the flush; and who relies on the others' work
//! ([`Gather::flush_with_others`]) takes all of the VMID while another is open.
//!
//! Past [`MAX_OPERATIONS`] step 3 to 5 are one `VMALLS12E1IS`. Then the embedder's hook runs (SMMU, ATS), and after it
//! `Flushed` exists.

use arrayvec::ArrayVec;

use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::{Arch, Dsb, RangeOperand, Scope, Tlbi, ttl};
use crate::geometry::granule::Granule;
use crate::memory::TableMemory;
use crate::mmu::Invalidation;
use crate::quiescence::Reader;
use crate::sync::{AtomicU32, Ordering};
use crate::vmid::{Hold, Vmid};
use crate::walk::Tree;

/// Ranges a gather tells apart. Neighbours are merged; one more and all of the VMID goes.
const MAX_RANGES: usize = 4;
/// TLBI by IPA or range that are issued before all of the VMID is invalidated instead.
const MAX_OPERATIONS: u32 = 16;

/// What was removed from one tree and not yet invalidated.
#[doc(alias = "mmu_gather")]
#[must_use = "what was removed stays in the TLBs until it is flushed"]
pub(crate) struct Gather<'r, 'h, A: Arch, M: TableMemory> {
    tree: &'r Tree<'h, A, M>,
    reader: &'r Reader<'r>,
    ranges: ArrayVec<Removed, MAX_RANGES>,
    everything: bool,
    open: Open<'r>,
}

/// Counted among the open gathers of its tree, until dropped.
struct Open<'r>(&'r AtomicU32);

impl<'r> Open<'r> {
    #[inline]
    fn new(count: &'r AtomicU32) -> Self {
        // Before the entries change, which their lock publishes.
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }

    /// Whether another gather is open. Acquire: if none is, their flushes are complete.
    #[inline]
    fn has_company(&self) -> bool {
        self.0.load(Ordering::Acquire) > 1
    }
}

impl Drop for Open<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: partner of the acquire in `has_company`.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

#[derive(Clone, Copy)]
struct Removed {
    range: IpaRange,
    /// The level, if all that was removed is leaves of this one.
    leaf: Option<Level>,
}

/// Proof that all that a [`Gather`] had collected is in no TLB any more.
#[derive(Debug)]
#[must_use = "what waited for the invalidation can now be done"]
pub(crate) struct Flushed(());

impl<'r, 'h, A: Arch, M: TableMemory> Gather<'r, 'h, A, M> {
    /// Nothing removed yet.
    #[inline]
    pub(crate) fn new(tree: &'r Tree<'h, A, M>, reader: &'r Reader<'r>) -> Self {
        Self { tree, reader, ranges: ArrayVec::new_const(), everything: false, open: Open::new(&tree.open_gathers) }
    }

    /// Leaves of `level` within `range` were removed or restricted.
    #[inline]
    pub(crate) fn leaves(&mut self, range: IpaRange, level: Level) {
        self.add(Removed { range, leaf: Some(level) });
    }

    /// The table entry over `ipa` was removed. One address finds it in every walk cache, since each walk of that address
    /// used it.
    #[inline]
    pub(crate) fn table(&mut self, ipa: Ipa) {
        if let Some(range) = IpaRange::new(ipa.align_down(M::Granule::PAGE_SHIFT), M::Granule::PAGE_SIZE) {
            self.add(Removed { range, leaf: None });
        }
    }

    /// The table entry over `range` was removed, and with it all that is below.
    #[inline]
    pub(crate) fn subtree(&mut self, range: IpaRange) {
        self.add(Removed { range, leaf: None });
    }

    /// Anything may have been removed.
    pub(crate) fn everything(&mut self) {
        self.everything = true;
    }

    /// Whether nothing was removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.everything
    }

    #[inline]
    fn add(&mut self, more: Removed) {
        if let Some(last) = self.ranges.last_mut()
            && last.leaf == more.leaf
            && last.range.last().checked_add(1) == Some(more.range.start())
            && let Some(joined) = IpaRange::inclusive(last.range.start(), more.range.last())
        {
            last.range = joined;
        } else if self.ranges.try_push(more).is_err() {
            self.everything = true;
        }
    }

    /// Invalidates what was collected, on all CPUs; see the [module](self). Nothing, if nothing was.
    pub(crate) fn flush(self) -> Flushed {
        if self.is_empty() {
            return Flushed(());
        }
        let (mmu, arch) = (self.tree.mmu, &self.tree.mmu.arch);
        arch.dsb(Dsb::Ishst);
        match mmu.vmids.hold(&self.tree.vmid, self.reader.slot(), mmu.quiescence.slots(), arch) {
            Hold::Held(held) => {
                let saved = arch.enter_vmid(self.tree.registers(held.vmid));
                self.invalidate_all();
                arch.leave_vmid(saved);
                self.call_hook(Some(held.vmid));
            }
            // No TLB has anything of a tree that has no VMID.
            Hold::Unused => self.call_hook(None),
        }
        Flushed(())
    }

    /// Leaves in the TLBs what was collected: for access flags alone, which nobody but aging relies on.
    pub(crate) fn leave(self) {}

    /// Whether others have something open, or had until now, that the caller may have come upon.
    pub(crate) fn has_company(&self) -> bool {
        self.open.has_company()
    }

    /// Flushes like [`Self::flush`], for a caller who relies on what others have done and may not have flushed yet.
    pub(crate) fn flush_with_others(mut self) -> Flushed {
        if self.has_company() {
            self.everything();
        }
        self.flush()
    }

    /// Steps 3 to 6, in the tree's VMID.
    fn invalidate_all(&self) {
        let arch = &self.tree.mmu.arch;
        match self.operations() {
            Some(_) => {
                for removed in &self.ranges {
                    self.invalidate(removed);
                }
                arch.dsb(Dsb::Ish);
                arch.tlbi(Tlbi::Vmalle1 { scope: Scope::InnerShareable });
            }
            None => {
                arch.tlbi(Tlbi::Vmalls12e1 { scope: Scope::InnerShareable });
                self.reader.count().tlbi_by_vmid(1);
            }
        }
        arch.dsb(Dsb::Ish);
        arch.isb();
    }

    /// The last step: the embedder's own invalidations.
    fn call_hook(&self, vmid: Option<Vmid>) {
        let Some(hook) = self.tree.mmu.hook else { return };
        let ranges: ArrayVec<IpaRange, MAX_RANGES> = self.ranges.iter().map(|removed| removed.range).collect();
        hook(Invalidation { tree: self.tree.id, vmid, ranges: (!self.everything).then_some(&ranges) });
    }

    /// How many TLBI by IPA or range it takes; `None` if all of the VMID is cheaper.
    fn operations(&self) -> Option<u32> {
        if self.everything {
            return None;
        }
        let mut count = 0;
        for removed in &self.ranges {
            self.split(removed, |_| count += 1, MAX_OPERATIONS);
        }
        (count <= MAX_OPERATIONS).then_some(count)
    }

    fn invalidate(&self, removed: &Removed) {
        let counters = self.reader.count();
        self.split(
            removed,
            |operation| {
                match operation {
                    Tlbi::IpaRange { .. } => counters.tlbi_by_range(1),
                    _ => counters.tlbi_by_ipa(1),
                }
                self.tree.mmu.arch.tlbi(operation);
            },
            u32::MAX,
        );
    }

    /// Calls `emit` with the operations that invalidate one range, no more than `limit` and one.
    fn split(&self, removed: &Removed, mut emit: impl FnMut(Tlbi), limit: u32) {
        let features = &self.tree.mmu.features;
        let scope = Scope::InnerShareable;
        let shift = M::Granule::PAGE_SHIFT;
        let leaf = if features.level_hint() { removed.leaf } else { None };
        // One operation by IPA covers all of the entry that translates it.
        let step = removed.leaf.map_or(M::Granule::PAGE_SIZE, M::Granule::entry_size);
        let mut at = removed.range.start();
        let mut left = removed.range.bytes() >> shift;
        let mut emitted = 0;
        while left > 0 && emitted <= limit {
            let range = if features.range_tlbi() && left > step >> shift {
                (0..4).rev().find_map(|scale| RangeOperand::largest(at, shift, left, scale, leaf))
            } else {
                None
            };
            let (operation, pages) = match range {
                Some((operand, pages)) => (Tlbi::IpaRange { operand, scope }, pages),
                None => (Tlbi::Ipa { ipa: at, ttl: ttl(shift, leaf), scope }, step >> shift),
            };
            emit(operation);
            emitted += 1;
            at = at.offset(pages << shift);
            left = left.saturating_sub(pages);
        }
    }
}

/// Invalidates on this CPU alone what translates `ipa`: after a permission was relaxed, or when a fault turns out to have
/// come from a cached entry that is stricter than the tables. The CPU has the tree loaded: faults are resolved by
/// [`Loaded`](crate::stage2::Loaded) alone.
///
/// Without it the guest would fault for ever: the cached entry is not replaced as long as it is there.
#[doc(alias = "flush_tlb_fix_spurious_fault")]
pub(crate) fn relax_local<A: Arch, M: TableMemory>(tree: &Tree<'_, A, M>, reader: &Reader<'_>, ipa: Ipa) {
    let arch = &tree.mmu.arch;
    arch.in_guest_regime(|| {
        arch.dsb(Dsb::Nshst);
        arch.tlbi(Tlbi::Ipa { ipa, ttl: ttl(M::Granule::PAGE_SHIFT, None), scope: Scope::Local });
        arch.dsb(Dsb::Nsh);
        arch.tlbi(Tlbi::Vmalle1 { scope: Scope::Local });
        arch.dsb(Dsb::Nsh);
        arch.isb();
    });
    reader.count().tlbi_local(1);
}
