//! The instructions with something taken away: what the twins run on.
//!
//! The library does not know. It issues its sequence as ever; what of it reaches the machine is decided here.

use aarch64_cpu::registers::{PAR_EL1, Writeable};
use stage2::{
    Pa,
    arch::{Aarch64, Arch, Dsb, SavedContext, Scope, Stage1Access, Stage2Registers, Tlbi},
    geometry::Features,
};
use stage2_platform::trace;

/// What becomes of a TLB invalidation.
type Filter = fn(Tlbi) -> Option<Tlbi>;

/// Whether a barrier is issued.
pub(crate) type Keeps = fn(Dsb) -> bool;

/// The machine, less something.
pub(crate) struct Lessened {
    real: Aarch64,
    less: Less,
}

/// What is taken away.
#[derive(Clone, Copy)]
pub(crate) struct Less {
    tlbi: Filter,
    dsb: Keeps,
    /// Trees are not unloaded; the next one takes the place of the last.
    stays_loaded: bool,
    /// All trees run under this VMID.
    vmid: Option<u16>,
    /// The guest's PAR_EL1 is lost.
    loses_par: bool,
    /// What a tracer is told to expect.
    traced: trace::Lessened,
}

impl Less {
    /// Nothing.
    pub(crate) const NOTHING: Self = Self { traced: trace::Lessened::No, ..Self::tlbi(Some) };

    /// What `filter` makes of each TLB invalidation is issued instead.
    pub(crate) const fn tlbi(filter: Filter) -> Self {
        Self {
            tlbi: filter,
            dsb: |_| true,
            stays_loaded: false,
            vmid: None,
            loses_par: false,
            traced: trace::Lessened::Visibly,
        }
    }

    /// Without any TLB invalidation.
    pub(crate) const fn without_tlbi() -> Self {
        Self::tlbi(|_| None)
    }

    /// Without invalidation of what was cached by virtual address.
    pub(crate) const fn without_vmalle1() -> Self {
        Self::tlbi(|operation| (!matches!(operation, Tlbi::Vmalle1 { .. })).then_some(operation))
    }

    /// Without invalidation of what was cached by IPA.
    pub(crate) const fn without_ipas2e1() -> Self {
        Self::tlbi(|operation| (!matches!(operation, Tlbi::Ipa { .. } | Tlbi::IpaRange { .. })).then_some(operation))
    }

    /// Without invalidation of all that is cached of a guest.
    pub(crate) const fn without_vmalls12e1() -> Self {
        Self::tlbi(|operation| (!matches!(operation, Tlbi::Vmalls12e1 { .. })).then_some(operation))
    }

    /// Without invalidation of all guests.
    pub(crate) const fn without_alle1() -> Self {
        Self::tlbi(|operation| (!matches!(operation, Tlbi::Alle1 { .. })).then_some(operation))
    }

    /// And without the barriers that `keeps` does not keep. What that does no guest under QEMU sees; a tracer does.
    pub(crate) const fn and_keeps(self, keeps: Keeps) -> Self {
        Self { dsb: keeps, traced: trace::Lessened::Visibly, ..self }
    }

    /// Invalidates on the own CPU alone. (QEMU broadcasts the local VMALLS12E1, too: of that it is no twin.)
    pub(crate) const fn local_only() -> Self {
        Self::tlbi(|operation| {
            let scope = Scope::Local;
            Some(match operation {
                Tlbi::Ipa { ipa, ttl, .. } => Tlbi::Ipa { ipa, ttl, scope },
                Tlbi::IpaRange { operand, .. } => Tlbi::IpaRange { operand, scope },
                Tlbi::Vmalle1 { .. } => Tlbi::Vmalle1 { scope },
                Tlbi::Vmalls12e1 { .. } => Tlbi::Vmalls12e1 { scope },
                Tlbi::Alle1 { .. } => Tlbi::Alle1 { scope },
            })
        })
    }

    /// By IPA, invalidates the neighbour.
    pub(crate) const fn wrong_ipa() -> Self {
        Self::tlbi(|operation| {
            Some(match operation {
                Tlbi::Ipa { ipa, ttl, scope } => Tlbi::Ipa { ipa: ipa.offset(0x1000), ttl, scope },
                Tlbi::IpaRange { mut operand, scope } => {
                    operand.base = operand.base.offset(operand.pages() << operand.page_shift);
                    Tlbi::IpaRange { operand, scope }
                }
                other => other,
            })
        })
    }

