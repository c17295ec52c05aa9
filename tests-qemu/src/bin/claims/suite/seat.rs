//! A vCPU on the CPU that executes this: does what an order says, and tells what came of it.

use alloc::{format, string::String};

use aarch64_cpu::registers::{ELR_EL1, ESR_EL1, FAR_EL1, PAR_EL1, Readable, SCTLR_EL1, SPSR_EL1, VBAR_EL1, Writeable};
use arrayvec::ArrayVec;
use stage2::{
    Reader,
    fault::{Outcome, Syndrome, inject::GuestRegisters},
    geometry::Granule,
    stage2::Loaded,
};
use stage2_platform::vcpu::{self, Exit, Vcpu};
use stage2_tests_qemu::tables::TracedPool;

use super::{
    blob::{CODE, Piece, VECTORS},
    lab::BenchStage2,
    lessened::Lessened,
    places::Places,
    verdict::OrSay,
};

/// How many faults a story remembers.
const REMEMBERED: usize = 4;
/// After so many faults an access is taken to fault for ever.
const ENOUGH: u32 = 16;

/// What a vCPU is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    piece: Piece,
    x: [u64; 3],
    faults: Faults,
    /// What the device answers.
    device: u64,
}

/// What becomes of a stage-2 fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Faults {
    /// The order ends.
    End,
    /// It is resolved, but not for ever.
    Resolve,
    /// It is resolved as often as it comes.
    ResolveAlways,
}

impl Order {
    /// Executes `piece` with `x0` and `x1`; a stage-2 fault ends it.
    pub(crate) const fn new(piece: Piece, x0: u64, x1: u64) -> Self {
        Self { piece, x: [x0, x1, 0], faults: Faults::End, device: 0 }
    }

    /// Loads from there.
    pub(crate) const fn load(address: u64) -> Self {
        Self::new(Piece::Load, address, 0)
    }

    /// Stores `value` there.
    pub(crate) const fn store(address: u64, value: u64) -> Self {
        Self::new(Piece::Store, address, value)
    }

    /// Adds up `count` doublewords, `stride` bytes apart.
    pub(crate) const fn sum(address: u64, stride: u64, count: u64) -> Self {
        Self { x: [address, stride, count], ..Self::new(Piece::Sum, 0, 0) }
    }

    /// Stores rounds to `count` pages; what is said of it and what it says is at `control`.
    pub(crate) const fn rounds(address: u64, control: u64, count: u64) -> Self {
        Self { x: [address, control, count], ..Self::new(Piece::Rounds, 0, 0) }
    }

    /// And `x2` is this.
    pub(crate) const fn with_x2(self, x2: u64) -> Self {
        Self { x: [self.x[0], self.x[1], x2], ..self }
    }

    /// And stage-2 faults are resolved.
    pub(crate) const fn resolving(self) -> Self {
        Self { faults: Faults::Resolve, ..self }
    }

    /// And stage-2 faults are resolved, how many there may be.
    pub(crate) const fn resolving_always(self) -> Self {
        Self { faults: Faults::ResolveAlways, ..self }
    }

    /// And the device answers `data`.
    pub(crate) const fn with_device(self, data: u64) -> Self {
        Self { device: data, ..self }
    }
}

/// What came of an order.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    pub(crate) end: End,
    /// Stage-2 faults on the way.
    pub(crate) faults: u32,
    /// What the CPU said of the first of them.
    pub(crate) syndromes: ArrayVec<Syndrome, REMEMBERED>,
    /// What the library said to the first of them.
    pub(crate) outcomes: ArrayVec<Outcome, REMEMBERED>,
    /// PAR_EL1 at the end; it was [`PAR`] at the start.
    pub(crate) par: u64,
}

/// What the guest has in PAR_EL1: some translation of its own.
pub(crate) const PAR: u64 = 0xff00_0012_3456_7b80;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The piece was executed to its end; its registers.
    Done([u64; 8]),
    /// A stage-2 fault that was not to be resolved.
    Fault,
    /// The guest took an exception of its own.
    Exception(Exception),
    /// It faulted for ever.
    Stuck,
    /// Something that should not happen.
    Broken(String),
}

/// What the guest's vector sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) esr: u64,
    pub(crate) far: u64,
    pub(crate) elr: u64,
    pub(crate) spsr: u64,
    /// From VBAR_EL1.
    pub(crate) vector: u64,
}

impl Story {
    /// Nothing yet.
    const fn new() -> Self {
        Self { end: End::Stuck, faults: 0, syndromes: ArrayVec::new_const(), outcomes: ArrayVec::new_const(), par: 0 }
    }

    /// There could be none.
    pub(crate) fn broken(reason: String) -> Self {
        Self { end: End::Broken(reason), ..Self::new() }
    }

    /// x1 when the piece was executed to its end.
    pub(crate) fn value(&self) -> Result<u64, String> {
        self.register(1)
    }

    /// Register `n` when the piece was executed to its end.
    pub(crate) fn register(&self, n: usize) -> Result<u64, String> {
        match &self.end {
            End::Done(x) => x.get(n).copied().or_say("no such register"),
            end => Err(format!("the guest ended with {end:x?}, {:x?}", self.syndromes)),
        }
    }

    /// The fault that ended it.
    pub(crate) fn fault(&self) -> Result<Syndrome, String> {
        match (&self.end, self.syndromes.last()) {
            (End::Fault, Some(&syndrome)) => Ok(syndrome),
            (end, _) => Err(format!("no fault, but {end:x?}")),
        }
    }

