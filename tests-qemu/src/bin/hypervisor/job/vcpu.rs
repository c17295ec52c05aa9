//! A vCPU's life: wait to be turned on, run the guest, answer why it left, until the guest ends.

use stage2::{
    Reader,
    fault::{self, Outcome, inject::GuestRegisters},
};
use stage2_platform::{
    cpus,
    partition::{self, Controls},
    psci::{Action, Conduit, Start},
    vcpu::{Exit, Syndrome, Vcpu},
};
use stage2_tests_qemu::machine::GuestLoaded;

use super::shared::{Ending, Shared};

/// Serves this CPU's vCPU until the guest has ended.
pub(crate) fn run(shared: &Shared<'_>, mut reader: Reader<'_>) {
    let mut first = true;
    while let Some(start) = reader.offline(|| shared.psci.wait()) {
        if core::mem::take(&mut first) {
            shared.note_started();
        }
        if let Err(trouble) = run_from(shared, &mut reader, start) {
            defmt::error!("CPU {}: {}", reader.cpu().0, trouble);
            shared.violation();
            shared.end(Ending::Stopped);
        }
    }
    drop(reader);
    shared.note_left();
}

/// Why a vCPU cannot go on.
#[derive(Clone, Copy, Debug, defmt::Format)]
enum Trouble {
    Load(stage2::stage2::LoadError),
    Run(stage2::stage2::RunError),
    Fault(fault::FaultError, Syndrome),
    /// The guest was in a state that no exception can be injected into.
    Inject(fault::inject::NotAGuestState),
    /// It left for a reason that is not enabled.
    Exit(Exit),
}

/// Runs the vCPU from where it was turned on to where it is off, or the guest's end. A CPU that was parked has lost its
/// registers: all are set up anew.
fn run_from(shared: &Shared<'_>, reader: &mut Reader<'_>, start: Start) -> Result<(), Trouble> {
    partition::prepare(Controls::default());
    let mut loaded = shared.stage2.load(reader).map_err(Trouble::Load)?;
    let mut vcpu = start.vcpu();
    while !shared.psci.is_down() {
        // SAFETY: the CPU is prepared, and the tree is loaded; `GuestMemory` maps nothing but frames, which Rust code
        // accesses as atomics alone, and the devices that belong to the guest.
        let exit = loaded.run(reader, || unsafe { vcpu.enter() }).map_err(Trouble::Run)?;
        let Exit::Sync(syndrome) = exit else { return Err(Trouble::Exit(exit)) };
        let action = match syndrome.class() {
            Syndrome::HVC => shared.psci.call(&mut vcpu, Conduit::Hvc),
            Syndrome::SMC => shared.psci.call(&mut vcpu, Conduit::Smc),
            Syndrome::DATA_ABORT | Syndrome::INSTRUCTION_ABORT => {
                abort(shared, &loaded, reader, &mut vcpu, syndrome)?;
                Action::Resume
            }
            _ => {
                vcpu.inject_undefined();
                Action::Resume
            }
        };
        match action {
            Action::Resume => {}
            Action::Off => return Ok(()),
            Action::SystemOff => {
                shared.end(Ending::PoweredOff);
                return Ok(());
            }
            Action::SystemReset => {
                shared.end(Ending::Reset);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Serves a stage-2 fault.
fn abort(
    shared: &Shared<'_>,
    loaded: &GuestLoaded<'_, '_>,
    reader: &Reader<'_>,
    vcpu: &mut Vcpu,
    syndrome: Syndrome,
) -> Result<(), Trouble> {
    let Syndrome { esr, far, hpfar } = syndrome;
    let outcome = loaded
        .resolve(reader, &shared.memory, fault::Syndrome { esr, far, hpfar })
        .map_err(|error| Trouble::Fault(error, syndrome))?;
    match outcome {
        Outcome::Resumed => {}
        // Another CPU has to finish something first.
        Outcome::Retry => cpus::yield_now(),
        Outcome::Mmio(access) => {
            shared.devices.access(&access, &mut vcpu.x);
            vcpu.skip_instruction();
        }
        Outcome::Reflect(reflection) => {
            defmt::warn!("CPU {}: the guest gets {}, at {=u64:#x}", reader.cpu().0, reflection, vcpu.elr);
            let registers = GuestRegisters { elr_el2: vcpu.elr, spsr_el2: vcpu.spsr, ..GuestRegisters::default() };
            let injection = reflection.inject(&registers).map_err(Trouble::Inject)?;
            vcpu.inject(injection.esr_el1, injection.far_el1);
        }
    }
    Ok(())
}
