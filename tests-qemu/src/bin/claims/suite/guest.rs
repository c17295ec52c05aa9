//! A guest to make a claim with: a tree, its code mapped, one or two vCPUs waiting for orders on CPUs of their own, and the
//! hypervisor's side on the boot CPU.

use alloc::{format, string::String};
use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use spin::Mutex;
use stage2::{
    Ipa, IpaRange, Pa, Reader,
    descriptor::{Attributes, Permissions},
    dirty::{Content, DirtyBitmap},
    geometry::{Geometry, GeometryOptions, Granule, Granule4K, HardwareUpdate},
};
use stage2_platform::{
    cpus::{self, CpuIndex},
    partition::{self, Controls},
    timer::Alarm,
};
use stage2_tests_qemu::machine;

use super::{
    blob::{self, CODE},
    lab::{Bench, BenchStage2},
    mailbox::Mailbox,
    places::{Places, RAM},
    seat::{Order, Seat, Story},
    stage1::{self, Regime},
    verdict::OrSay,
};

/// The hypervisor and two vCPUs.
pub(crate) const CPUS: usize = 3;
const MAX_VCPUS: usize = CPUS - 1;
/// Its IPA space.
const IPA_BITS: u8 = 36;

/// What a guest is to be like.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    vcpus: usize,
    regime: Regime,
    ipa_bits: u8,
    logged_from: u64,
    updates: HardwareUpdate,
}

impl Setup {
    /// With `vcpus` (1 or 2) vCPUs, stage 1 off, logged from [`RAM`] on.
    pub(crate) const fn vcpus(vcpus: usize) -> Self {
        Self { vcpus, regime: Regime::OFF, ipa_bits: IPA_BITS, logged_from: RAM, updates: HardwareUpdate::None }
    }

    /// With an IPA space of so many bits, logged from `base` on.
    pub(crate) const fn logged_from(self, ipa_bits: u8, base: u64) -> Self {
        Self { ipa_bits, logged_from: base, ..self }
    }

    /// With the CPU updating so much of its leaves.
    pub(crate) const fn updating(self, updates: HardwareUpdate) -> Self {
        Self { updates, ..self }
    }

    /// With stage 1 on, its root and the table behind it mapped.
    pub(crate) const fn with_stage1(self) -> Self {
        Self { regime: Regime::ON, ..self }
    }

    /// With the CPU setting the Access flag of stage 1.
    pub(crate) const fn with_hardware_access_flag(self) -> Self {
        Self { regime: self.regime.with_hardware_access_flag(), ..self }
    }
}

/// The hypervisor's side of a guest.
pub(crate) struct Guest<'a, 'h, G: Granule = Granule4K> {
    pub(crate) stage2: &'a BenchStage2<'h, G>,
    pub(crate) reader: Reader<'h>,
    pub(crate) bench: &'a Bench<'h, G>,
    pub(crate) places: &'a Places<'a, 'h, G>,
    /// The vCPUs.
    pub(crate) vcpus: &'a [Mailbox],
}

/// `count` pages from `ipa` on.
pub(crate) fn pages<G: Granule>(ipa: u64, count: u64) -> IpaRange {
    let bytes = count << G::PAGE_SHIFT;
    IpaRange::new(Ipa::new(ipa), bytes).unwrap_or_else(|| panic!("no range: {count} pages from {ipa:#x}"))
}

