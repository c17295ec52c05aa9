//! Quiescent-state-based reclamation, with the borrow checker as the proof.
//!
//! Each CPU claims one [`Reader`]. Walks borrow it shared (`&Reader`), announcing a quiescent state takes it exclusively
//! (`&mut Reader`): no reference into a table can live across a quiescent state, and this is a compile error where
//! elsewhere it is a comment. A read section is therefore zero instructions: it is the time between two announcements.
//!
//! ```compile_fail,E0502
//! # use stage2::quiescence::Reader;
//! fn across<'r>(reader: &'r mut Reader<'_>, walk: impl Fn(&'r Reader<'_>) -> &'r u64) -> u64 {
//!     let found = walk(reader);
//!     reader.quiescent(); // a table found before must not be used after
//!     *found
//! }
//! ```
//!
//! # Protocol
//! A slot holds 0 while its CPU is in an extended quiescent state (running the guest, idle, parked), else the last
//! epoch it announced. Whoever wants to free what readers may see: unlink it; `fence(SeqCst)`; advance the global epoch
//! to `e`; then wait until every slot holds 0 or at least `e`.
//!
//! - A slot that holds an epoch of `e` or later: its reader loaded the global epoch with *acquire* (or relaxed, then a
//!   fence) after the advance, which was a *release*. All its later loads see the unlinking. Its earlier loads were
//!   done before its *release* store of the slot, which the waiting side reads with *acquire*.
//! - A slot that holds 0: to leave the extended quiescent state a reader stores its slot, then `fence(SeqCst)`, then
//!   reads tables. The partner is the fence between the unlinking and the reading of slots. If the waiting side missed
//!   the store, its fence came first and the reader sees the unlinking; if not, it waits for that reader.
//!
//! A reader that is forgotten stalls the freeing and never corrupts. A `Reader` is not re-entrant: an interrupt handler
//! at EL2 has none of its own and must not walk.

use core::fmt;
use core::marker::PhantomData;

use crate::cpu::{Counters, CpuIndex, CpuSlot};
use crate::sync::{AtomicU64, Ordering, const_unless_loom, fence, probe};

const OFFLINE: u64 = 0;

/// A domain: the readers that are waited for together.
pub struct Quiescence<'h> {
    slots: &'h [CpuSlot],
    epoch: Epoch,
}

/// On a line of its own: readers load it at every announcement.
#[repr(align(128))]
struct Epoch(AtomicU64);

/// Why no [`Reader`] could be claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ClaimError {
    /// There is no slot for this CPU.
    NoSuchCpu(CpuIndex),
    /// The slot has a reader already.
    Claimed(CpuIndex),
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCpu(cpu) => write!(f, "there is no slot for cpu {}", cpu.0),
            Self::Claimed(cpu) => write!(f, "cpu {} has a reader already", cpu.0),
        }
    }
}

impl core::error::Error for ClaimError {}

impl<'h> Quiescence<'h> {
    const_unless_loom! {
        /// The domain of the CPUs that own `slots`.
        pub fn new(slots: &'h [CpuSlot]) -> Self {
            Self {
                slots,
                epoch: Epoch(AtomicU64::new(1)),
            }
        }
    }

