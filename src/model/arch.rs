//! The instructions, recorded.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use crate::addr::{Ipa, Pa};
use crate::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};

/// Something the library told the machine to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Event {
    /// A DSB.
    Dsb(Dsb),
    /// An ISB.
    Isb,
    /// A TLB invalidation.
    Tlbi(Tlbi),
    /// The VMID that invalidations apply to was set.
    EnterVmid(Stage2Registers),
    /// And set back.
    LeaveVmid,
    /// A tree was loaded.
    Load(Stage2Registers),
    /// A tree was unloaded.
    Unload,
    /// Cache maintenance: clean and invalidate to the Point of Coherency.
    CleanInvalidate(Pa, u64),
    /// The instruction side was synchronized.
    Instructions(Pa, u64),
}

/// A machine that does nothing and remembers everything.
///
/// Under loom nothing is remembered: a barrier there is the DSB's effect on CPUs, and a trace would only make more states.
#[derive(Default)]
pub struct ModelArch {
    events: Mutex<Vec<Event>>,
    stage1: Mutex<BTreeMap<u64, Ipa>>,
}

impl ModelArch {
    /// A machine to which nothing has happened.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what was recorded so far.
    ///
    /// # Panics
    /// If a test has panicked while recording.
    pub fn take_events(&self) -> Vec<Event> {
        core::mem::take(&mut *self.events.lock().expect("no panic while recording"))
    }

    /// Makes the guest's stage 1 translate the page of `va` to the page of `ipa`.
    ///
    /// # Panics
    /// If a test has panicked meanwhile.
    pub fn map_stage1(&self, va: u64, ipa: Ipa) {
        self.stage1.lock().expect("no panic meanwhile").insert(va >> 12, ipa.align_down(12));
    }

    fn record(&self, event: Event) {
        if !cfg!(loom) {
            self.events.lock().expect("no panic while recording").push(event);
        }
    }
}

impl Arch for ModelArch {
    fn dsb(&self, barrier: Dsb) {
        self.record(Event::Dsb(barrier));
    }

    fn isb(&self) {
        self.record(Event::Isb);
    }

    fn tlbi(&self, operation: Tlbi) {
        self.record(Event::Tlbi(operation));
    }

    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext {
        self.record(Event::EnterVmid(registers));
        SavedContext::default()
    }

    fn leave_vmid(&self, _saved: SavedContext) {
        self.record(Event::LeaveVmid);
    }

    fn load(&self, registers: Stage2Registers) {
        self.record(Event::Load(registers));
    }

    fn unload(&self) {
        self.record(Event::Unload);
    }

    fn translate_stage1(&self, address: u64, _access: Stage1Access) -> u64 {
        const FAILED: u64 = 1;
        let stage1 = self.stage1.lock().expect("no panic meanwhile");
        stage1.get(&(address >> 12)).map_or(FAILED, |ipa| ipa.raw())
    }

    fn clean_invalidate_to_poc(&self, start: Pa, bytes: u64) {
        self.record(Event::CleanInvalidate(start, bytes));
    }

    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }

    fn is_loaded(&self, _registers: Stage2Registers) -> bool {
        true
    }

    fn synchronize_instructions(&self, start: Pa, bytes: u64, _clean: bool, _invalidate: bool) {
        self.record(Event::Instructions(start, bytes));
    }
}
