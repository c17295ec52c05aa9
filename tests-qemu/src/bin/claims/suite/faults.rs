//! Claims about faults: what the CPU reports, the library understands, and the guest sees.

use alloc::{format, string::String};

use stage2::{
    Ipa,
    descriptor::Permissions,
    fault::{
        Outcome,
        decode::{Access, FaultAddress, MmioAccess, MmioSize, decode},
        syndrome::FaultClass,
    },
    geometry::Granule4K,
};

use super::{
    blob::{self, Piece},
    guest::{Guest, Setup, pages},
    lab::Lab,
    lessened::Less,
    places::{DATA_ONLY, DEVICE, FRESH, NOTHING, RAM, ROM},
    seat::{Exception, Order, PAR, Story},
    stage1::{self, LEAVES, WINDOW},
    verdict::{Claimed, OrSay, Saw, Verdict, expect, with_twins},
};

const PAGE: u64 = RAM + 0x10_0000;
/// Of a doubleword within a page.
const OFFSET: u64 = 0x128;

/// Makes a claim without a twin: what the machine reports is not the library's doing.
fn on_the_machine(
    lab: &Lab,
    setup: Setup,
    script: impl FnOnce(&mut Guest<'_, '_>) -> Result<(), String> + Send,
) -> Claimed {
    lab.bench(Less::NOTHING, lab.features, |bench| bench.guest(setup, script))?;
    Ok(Verdict::Holds(String::new()))
}

pub(crate) fn translation_faults_tell_reads_writes_and_fetches_apart(lab: &Lab) -> Claimed {
    on_the_machine(lab, Setup::vcpus(1), |guest| {
        for (piece, access) in
            [(Piece::Load, Access::Read), (Piece::Store, Access::Write), (Piece::Call, Access::Execute)]
        {
            let order = Order::new(piece, PAGE + OFFSET, 1);
            let abort = decode(guest.vcpus[0].execute(order).fault()?, &guest.bench.features).or_say("decode")?;
            expect("the class", abort.class, FaultClass::Translation)?;
            expect("the access", abort.access, access)?;
            expect("the address", abort.address, FaultAddress::Ipa(Ipa::new(PAGE + OFFSET)))?;
        }
        // And resolved, each goes on.
        let story = guest.vcpus[0].execute(Order::load(PAGE + OFFSET).resolving());
        expect("a fresh page", story.value()?, FRESH)?;
        expect("the faults of its first access", story.faults, 1)?;
        guest.map(PAGE + 0x1000, blob::code_returning(7))?;
        let story = guest.vcpus[0].execute(Order::new(Piece::Call, PAGE + 0x1000, 0).resolving());
        expect("what the code returns", story.value()?, 7)?;
        expect("pages given", guest.places.given(), 1)
    })
}

/// Maps [`PAGE`] in the guest's window, writable but clean.
fn map_clean_in_window(guest: &Guest<'_, '_>) -> Result<(), String> {
    let leaves = guest.map(LEAVES, 0)?;
    guest.words(leaves)[0].store(stage1::page(PAGE), core::sync::atomic::Ordering::Relaxed);
    guest.map(PAGE, 1)?;
    guest.stage2.write_protect(&guest.reader, pages::<Granule4K>(PAGE, 1)).or_say("write-protect")
}

pub(crate) fn a_permission_fault_is_found_through_the_guests_stage_1(lab: &Lab) -> Claimed {
    on_the_machine(lab, Setup::vcpus(1).with_stage1(), |guest| {
        map_clean_in_window(guest)?;
        let store = Order::store(WINDOW + OFFSET, 2);
        let abort = decode(guest.vcpus[0].execute(store).fault()?, &guest.bench.features).or_say("decode")?;
        expect("the class", abort.class, FaultClass::Permission)?;
        expect("the access", abort.access, Access::Write)?;
        expect("the address", abort.address, FaultAddress::NeedsTranslation { va: WINDOW + OFFSET })?;
        let story = guest.vcpus[0].execute(store.resolving());
        story.value()?;
        expect("the faults", story.faults, 1)?;
        let query = guest.stage2.query(&guest.reader, Ipa::new(PAGE)).or_say("query")?.or_say("not mapped")?;
        expect("the page is dirty", query.dirty, true)?;
        expect("what it holds", guest.vcpus[0].execute(Order::load(PAGE + OFFSET)).value()?, 2)
    })
}

pub(crate) fn the_guests_par_survives_a_fault(lab: &Lab) -> Claimed {
    with_twins(lab, lab.features, &[("AT without putting PAR_EL1 back", Less::without_par())], |bench| {
        bench.guest(Setup::vcpus(1).with_stage1(), |guest| {
            map_clean_in_window(guest)?;
            let story = guest.vcpus[0].execute(Order::store(WINDOW, 2).resolving());
            story.value()?;
            expect("the faults", story.faults, 1)?;
            Ok(if story.par == PAR { Saw::TheTruth } else { Saw::ThePast })
        })
    })
}

/// An access to a device: the guest's code, what it is as an access, what the device answers, and the register then.
struct DeviceAccess {
    piece: Piece,
    access: MmioAccess,
    answer: u64,
    register: (usize, u64),
}