    /// The exception that the guest took.
    pub(crate) fn exception(&self) -> Result<Exception, String> {
        match &self.end {
            End::Exception(exception) => Ok(*exception),
            end => Err(format!("no exception, but {end:x?}")),
        }
    }
}

/// A vCPU on this CPU, whose tree is loaded.
pub(crate) struct Seat<'s, 'h, G: Granule> {
    loaded: Loaded<'s, 'h, Lessened, TracedPool<G>>,
    places: &'s Places<'s, 'h, G>,
}

impl<'s, 'h, G: Granule> Seat<'s, 'h, G> {
    /// Loads the tree on this CPU, which is prepared, with EL1's registers set ([`Regime::enter`](super::stage1::Regime::enter)).
    pub(crate) fn new(
        stage2: &'s BenchStage2<'h, G>,
        places: &'s Places<'s, 'h, G>,
        reader: &Reader<'_>,
    ) -> Result<Self, String> {
        Ok(Self { loaded: stage2.load(reader).or_say("load")?, places })
    }

    /// Does what `order` says.
    pub(crate) fn execute(&mut self, reader: &mut Reader<'_>, order: &Order) -> Story {
        let mut story = Story::new();
        let mut vcpu = Vcpu::new(order.piece.entry(), 0);
        vcpu.x[..order.x.len()].copy_from_slice(&order.x);
        PAR_EL1.set(PAR);
        while order.faults == Faults::ResolveAlways || story.faults < ENOUGH {
            match self.step(reader, order, &mut vcpu, &mut story) {
                Ok(None) => {}
                Ok(Some(end)) => {
                    story.end = end;
                    break;
                }
                Err(reason) => {
                    story.end = End::Broken(reason);
                    break;
                }
            }
        }
        story.par = PAR_EL1.get();
        story
    }

    /// Runs the guest until its next exit and serves that; the end, if it is that.
    fn step(
        &mut self,
        reader: &mut Reader<'_>,
        order: &Order,
        vcpu: &mut Vcpu,
        story: &mut Story,
    ) -> Result<Option<End>, String> {
        // SAFETY: the CPU is prepared, and the tree is loaded; it maps nothing but frames of the bench, which are only
        // accessed as atomics.
        let exit = self.loaded.run(reader, || unsafe { vcpu.enter() }).or_say("run")?;
        let Exit::Sync(syndrome) = exit else { return Err(format!("{exit:?}")) };
        match syndrome.class() {
            vcpu::Syndrome::HVC => return Ok(Some(called(vcpu, syndrome.esr & 0xffff))),
            vcpu::Syndrome::DATA_ABORT | vcpu::Syndrome::INSTRUCTION_ABORT => {}
            _ => return Err(format!("{syndrome:x?} at {:#x}", vcpu.elr)),
        }
        let syndrome = Syndrome { esr: syndrome.esr, far: syndrome.far, hpfar: syndrome.hpfar };
        story.faults += 1;
        // What comes after the first few is more of the same.
        let _ = story.syndromes.try_push(syndrome);
        if order.faults == Faults::End {
            return Ok(Some(End::Fault));
        }
        let outcome = self.resolve(reader, order, vcpu, syndrome)?;
        let _ = story.outcomes.try_push(outcome);
        Ok(None)
    }

    /// Resolves a fault as a hypervisor does.
    fn resolve(
        &self,
        reader: &Reader<'_>,
        order: &Order,
        vcpu: &mut Vcpu,
        syndrome: Syndrome,
    ) -> Result<Outcome, String> {
        let outcome = self.loaded.resolve(reader, self.places, syndrome).or_say("resolve")?;
        match outcome {
            Outcome::Resumed | Outcome::Retry => {}
            Outcome::Mmio(access) => {
                if let (false, Some(register)) = (access.write, access.register) {
                    vcpu.x[usize::from(register)] = access.loaded(order.device);
                }
                vcpu.skip_instruction();
            }
            Outcome::Reflect(reflection) => {
                let registers = GuestRegisters {
                    elr_el2: vcpu.elr,
                    spsr_el2: vcpu.spsr,
                    sctlr_el1: SCTLR_EL1.get(),
                    vbar_el1: VBAR_EL1.get(),
                    ..GuestRegisters::default()
                };
                let injection = reflection.inject(&registers).or_say("inject")?;
                ESR_EL1.set(injection.esr_el1);
                FAR_EL1.set(injection.far_el1);
                ELR_EL1.set(injection.elr_el1);
                SPSR_EL1.set(injection.spsr_el1);
                vcpu.elr = injection.elr_el2;
                vcpu.spsr = injection.spsr_el2;
            }
        }
        Ok(outcome)
    }
}

/// The end of a piece (`HVC #0`), or a vector (`HVC #1`).
fn called(vcpu: &Vcpu, number: u64) -> End {
    const HVC_BYTES: u64 = 4;
    if number == 0 {
        let mut x = [0; 8];
        x.copy_from_slice(&vcpu.x[..8]);
        return End::Done(x);
    }
    End::Exception(Exception {
        esr: ESR_EL1.get(),
        far: FAR_EL1.get(),
        elr: ELR_EL1.get(),
        spsr: SPSR_EL1.get(),
        vector: vcpu.elr.wrapping_sub(HVC_BYTES + CODE + VECTORS),
    })
}