    /// The slots of the domain's CPUs.
    pub fn slots(&self) -> &'h [CpuSlot] {
        self.slots
    }

    /// Claims the reader of `cpu`, which begins online. To be called once on that CPU; dropping the reader gives the
    /// slot back.
    ///
    /// # Errors
    /// [`ClaimError::NoSuchCpu`] if there is no such slot, [`ClaimError::Claimed`] if the slot has a reader.
    pub fn claim(&self, cpu: CpuIndex) -> Result<Reader<'_>, ClaimError> {
        let slot = self.slots.get(usize::from(cpu.0)).ok_or(ClaimError::NoSuchCpu(cpu))?;
        if slot.claimed.swap(true, Ordering::AcqRel) {
            return Err(ClaimError::Claimed(cpu));
        }
        let mut reader = Reader { domain: self, slot, cpu, not_send: PhantomData };
        reader.online();
        Ok(reader)
    }

    /// Begins a grace period: it is over once no reader can hold what was unlinked before this call.
    pub fn begin(&self) -> GracePeriod {
        // Partner: the fence in `Reader::online`.
        fence(Ordering::SeqCst);
        // Release: whoever announces the new epoch sees what was unlinked before.
        GracePeriod(self.epoch.0.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Whether `period` is over, and if not which CPU it waits for. Reads each slot once, waits for nothing.
    ///
    /// # Errors
    /// [`Waiting`] names the first CPU that has not quiesced.
    pub fn poll(&self, period: GracePeriod) -> Result<(), Waiting> {
        for (cpu, slot) in self.slots.iter().enumerate() {
            // Acquire: what is freed next is freed after the reader's last use of it.
            let announced = slot.epoch.load(Ordering::Acquire);
            if announced != OFFLINE && announced < period.0 {
                return Err(Waiting(CpuIndex(cpu as u16)));
            }
        }
        Ok(())
    }

    /// How many grace periods were begun.
    pub fn periods(&self) -> u64 {
        self.epoch.0.load(Ordering::Relaxed) - 1
    }

    /// Holds `value` back until `period`, begun after readers stopped finding it, is over. Many values can share one.
    pub(crate) fn retire_in<T>(&self, value: T, period: GracePeriod) -> Quiescing<'_, T> {
        Quiescing { value, period, domain: self }
    }

    /// Holds `value` back until all that readers may see of it now is forgotten.
    pub fn retire<T>(&self, value: T) -> Quiescing<'_, T> {
        Quiescing { value, period: self.begin(), domain: self }
    }
}

/// A grace period that was begun.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GracePeriod(u64);

/// The grace period is not over: this CPU has not announced a quiescent state since it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Waiting(pub CpuIndex);

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu {} has not quiesced", self.0.0)
    }
}

impl core::error::Error for Waiting {}

/// A value that readers may still see, to be had back once they cannot.
#[must_use = "what waits for a grace period is lost if this is dropped"]
pub struct Quiescing<'q, T> {
    value: T,
    period: GracePeriod,
    domain: &'q Quiescence<'q>,
}

impl<T: fmt::Debug> fmt::Debug for Quiescing<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quiescing").field("value", &self.value).field("period", &self.period).finish_non_exhaustive()
    }
}

#[cfg(feature = "defmt")]
impl<T: defmt::Format> defmt::Format for Quiescing<'_, T> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Quiescing {{ value: {}, period: {}, .. }}", self.value, self.period);
    }
}

impl<'q, T> Quiescing<'q, T> {
    /// A look at the value: readers may be looking, too.
    pub fn peek(&self) -> &T {
        &self.value
    }

    /// The value, without waiting: for a caller who owns all that readers could reach it through.
    pub(crate) fn into_inner_exclusive(self) -> T {
        self.value
    }

    /// The value, if the grace period is over.
    ///
    /// # Errors
    /// The value stays held back, and the CPU that is waited for is named.
    pub fn poll(self) -> Result<T, (Self, Waiting)> {
        match self.domain.poll(self.period) {
            Ok(()) => Ok(self.value),
            Err(waiting) => Err((self, waiting)),
        }
    }

    /// Whether [`Self::poll`] would succeed.
    ///
    /// # Errors
    /// The CPU that is waited for.
    pub fn check(&self) -> Result<(), Waiting> {
        self.domain.poll(self.period)
    }
}

/// One CPU's right to look at tables: see the [module](self).
///
/// Neither `Send` nor `Sync`: it speaks for the CPU that claimed it.
///
/// ```compile_fail,E0277
/// fn needs_send<T: Send>() {}
/// needs_send::<stage2::quiescence::Reader<'static>>();
/// ```
pub struct Reader<'h> {
    domain: &'h Quiescence<'h>,
    slot: &'h CpuSlot,
    cpu: CpuIndex,
    not_send: PhantomData<*const ()>,
}