impl<'h, G: Granule> Bench<'h, G> {
    /// An empty tree, logged from [`RAM`] on.
    pub(crate) fn tree(&self, ipa_bits: u8) -> Result<BenchStage2<'h, G>, String> {
        self.tree_of(ipa_bits, RAM, HardwareUpdate::None)
    }

    /// The same, logged from `base` on, whose hardware updates its leaves.
    fn tree_of(&self, ipa_bits: u8, base: u64, updates: HardwareUpdate) -> Result<BenchStage2<'h, G>, String> {
        let options = GeometryOptions::default().with_hardware_update(updates);
        let geometry = Geometry::new(ipa_bits, &self.features, options).or_say("geometry")?;
        let log = DirtyBitmap { base: Ipa::new(base), words: self.log() };
        BenchStage2::new(self.mmu, geometry, Some(log)).or_say("new tree")
    }

    /// Maps the guest's code.
    pub(crate) fn map_code(&self, stage2: &BenchStage2<'h, G>, reader: &Reader<'_>) -> Result<(), String> {
        let frame = self.frame(0)?;
        blob::copy_to(self.words(frame));
        let attributes = Attributes::normal(Permissions::RX);
        stage2.map(reader, pages::<G>(CODE, 1), frame, attributes, Content::New).or_say("map the code")
    }

    /// Makes a guest, lets `script` act as its hypervisor, and tears it down.
    pub(crate) fn guest<T: Send>(
        &self,
        setup: Setup,
        script: impl FnOnce(&mut Guest<'_, 'h, G>) -> Result<T, String> + Send,
    ) -> Result<T, String> {
        let stage2 = self.tree_of(setup.ipa_bits, setup.logged_from, setup.updates)?;
        let places = Places::new(self);
        let result = self.play(setup, &stage2, &places, script);
        let reader = self.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        stage2.teardown(&reader).map_err(|(_, in_use)| format!("teardown: {in_use:?}"))?;
        result
    }

    /// Runs `script` on this CPU and the vCPUs on others.
    fn play<T: Send>(
        &self,
        setup: Setup,
        stage2: &BenchStage2<'h, G>,
        places: &Places<'_, 'h, G>,
        script: impl FnOnce(&mut Guest<'_, 'h, G>) -> Result<T, String> + Send,
    ) -> Result<T, String> {
        let vcpus: ArrayVec<Mailbox, MAX_VCPUS> = (0..setup.vcpus.min(MAX_VCPUS)).map(|_| Mailbox::new()).collect();
        let script = Mutex::new(Some(script));
        let result = Mutex::new(Err("the script was not played".into()));
        let trouble: Mutex<Result<(), String>> = Mutex::new(Ok(()));
        cpus::scope(1 + vcpus.len(), |cpu| match vcpus.get(cpu.get().wrapping_sub(1)) {
            Some(mailbox) => {
                if let Err(reason) = self.serve(cpu, setup.regime, stage2, places, mailbox) {
                    *trouble.lock() = Err(reason);
                }
            }
            None => {
                if let Some(script) = script.lock().take() {
                    *result.lock() = self.direct(setup, stage2, places, &vcpus, script);
                }
                vcpus.iter().for_each(Mailbox::dismiss);
            }
        });
        trouble.into_inner()?;
        result.into_inner()
    }

    /// The hypervisor's CPU.
    fn direct<T>(
        &self,
        setup: Setup,
        stage2: &BenchStage2<'h, G>,
        places: &Places<'_, 'h, G>,
        vcpus: &[Mailbox],
        script: impl FnOnce(&mut Guest<'_, 'h, G>) -> Result<T, String>,
    ) -> Result<T, String> {
        let reader = self.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        self.map_code(stage2, &reader)?;
        let mut guest = Guest { stage2, reader, bench: self, places, vcpus };
        if setup.regime.is_on() {
            stage1::fill_root(guest.words(guest.map(stage1::ROOT, 0)?));
            let middle = guest.map(stage1::MIDDLE, 0)?;
            guest.words(middle)[0].store(stage1::table(stage1::LEAVES), Ordering::Relaxed);
        }
        script(&mut guest)
    }

    /// A vCPU's CPU.
    fn serve(
        &self,
        cpu: CpuIndex,
        regime: Regime,
        stage2: &BenchStage2<'h, G>,
        places: &Places<'_, 'h, G>,
        mailbox: &Mailbox,
    ) -> Result<(), String> {
        partition::prepare(Controls::default());
        regime.enter();
        // The guest leaves the GIC alone, so it can be had while one runs.
        let mut alarm = Alarm::new();
        let mut reader = self.mmu.reader(machine::index(cpu)).or_say("reader")?;
        let mut seat = match Seat::new(stage2, places, &reader) {
            Ok(seat) => seat,
            Err(reason) => {
                // The hypervisor may be waiting.
                while reader.offline(|| mailbox.receive(&mut alarm)).is_some() {
                    mailbox.report(Story::broken(reason.clone()));
                }
                return Err(reason);
            }
        };
        while let Some(order) = reader.offline(|| mailbox.receive(&mut alarm)) {
            mailbox.report(seat.execute(&mut reader, &order));
        }
        Ok(())
    }
}

impl<'h, G: Granule> Guest<'_, 'h, G> {
    /// Maps the page at `ipa` to a new frame, to be read, written and executed, each word of it `value`.
    pub(crate) fn map(&self, ipa: u64, value: u64) -> Result<Pa, String> {
        self.map_with(ipa, value, Permissions::RWX)
    }

    /// The same, with these permissions.
    pub(crate) fn map_with(&self, ipa: u64, value: u64, permissions: Permissions) -> Result<Pa, String> {
        let frame = self.bench.frame(value)?;
        let attributes = Attributes::normal(permissions);
        self.stage2.map(&self.reader, pages::<G>(ipa, 1), frame, attributes, Content::New).or_say("map")?;
        Ok(frame)
    }

    /// Unmaps `count` pages from `ipa` on.
    pub(crate) fn unmap(&self, ipa: u64, count: u64) -> Result<(), String> {
        let unmapped = self.stage2.unmap(&self.reader, pages::<G>(ipa, count)).or_say("unmap")?;
        match unmapped.peek().leaves {
            leaves if leaves == count => Ok(()),
            leaves => Err(format!("{leaves} pages were unmapped, not {count}")),
        }
    }

    /// Moves the page at `ipa` to a new frame, each word of it `value`. The old frame keeps what it has.
    pub(crate) fn replace(&self, ipa: u64, value: u64) -> Result<Pa, String> {
        self.unmap(ipa, 1)?;
        self.map(ipa, value)
    }

    /// The words of a frame.
    pub(crate) fn words(&self, frame: Pa) -> &'static [core::sync::atomic::AtomicU64] {
        self.bench.words(frame)
    }

    /// Has every vCPU load from `address`, expecting `value`: it is in its TLB then.
    pub(crate) fn all_see(&self, address: u64, value: u64) -> Result<(), String> {
        for vcpu in self.vcpus {
            match vcpu.execute(Order::load(address)).value()? {
                seen if seen == value => {}
                seen => return Err(format!("a vCPU sees {seen:#x}, not {value:#x}")),
            }
        }
        Ok(())
    }
}
