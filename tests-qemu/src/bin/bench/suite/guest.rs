//! A guest on this CPU, and what a hypervisor does when it traps.

use alloc::{format, string::String};
use core::cell::Cell;

use stage2::{
    Ipa, Reader,
    descriptor::{Attributes, Permissions},
    fault::{
        Backing, FaultError, Outcome, Page, Region, Syndrome, Unavailable,
        inject::{GuestRegisters, NotAGuestState},
    },
    stage2::RunError,
};
use stage2_platform::vcpu::{self, Exit, Vcpu};
use stage2_tests_qemu::{
    machine::{GuestLoaded, GuestStage2},
    say::{OrSay, expect},
};

use super::{
    guest_code::{CODE, Program, THROUGH, VECTORS},
    meter::{Meter, Sum},
};

/// What PSCI_VERSION answers.
const PSCI_VERSION: u64 = 0x1_0001;

/// A guest on this CPU.
pub(crate) struct Guest<'s, 'h> {
    loaded: GuestLoaded<'s, 'h>,
}

/// A backing: all of the memory is there from the start.
pub(crate) struct Mapped;

impl Backing for Mapped {
    fn region(&self, _: Ipa) -> Region {
        Region::Memory(Attributes::normal(Permissions::RW))
    }

    fn page(&self, _: Ipa, _: bool) -> Result<Page, Unavailable> {
        Err(Unavailable::Never)
    }

    fn unused(&self, _: Ipa, _: Page) {}
}

/// Round trips: how many, and where.
#[derive(Clone, Copy)]
pub(crate) struct Trips {
    pub(crate) program: Program,
    pub(crate) first: u64,
    pub(crate) stride: u64,
    pub(crate) count: u64,
}

/// How they ended.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Ends {
    pub(crate) calls: u64,
    pub(crate) resumed: u64,
    pub(crate) emulated: u64,
    pub(crate) reflected: u64,
}

/// Why the guest could not go on.
#[derive(Debug)]
#[expect(dead_code, reason = "what they hold is told in words")]
enum Trouble {
    Run(RunError),
    Fault(FaultError),
    Inject(NotAGuestState),
    Retry,
    Exit(Exit),
}

impl<'s, 'h> Guest<'s, 'h> {
    /// Loads the tree on this CPU, which is prepared; it has the code mapped.
    pub(crate) fn new(tree: &'s GuestStage2<'h>, reader: &Reader<'_>) -> Result<Self, String> {
        Ok(Self { loaded: tree.load(reader).or_say("load")? })
    }

    /// Stores to `count` doublewords from `ipa` on, `stride` bytes apart, and says how many faults it took.
    pub(crate) fn store(&mut self, reader: &mut Reader<'_>, ipa: u64, stride: u64, count: u64) -> Result<u64, String> {
        let mut vcpu = Vcpu::new(CODE, ipa);
        vcpu.x[1..4].copy_from_slice(&[ipa, stride, count]);
        let ends = self.serve(reader, &mut vcpu, &Mapped, |_| ()).or_say(&format!("at {:#x}", vcpu.elr))?;
        Ok(ends.resumed)
    }

    /// Makes round trips, and adds what they take to `sum`, the guest's own instructions among them. `meanwhile` is done before each
    /// fault is resolved.
    pub(crate) fn travel(
        &mut self,
        reader: &mut Reader<'_>,
        trips: Trips,
        backing: &impl Backing,
        sum: &mut Sum<'_>,
        meanwhile: impl Fn(&mut Sum<'_>, &Reader<'_>),
    ) -> Result<Ends, String> {
        let mut vcpu = Vcpu::new(Program::entry(), 0);
        vcpu.x[9..12].copy_from_slice(&[trips.first, trips.count, trips.stride]);
        vcpu.x[19] = sum.operation;
        vcpu.x[21..23].copy_from_slice(&[trips.program.address(), VECTORS]);
        let ends = self.serve(reader, &mut vcpu, backing, |reader| meanwhile(sum, reader));
        let ends = ends.or_say(&format!("at {:#x}", vcpu.elr))?;
        sum.add(vcpu.x[20]);
        Ok(ends)
    }

    /// What a hypervisor does: enters the guest, and serves what it traps for, until it is through.
    /// The guest's own instructions in a round trip: those of one to `address` that does not trap.
    pub(crate) fn own(&mut self, reader: &mut Reader<'_>, meter: &Meter, address: u64) -> Result<u64, String> {
        const COUNT: u64 = 100;
        let mut sum = meter.sum();
        let trips = Trips { program: Program::Store, first: address, stride: 0, count: COUNT };
        let ends = self.travel(reader, trips, &Mapped, &mut sum, |_, _| ())?;
        expect("traps", ends, Ends::default())?;
        expect("a part of an instruction", sum.instructions % COUNT, 0)?;
        Ok(sum.instructions / COUNT)
    }

    fn serve(
        &mut self,
        reader: &mut Reader<'_>,
        vcpu: &mut Vcpu,
        backing: &impl Backing,
        mut meanwhile: impl FnMut(&Reader<'_>),
    ) -> Result<Ends, Trouble> {
        let mut ends = Ends::default();
        let device = Cell::new(0);
        loop {
            // SAFETY: the CPU is prepared, and the tree is loaded; it maps nothing but frames that EL2 leaves alone.
            let exit = self.loaded.run(reader, || unsafe { vcpu.enter() }).map_err(Trouble::Run)?;
            let Exit::Sync(syndrome) = exit else { return Err(Trouble::Exit(exit)) };
            if syndrome.class() == vcpu::Syndrome::HVC {
                if syndrome.esr & 0xffff == THROUGH {
                    return Ok(ends);
                }
                vcpu.x[0] = PSCI_VERSION;
                ends.calls += 1;
                continue;
            }
            meanwhile(reader);
            let syndrome = Syndrome { esr: syndrome.esr, far: syndrome.far, hpfar: syndrome.hpfar };
            // By reference: what happened is not moved about.
            match &self.loaded.resolve(reader, backing, syndrome) {
                Ok(Outcome::Resumed) => ends.resumed += 1,
                Ok(Outcome::Retry) => return Err(Trouble::Retry),
                Err(error) => return Err(Trouble::Fault(*error)),
                Ok(Outcome::Mmio(access)) => {
                    let register = access.register.and_then(|number| vcpu.x.get_mut(usize::from(number)));
                    match register {
                        Some(register) if access.write => device.set(access.stored(*register)),
                        Some(register) => *register = access.loaded(device.get()),
                        None => device.set(0),
                    }
                    vcpu.skip_instruction();
                    ends.emulated += 1;
                }
                Ok(Outcome::Reflect(reflection)) => {
                    let registers =
                        GuestRegisters { elr_el2: vcpu.elr, spsr_el2: vcpu.spsr, ..GuestRegisters::default() };
                    let injection = reflection.inject(&registers).map_err(Trouble::Inject)?;
                    vcpu.inject(injection.esr_el1, injection.far_el1);
                    ends.reflected += 1;
                }
            }
        }
    }
}