    /// And trees are not unloaded: a CPU may walk one that the library takes to be loaded nowhere.
    pub(crate) const fn and_stays_loaded(self) -> Self {
        Self { stays_loaded: true, ..self }.and_unjudged()
    }

    /// And a tracer need not find it out.
    pub(crate) const fn and_unjudged(self) -> Self {
        Self { traced: trace::Lessened::Unjudged, ..self }
    }

    /// And there is but one VMID.
    pub(crate) const fn and_one_vmid(self) -> Self {
        Self { vmid: Some(1), traced: trace::Lessened::Visibly, ..self }
    }

    /// Without putting the guest's PAR_EL1 back.
    pub(crate) const fn without_par() -> Self {
        Self { loses_par: true, traced: trace::Lessened::Unjudged, ..Self::NOTHING }
    }

    /// What a tracer is told to expect.
    pub(crate) const fn traced(&self) -> trace::Lessened {
        self.traced
    }

    fn registers(&self, registers: Stage2Registers) -> Stage2Registers {
        const VMID_SHIFT: u32 = 48;
        let Some(vmid) = self.vmid else { return registers };
        let root = registers.vttbr & !(0xffff << VMID_SHIFT);
        Stage2Registers { vttbr: root | u64::from(vmid) << VMID_SHIFT, ..registers }
    }
}

impl Lessened {
    /// The machine whose CPUs have `features`, less `less`. For one bench at a time.
    pub(crate) fn new(features: &Features, less: Less) -> Self {
        // SAFETY: the platform runs Rust code at EL2 with translation on and maps all RAM write-back, one to one. Of the
        // registers in question it writes HCR_EL2 alone, in `partition::prepare`, before a tree is loaded. There is one `Mmu`
        // at a time, and before the next no CPU has a tree and no TLB an entry of the last (`Self::forget_guests`). Readers
        // are claimed by the CPU they are for.
        let real = unsafe { Aarch64::new(0, features) };
        Self { real, less }
    }

    /// Drops what this CPU and the TLBs hold of any guest: twins leave things there. The other CPUs were parked since.
    pub(crate) fn forget_guests(&self) {
        self.real.unload();
        self.real.dsb(Dsb::Ish);
        self.real.tlbi(Tlbi::Alle1 { scope: Scope::InnerShareable });
        self.real.dsb(Dsb::Ish);
        self.real.isb();
    }
}

impl Arch for Lessened {
    fn dsb(&self, barrier: Dsb) {
        if (self.less.dsb)(barrier) {
            self.real.dsb(barrier);
        }
    }

    fn isb(&self) {
        self.real.isb();
    }

    fn tlbi(&self, operation: Tlbi) {
        if let Some(operation) = (self.less.tlbi)(operation) {
            self.real.tlbi(operation);
        }
    }

    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext {
        self.real.enter_vmid(self.less.registers(registers))
    }

    fn leave_vmid(&self, saved: SavedContext) {
        self.real.leave_vmid(saved);
    }

    fn load(&self, registers: Stage2Registers) {
        self.real.load(self.less.registers(registers));
    }

    fn unload(&self) {
        if !self.less.stays_loaded {
            self.real.unload();
        }
    }

    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        self.real.in_guest_regime(f)
    }

    fn is_loaded(&self, registers: Stage2Registers) -> bool {
        self.real.is_loaded(self.less.registers(registers))
    }

    fn translate_stage1(&self, address: u64, access: Stage1Access) -> u64 {
        let par = self.real.translate_stage1(address, access);
        if self.less.loses_par {
            PAR_EL1.set(par);
        }
        par
    }

    fn clean_invalidate_to_poc(&self, start: Pa, bytes: u64) {
        self.real.clean_invalidate_to_poc(start, bytes);
    }

    fn synchronize_instructions(&self, start: Pa, bytes: u64, clean: bool, invalidate: bool) {
        self.real.synchronize_instructions(start, bytes, clean, invalidate);
    }
}