pub(crate) fn a_device_access_is_decoded(lab: &Lab) -> Claimed {
    const STORED: u64 = 0x1234_5678_9abc_def0;
    let load = |size| MmioAccess {
        ipa: Ipa::new(DEVICE + OFFSET),
        write: false,
        size,
        register: Some(1),
        sign_extend: false,
        sixty_four: false,
        acquire_release: false,
    };
    let store = |size| MmioAccess { write: true, ..load(size) };
    use MmioSize::*;
    let accesses = [
        DeviceAccess {
            piece: Piece::Load,
            access: MmioAccess { sixty_four: true, ..load(Doubleword) },
            answer: 0xfedc_ba98_7654_3210,
            register: (1, 0xfedc_ba98_7654_3210),
        },
        DeviceAccess {
            piece: Piece::LoadWordTo5,
            access: MmioAccess { register: Some(5), ..load(Word) },
            answer: 0xffff_ffff_8765_4321,
            register: (5, 0x8765_4321),
        },
        DeviceAccess {
            piece: Piece::LoadSignedByteToWord,
            access: MmioAccess { sign_extend: true, ..load(Byte) },
            answer: 0x80,
            register: (1, 0xffff_ff80),
        },
        DeviceAccess {
            piece: Piece::LoadSignedHalfword,
            access: MmioAccess { sign_extend: true, sixty_four: true, ..load(Halfword) },
            answer: 0x8001,
            register: (1, 0xffff_ffff_ffff_8001),
        },
        DeviceAccess {
            piece: Piece::Store,
            access: MmioAccess { sixty_four: true, ..store(Doubleword) },
            answer: 0,
            register: (1, STORED),
        },
        DeviceAccess { piece: Piece::StoreByte, access: store(Byte), answer: 0, register: (1, STORED) },
        DeviceAccess {
            piece: Piece::StoreZeroHalfword,
            access: MmioAccess { register: None, ..store(Halfword) },
            answer: 0,
            register: (1, STORED),
        },
    ];
    on_the_machine(lab, Setup::vcpus(1), |guest| {
        accesses.iter().try_for_each(|DeviceAccess { piece, access, answer, register: (register, value) }| {
            let order = Order::new(*piece, DEVICE + OFFSET, STORED).resolving().with_device(*answer);
            let story = guest.vcpus[0].execute(order);
            expect(&format!("{piece:?}"), story.outcomes.as_slice(), &[Outcome::Mmio(*access)])?;
            expect(&format!("the register after {piece:?}"), story.register(*register)?, *value)
        })
    })
}

/// Bits of ESR_EL1.
const DATA_ABORT: u64 = 0x25 << 26 | 1 << 25;
const INSTRUCTION_ABORT: u64 = 0x21 << 26 | 1 << 25;
const WRITE: u64 = 1 << 6;
const EXTERNAL_ABORT: u64 = 0x10;

/// The vector for a synchronous exception of EL1 itself.
const SYNCHRONOUS: u64 = 0x200;

/// The guest took the exception that was reflected, at `elr`.
fn expect_exception(story: &Story, esr: u64, far: u64, elr: u64) -> Result<(), String> {
    /// EL1 with its own stack, DAIF masked.
    const PSTATE: u64 = 0x3c5;
    /// BTYPE: after a BLR, where the CPU has FEAT_BTI.
    const AFTER_CALL: u64 = 0b10 << 10;
    let Exception { spsr, .. } = story.exception()?;
    let should = Exception { esr, far, elr, spsr: PSTATE | spsr & AFTER_CALL, vector: SYNCHRONOUS };
    expect("the exception", story.exception()?, should)
}

pub(crate) fn a_device_access_without_syndrome_is_an_external_abort(lab: &Lab) -> Claimed {
    on_the_machine(lab, Setup::vcpus(1), |guest| {
        let story = guest.vcpus[0].execute(Order::new(Piece::LoadPair, DEVICE + OFFSET, 0).resolving());
        expect_exception(&story, DATA_ABORT | EXTERNAL_ABORT, DEVICE + OFFSET, Piece::LoadPair.entry())
    })
}

pub(crate) fn a_write_to_read_only_memory_is_an_external_abort(lab: &Lab) -> Claimed {
    on_the_machine(lab, Setup::vcpus(1), |guest| {
        let store = Order::store(ROM + OFFSET, 1).resolving();
        let denied =
            |story| expect_exception(&story, DATA_ABORT | WRITE | EXTERNAL_ABORT, ROM + OFFSET, Piece::Store.entry());
        // Where nothing is mapped yet, and where a page is: a translation fault, and a permission fault.
        denied(guest.vcpus[0].execute(store))?;
        expect("a read", guest.vcpus[0].execute(Order::load(ROM + OFFSET).resolving()).value()?, FRESH)?;
        denied(guest.vcpus[0].execute(store))?;
        expect("a read after it", guest.vcpus[0].execute(Order::load(ROM + OFFSET)).value()?, FRESH)
    })
}

pub(crate) fn a_fetch_from_execute_never_memory_is_an_external_abort(lab: &Lab) -> Claimed {
    on_the_machine(lab, Setup::vcpus(1), |guest| {
        let call = Order::new(Piece::Call, DATA_ONLY, 0).resolving();
        let denied = |story| expect_exception(&story, INSTRUCTION_ABORT | EXTERNAL_ABORT, DATA_ONLY, DATA_ONLY);
        denied(guest.vcpus[0].execute(call))?;
        guest.map_with(DATA_ONLY, blob::code_returning(7), Permissions::RW)?;
        denied(guest.vcpus[0].execute(call))
    })
}

pub(crate) fn nothing_at_an_address_is_an_external_abort(lab: &Lab) -> Claimed {
    on_the_machine(lab, Setup::vcpus(1), |guest| {
        let story = guest.vcpus[0].execute(Order::load(NOTHING + OFFSET).resolving());
        expect_exception(&story, DATA_ABORT | EXTERNAL_ABORT, NOTHING + OFFSET, Piece::Load.entry())
    })
}
