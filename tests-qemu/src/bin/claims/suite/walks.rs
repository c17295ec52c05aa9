//! Claims about the walks of the guest's own tables, which stage 2 translates too.

use alloc::string::String;
use core::sync::atomic::Ordering;

use stage2::{
    Ipa, Pa,
    descriptor::Permissions,
    dirty::Initial,
    fault::{
        decode::{Abort, Access, FaultAddress, decode},
        syndrome::FaultClass,
    },
    geometry::{Granule4K, HardwareUpdate},
};

use super::{
    blob::Piece,
    guest::{Guest, Setup, pages},
    lab::Lab,
    lessened::Less,
    places::{RAM, ROM},
    seat::{Exception, Order},
    stage1::{self, LEAVES, WINDOW},
    verdict::{Claimed, OrSay, Verdict, expect},
};

const PAGE: u64 = RAM + 0x10_0000;
const VALUE: u64 = 0x7a1;

/// Makes a claim with a guest of one vCPU that has stage 1 on.
fn with_stage1(
    lab: &Lab,
    setup: Setup,
    script: impl FnOnce(&mut Guest<'_, '_>) -> Result<(), String> + Send,
) -> Claimed {
    lab.bench(Less::NOTHING, lab.features, |bench| bench.guest(setup, script))?;
    Ok(Verdict::Holds(String::new()))
}

/// The fault that the vCPU's load from the window ends with.
fn fault_of_load(guest: &Guest<'_, '_>) -> Result<Abort, String> {
    decode(guest.vcpus[0].execute(Order::load(WINDOW)).fault()?, &guest.bench.features).or_say("decode")
}

fn expect_walk(abort: &Abort, class: FaultClass, table: u64) -> Result<(), String> {
    expect("the class", abort.class, class)?;
    expect("the access", abort.access, Access::Stage1Walk)?;
    expect("the address", abort.address, FaultAddress::Ipa(Ipa::new(table)))
}

pub(crate) fn the_guests_table_walk_pages_its_tables_in(lab: &Lab) -> Claimed {
    /// A data abort of EL1, a translation fault at level 3.
    const NOT_MAPPED: u64 = 0x25 << 26 | 1 << 25 | 0x07;
    with_stage1(lab, Setup::vcpus(1).with_stage1(), |guest| {
        guest.map(PAGE, VALUE)?;
        expect_walk(&fault_of_load(guest)?, FaultClass::Translation, LEAVES)?;
        // The page that comes holds no table: the guest's own stage 1 says so.
        let story = guest.vcpus[0].execute(Order::load(WINDOW).resolving());
        expect("the faults", story.faults, 1)?;
        expect("ESR_EL1", story.exception()?.esr, NOT_MAPPED)?;
        let leaves = guest.replace(LEAVES, 0)?;
        guest.words(leaves)[0].store(stage1::page(PAGE), Ordering::Relaxed);
        expect("what is in the window", guest.vcpus[0].execute(Order::load(WINDOW)).value()?, VALUE)
    })
}

/// Puts the window's last table at `ipa`, with an entry for [`PAGE`] that no access used yet.
fn map_not_accessed(guest: &Guest<'_, '_>, ipa: u64, permissions: Permissions) -> Result<Pa, String> {
    guest.map(PAGE, VALUE)?;
    let leaves = guest.map_with(ipa, 0, permissions)?;
    guest.words(leaves)[0].store(stage1::page_not_accessed(PAGE), Ordering::Relaxed);
    guest.words(guest.replace(stage1::MIDDLE, 0)?)[0].store(stage1::table(ipa), Ordering::Relaxed);
    Ok(leaves)
}

/// The reason why the claim cannot be made on this CPU.
fn without_hardware_update(lab: &Lab) -> Option<Verdict> {
    (lab.features.hardware_update() == HardwareUpdate::None)
        .then(|| Verdict::NotHere("the CPU does not update Access flags".into()))
}

pub(crate) fn a_table_walk_that_updates_makes_its_table_dirty(lab: &Lab) -> Claimed {
    /// Of the table, from `RAM` on.
    const TABLE: u64 = (LEAVES - RAM) / 4096;
    if let Some(verdict) = without_hardware_update(lab) {
        return Ok(verdict);
    }
    with_stage1(lab, Setup::vcpus(1).with_stage1().with_hardware_access_flag(), |guest| {
        let leaves = map_not_accessed(guest, LEAVES, Permissions::RW)?;
        let mut log = guest.stage2.start_logging(&guest.reader, Initial::Clean).or_say("start")?;
        let abort = fault_of_load(guest)?;
        expect_walk(&abort, FaultClass::Permission, LEAVES)?;
        expect("it wants to write", abort.wants_write(), true)?;
        let story = guest.vcpus[0].execute(Order::load(WINDOW).resolving());
        expect("what is in the window", story.value()?, VALUE)?;
        expect("the faults", story.faults, 1)?;
        let entry = guest.words(leaves)[0].load(Ordering::Relaxed);
        expect("the Access flag", stage1::is_accessed(entry), true)?;
        let mut harvest = [0];
        let around = pages::<Granule4K>(RAM + TABLE / 64 * 64 * 4096, 64);
        log.scan(&guest.reader, around, &mut harvest).or_say("scan")?;
        log.stop();
        expect("the harvest", harvest, [1 << (TABLE % 64)])
    })
}

pub(crate) fn a_table_walk_that_may_not_update_is_an_external_abort(lab: &Lab) -> Claimed {
    /// A data abort of EL1, an external abort.
    const EXTERNAL_ABORT: u64 = 0x25 << 26 | 1 << 25 | 0x10;
    if let Some(verdict) = without_hardware_update(lab) {
        return Ok(verdict);
    }
    with_stage1(lab, Setup::vcpus(1).with_stage1().with_hardware_access_flag(), |guest| {
        map_not_accessed(guest, ROM, Permissions::R)?;
        expect_walk(&fault_of_load(guest)?, FaultClass::Permission, ROM)?;
        let exception = guest.vcpus[0].execute(Order::load(WINDOW).resolving()).exception()?;
        let Exception { esr, far, elr, .. } = exception;
        expect("the exception", (esr, far, elr), (EXTERNAL_ABORT, WINDOW, Piece::Load.entry()))
    })
}
