//! VMIDs: 8 or 16 bits, given out to trees, taken back all at once.
//!
//! A VMID is valid together with its *generation*. When all of a generation's VMIDs are given out the next generation
//! begins (*rollover*): the TLBs of all CPUs are invalidated, and trees ask for a VMID anew when they next run. A
//! guest that runs through a rollover keeps its VMID: it is reserved for its tree in the new generation.
//!
//! # Protocol
//! - *Entry* (per entry into the guest): the CPU publishes its tree's VMID in `CpuSlot::running` by compare-exchange from a
//!   non-zero value, if its generation is the current one. A rollover takes `running` by exchange for 0. So either
//!   the rollover sees the new value and reserves it, or the compare-exchange fails and entry takes the slow path.
//! - *Invalidation*: the CPU stores the VMID into `CpuSlot::flushing`, `fence(SeqCst)`, then re-reads the generation. A
//!   rollover advances the generation, `fence(SeqCst)`, then reads `flushing`. So either the rollover sees the VMID and
//!   reserves it until this is over, or the invalidation sees the new generation and takes the slow path.
//! - The slow path and rollover hold the allocator's lock. No VMID of a new generation is given out before the TLBI that
//!   began it is complete.
//!
//! VMID 0 is never given out: it is what a CPU without a guest has.

use core::fmt;

use crate::arch::{Arch, Dsb, Scope, Tlbi};
use crate::cpu::CpuSlot;
use crate::sync::{AtomicU64, Mutex, Ordering, const_unless_loom, fence};

/// A VMID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Vmid(pub(crate) u16);

impl Vmid {
    /// Its number.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

const GENERATION_SHIFT: u32 = 16;
/// The bits of a VMID where all CPUs have 16. Loom and shuttle make a book for each schedule, and no more guests than this.
const WIDE_BITS: u32 = if cfg!(any(loom, shuttle)) { 6 } else { 16 };
/// Those where not all CPUs have 16. Three VMIDs are as many as loom and shuttle can run out of.
const NARROW_BITS: u32 = if cfg!(any(loom, shuttle)) { 2 } else { 8 };
const MAX_VMIDS: usize = 1 << WIDE_BITS;

/// A VMID with its generation; 0 stands for none.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamped(u64);

impl Stamped {
    const fn vmid(self) -> Vmid {
        Vmid(self.0 as u16)
    }

    const fn is_of(self, generation: u64) -> bool {
        self.0 >> GENERATION_SHIFT == generation
    }
}

/// The VMID of a tree, which may be of an old generation.
pub(crate) struct TreeVmid(AtomicU64);

impl TreeVmid {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

/// Gives out VMIDs to the trees of one machine.
pub struct VmidAllocator {
    bits: u32,
    generation: AtomicU64,
    book: Mutex<Book>,
}

struct Book {
    /// The VMIDs taken in this generation.
    taken: [u64; MAX_VMIDS / 64],
    /// Where to look for a free one next.
    next: u32,
}

impl Book {
    fn take(&mut self, vmid: Vmid) -> bool {
        let (word, bit) = (usize::from(vmid.0) / 64, 1u64 << (vmid.0 % 64));
        let free = self.taken[word] & bit == 0;
        self.taken[word] |= bit;
        free
    }

    fn give_back(&mut self, vmid: Vmid) {
        self.taken[usize::from(vmid.0) / 64] &= !(1 << (vmid.0 % 64));
    }

    /// The first from `from` to before `end` that is not taken: a word of them at a time.
    fn first_free(&self, from: u32, end: u32) -> Option<u32> {
        let (first, before) = (from / 64, (1u64 << (from % 64)) - 1);
        let words = (first..end.div_ceil(64)).zip(self.taken.iter().skip(first as usize));
        let mut words = words.map(|(nth, &taken)| (nth, if nth == first { taken | before } else { taken }));
        let (nth, taken) = words.find(|&(_, taken)| taken != u64::MAX)?;
        Some(nth * 64 + taken.trailing_ones()).filter(|&found| found < end)
    }