impl Reader<'_> {
    /// Announces a quiescent state: this CPU holds nothing it found in a table.
    #[inline(always)]
    pub fn quiescent(&mut self) {
        probe::section_ended();
        // Acquire: partner of the release in `begin`. Release: partner of the acquire in `poll`.
        let epoch = self.domain.epoch.0.load(Ordering::Acquire);
        self.slot.epoch.store(epoch, Ordering::Release);
    }

    /// Runs `f` in an extended quiescent state: the guest, WFI, parking. Nobody waits for this CPU meanwhile.
    #[inline(always)]
    pub fn offline<T>(&mut self, f: impl FnOnce() -> T) -> T {
        /// Comes back online even if `f` unwinds (on a host), since the reader could then be used again.
        struct BackOnline<'a, 'h>(&'a mut Reader<'h>);
        impl Drop for BackOnline<'_, '_> {
            #[inline(always)]
            fn drop(&mut self) {
                self.0.online();
            }
        }
        probe::section_ended();
        // Release: all reads of this section are done before others see the slot.
        self.slot.epoch.store(OFFLINE, Ordering::Release);
        let _back = BackOnline(self);
        f()
    }

    #[inline(always)]
    fn online(&mut self) {
        let epoch = self.domain.epoch.0.load(Ordering::Relaxed);
        // Release: whoever reads this, and not the zero before it, must see the earlier sections over, too.
        self.slot.epoch.store(epoch, Ordering::Release);
        // Partner: the fence in `begin`.
        fence(Ordering::SeqCst);
    }

    /// The CPU this reader speaks for.
    #[inline(always)]
    pub fn cpu(&self) -> CpuIndex {
        self.cpu
    }

    /// Whether the reader belongs to `domain`.
    #[inline(always)]
    pub fn is_of(&self, domain: &Quiescence<'_>) -> bool {
        core::ptr::eq(core::ptr::from_ref(self.domain).cast::<()>(), core::ptr::from_ref(domain).cast::<()>())
    }

    #[inline(always)]
    pub(crate) fn slot(&self) -> &CpuSlot {
        self.slot
    }

    #[inline(always)]
    pub(crate) fn count(&self) -> &Counters {
        self.slot.counters()
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        probe::section_ended();
        self.slot.epoch.store(OFFLINE, Ordering::Release);
        self.slot.claimed.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn slots() -> [CpuSlot; 2] {
        [CpuSlot::new(), CpuSlot::new()]
    }

    #[test]
    fn a_grace_period_waits_for_every_online_reader_and_names_it() {
        let slots = slots();
        let domain = Quiescence::new(&slots);
        let mut first = domain.claim(CpuIndex(0)).unwrap();
        let mut second = domain.claim(CpuIndex(1)).unwrap();
        let period = domain.begin();
        assert_eq!(domain.poll(period), Err(Waiting(CpuIndex(0))));
        first.quiescent();
        assert_eq!(domain.poll(period), Err(Waiting(CpuIndex(1))));
        second.quiescent();
        assert_eq!(domain.poll(period), Ok(()));
    }

    #[test]
    fn nobody_waits_for_an_offline_reader() {
        let slots = slots();
        let domain = Quiescence::new(&slots);
        let mut reader = domain.claim(CpuIndex(1)).unwrap();
        let period = domain.begin();
        assert!(reader.offline(|| domain.poll(period)).is_ok());
        let period = domain.begin();
        assert!(domain.poll(period).is_err(), "back online, it is waited for");
    }

    #[test]
    fn a_slot_has_one_reader_at_a_time() {
        let slots = slots();
        let domain = Quiescence::new(&slots);
        let reader = domain.claim(CpuIndex(0)).unwrap();
        assert_eq!(domain.claim(CpuIndex(0)).err(), Some(ClaimError::Claimed(CpuIndex(0))));
        drop(reader);
        assert!(domain.claim(CpuIndex(0)).is_ok());
        assert_eq!(domain.claim(CpuIndex(2)).err(), Some(ClaimError::NoSuchCpu(CpuIndex(2))));
    }
}
