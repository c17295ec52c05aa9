//! What each CPU owns: one slot, on lines of its own.
//!
//! A slot is written by its CPU alone, except for `CpuSlot::running`, which a VMID rollover takes by exchange. Others
//! read it: the reclaimer the epoch, a rollover the VMIDs, a teardown the loaded tree, anybody the counters. So a CPU at
//! work dirties no line that another CPU at work needs.

use crate::sync::{AtomicBool, AtomicU64, Ordering, const_unless_loom};

/// The number of a CPU: its place in the slice of slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CpuIndex(pub u16);

/// One CPU's part of the shared state. The embedder provides one per CPU, usually as a `static` array.
#[repr(align(128))]
pub struct CpuSlot {
    /// Whether a `Reader` was claimed.
    pub(crate) claimed: AtomicBool,
    /// 0 in an extended quiescent state, else the epoch this CPU last announced.
    pub(crate) epoch: AtomicU64,
    /// The VMID (with its generation) under which this CPU runs a guest; 0 after a rollover.
    pub(crate) running: AtomicU64,
    /// The VMID this CPU had when the last rollover came, under the allocator's lock.
    pub(crate) reserved: AtomicU64,
    /// The VMID this CPU is invalidating under, held against rollover; 0 if none.
    pub(crate) flushing: AtomicU64,
    /// The identity of the tree in this CPU's VTTBR_EL2; 0 if none.
    pub(crate) loaded: AtomicU64,
    counters: Counters,
}

impl CpuSlot {
    const_unless_loom! {
        /// A slot nobody has claimed.
        pub fn new() -> Self {
            Self {
                claimed: AtomicBool::new(false),
                epoch: AtomicU64::new(0),
                running: AtomicU64::new(0),
                reserved: AtomicU64::new(0),
                flushing: AtomicU64::new(0),
                loaded: AtomicU64::new(0),
                counters: Counters::new(),
            }
        }
    }

    /// The counters, for anybody to read.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Default for CpuSlot {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// One CPU's counters. Only their CPU adds to them (a load and a store, no atomic read-modify-write), anybody may
        /// read them at any time.
        ///
        /// They are `core` atomics also under loom: nothing is decided by them.
        #[derive(Default)]
        pub struct Counters {
            $($name: core::sync::atomic::AtomicU64,)*
        }

        /// The sum of the counters of some CPUs.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub struct Statistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            const fn new() -> Self {
                Self { $($name: core::sync::atomic::AtomicU64::new(0),)* }
            }

            $(
                #[inline(always)]
                pub(crate) fn $name(&self, more: u64) {
                    let old = self.$name.load(Ordering::Relaxed);
                    self.$name.store(old.wrapping_add(more), Ordering::Relaxed);
                }
            )*
        }

        impl Statistics {
            /// What all `slots` together have counted so far.
            pub fn of(slots: &[CpuSlot]) -> Self {
                let mut sum = Self::default();
                for slot in slots {
                    $(sum.$name = sum.$name.wrapping_add(slot.counters.$name.load(Ordering::Relaxed));)*
                }
                sum
            }
        }
    };
}

counters! {
    /// Read-only walks begun.
    walks_read_only,
    /// Read-write walks begun.
    walks_read_write,
    /// Read-write walks that found the parent changed once the table was locked.
    revalidation_retries,
    /// Read-write walks that gave up optimism and coupled locks down from the root.
    coupled_walks,
    /// Translation faults resolved.
    faults_translation,
    /// Permission faults resolved.
    faults_permission,
    /// Access flag faults resolved.
    faults_access_flag,
    /// Faults that turned out to be accesses to emulated devices.
    faults_mmio,
    /// Faults that another CPU had already resolved.
    faults_spurious,
    /// Faults sent back to be taken again.
    faults_retry,
    /// Faults handed back to the guest.
    faults_reflected,
    /// TLBI by IPA, one entry each.
    tlbi_by_ipa,
    /// TLBI by range of IPA.
    tlbi_by_range,
    /// TLBI of all of a VMID's stage 2.
    tlbi_by_vmid,
    /// Invalidations on this CPU alone.
    tlbi_local,
    /// Blocks mapped where nothing was.
    blocks_mapped,
    /// Blocks that became tables of their parts.
    blocks_split,
    /// Tables that became blocks.
    blocks_collapsed,
    /// Pages that were young and were made old.
    pages_made_old,
    /// Tables linked into a tree.
    tables_linked,
    /// Tables taken out of a tree.
    tables_unlinked,
    /// Tables given back to table memory after both kinds of quiet.
    tables_freed,
    /// Times the reclaimer stopped unlinking because some CPU did not quiesce.
    stalls,
}