    /// A VMID that is not taken, other than 0.
    fn find(&mut self, bits: u32) -> Option<Vmid> {
        let count = 1u32 << bits;
        let found = self.first_free(self.next, count).or_else(|| self.first_free(1, self.next))?;
        self.next = if found + 1 == count { 1 } else { found + 1 };
        Some(Vmid(found as u16))
    }
}

/// The invalidation in progress on this CPU has a VMID that no rollover gives to another tree.
pub(crate) struct Held<'a> {
    slot: &'a CpuSlot,
    pub(crate) vmid: Vmid,
}

impl Drop for Held<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.flushing.store(0, Ordering::Release);
    }
}

/// What there is to invalidate under.
pub(crate) enum Hold<'a> {
    /// This VMID.
    Held(Held<'a>),
    /// Nothing: no TLB has an entry of a tree that has no VMID.
    Unused,
}

/// Every VMID is in use by a running guest: there are more CPUs than VMIDs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OutOfVmids;

impl fmt::Display for OutOfVmids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more CPUs run guests than there are VMIDs")
    }
}

impl core::error::Error for OutOfVmids {}

impl VmidAllocator {
    const_unless_loom! {
        /// An allocator of VMIDs of 8 or 16 bits: what *all* CPUs have.
        pub fn new(sixteen_bits: bool) -> Self {
            Self {
                bits: if sixteen_bits { WIDE_BITS } else { NARROW_BITS },
                // All taken: the first to ask begins the first generation, and with it invalidates what was before us.
                generation: AtomicU64::new(0),
                book: Mutex::new(Book { taken: [u64::MAX; MAX_VMIDS / 64], next: 1 }),
            }
        }
    }

    /// How many rollovers there were, after the first VMID was given out.
    pub fn rollovers(&self) -> u64 {
        self.generation.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// The VMID under which the CPU of `slot` may now enter the guest of `tree`; see *Entry* above.
    #[inline]
    pub(crate) fn enter(
        &self,
        tree: &TreeVmid,
        slot: &CpuSlot,
        slots: &[CpuSlot],
        arch: &impl Arch,
    ) -> Result<Vmid, OutOfVmids> {
        let current = Stamped(tree.0.load(Ordering::Relaxed));
        let published = slot.running.load(Ordering::Relaxed);
        if published != 0
            && current.is_of(self.generation.load(Ordering::Acquire))
            && slot.running.compare_exchange(published, current.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return Ok(current.vmid());
        }
        let mut book = self.book.lock();
        let stamped = self.renew(&mut book, tree, slots, arch)?;
        slot.running.store(stamped.0, Ordering::Release);
        Ok(stamped.vmid())
    }

    /// The CPU of `slot` runs no guest any more.
    pub(crate) fn leave(&self, slot: &CpuSlot) {
        // Under the lock: a rollover must not see the VMID go while it decides whether to reserve it.
        let _book = self.book.lock();
        slot.running.store(0, Ordering::Release);
        slot.reserved.store(0, Ordering::Relaxed);
    }

    /// The VMID to invalidate under, held until dropped; see *Invalidation* above. To be called after the DSB that
    /// makes the change seen: a VMID that is given out later is then clean by itself.
    #[inline]
    pub(crate) fn hold<'a>(&self, tree: &TreeVmid, slot: &'a CpuSlot, slots: &[CpuSlot], arch: &impl Arch) -> Hold<'a> {
        let current = Stamped(tree.0.load(Ordering::Acquire));
        if current.0 != 0 {
            slot.flushing.store(current.0, Ordering::Relaxed);
            // Partner: the fence in `roll_over`.
            fence(Ordering::SeqCst);
            if current.is_of(self.generation.load(Ordering::Acquire)) {
                return Hold::Held(Held { slot, vmid: current.vmid() });
            }
            slot.flushing.store(0, Ordering::Release);
        }
        let mut book = self.book.lock();
        // Asked under the lock: a CPU that has entered before is seen, and one that enters for the first time later takes
        // the lock, too, and sees the change.
        if tree.0.load(Ordering::Relaxed) == 0 {
            return Hold::Unused;
        }
        let Ok(stamped) = self.renew(&mut book, tree, slots, arch) else {
            // It does not run, or its VMID would be reserved; and the rollover took all TLB entries.
            return Hold::Unused;
        };
        slot.flushing.store(stamped.0, Ordering::Relaxed);
        Hold::Held(Held { slot, vmid: stamped.vmid() })
    }

    /// Takes the VMID of a tree that is gone, after all its TLB entries are.
    pub(crate) fn release(&self, tree: &TreeVmid) {
        let mut book = self.book.lock();
        let current = Stamped(tree.0.swap(0, Ordering::AcqRel));
        if current.0 != 0 && current.is_of(self.generation.load(Ordering::Relaxed)) {
            book.give_back(current.vmid());
        }
    }

    /// A VMID of the current generation for `tree`: the one it has, the same number if it was reserved through a
    /// rollover, or a new one.
    fn renew(
        &self,
        book: &mut Book,
        tree: &TreeVmid,
        slots: &[CpuSlot],
        arch: &impl Arch,
    ) -> Result<Stamped, OutOfVmids> {
        let old = Stamped(tree.0.load(Ordering::Relaxed));
        let generation = self.generation.load(Ordering::Relaxed);
        if old.0 != 0 && old.is_of(generation) {
            return Ok(old);
        }
        if old.0 != 0 && self.is_reserved(old, slots) {
            return Ok(self.stamp(tree, old.vmid()));
        }
        let vmid = match book.find(self.bits) {
            Some(vmid) => vmid,
            None => {
                // The tree itself does not run: its VMID would be of this generation, or reserved.
                self.roll_over(book, slots, arch);
                book.find(self.bits).ok_or(OutOfVmids)?
            }
        };
        book.take(vmid);
        Ok(self.stamp(tree, vmid))
    }

    fn stamp(&self, tree: &TreeVmid, vmid: Vmid) -> Stamped {
        let stamped = Stamped(self.generation.load(Ordering::Relaxed) << GENERATION_SHIFT | u64::from(vmid.0));
        tree.0.store(stamped.0, Ordering::Release);
        stamped
    }

    /// Whether some CPU went through the rollovers since with `old`, so that its number is still its tree's. All such
    /// copies now carry the new generation.
    fn is_reserved(&self, old: Stamped, slots: &[CpuSlot]) -> bool {
        let mut reserved = false;
        for slot in slots {
            if slot.reserved.load(Ordering::Relaxed) == old.0 {
                let renewed = self.generation.load(Ordering::Relaxed) << GENERATION_SHIFT | u64::from(old.vmid().0);
                slot.reserved.store(renewed, Ordering::Relaxed);
                reserved = true;
            }
        }
        reserved
    }

    /// Begins a new generation: what runs or is being invalidated keeps its VMID, everything else loses it, and no TLB
    /// holds anything of before.
    fn roll_over(&self, book: &mut Book, slots: &[CpuSlot], arch: &impl Arch) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // Partner: the fence in `hold`.
        fence(Ordering::SeqCst);
        book.taken = [0; MAX_VMIDS / 64];
        book.next = 1;
        for slot in slots {
            let running = Stamped(slot.running.swap(0, Ordering::AcqRel));
            // Exchanged by an earlier rollover and not entered since: what that one reserved still runs.
            let running = if running.0 == 0 { Stamped(slot.reserved.load(Ordering::Relaxed)) } else { running };
            slot.reserved.store(running.0, Ordering::Relaxed);
            let flushing = Stamped(slot.flushing.load(Ordering::Acquire));
            for kept in [running, flushing] {
                if kept.0 != 0 {
                    book.take(kept.vmid());
                }
            }
        }
        arch.dsb(Dsb::Ishst);
        arch.tlbi(Tlbi::Alle1 { scope: Scope::InnerShareable });
        arch.dsb(Dsb::Ish);
    }
}
