//! A claim of aging: after pages were made old, each access to one is noted, by the CPU where it sets access flags, by a fault elsewhere.

use alloc::{format, string::String};

use stage2::{
    aging::Flush,
    geometry::{Granule4K, HardwareUpdate},
};

use super::{
    guest::{Guest, Setup, pages},
    lab::Lab,
    lessened::Less,
    places::RAM,
    seat::Order,
    verdict::{Claimed, OrSay, Saw, Verdict, expect, with_twins},
};

/// The guest's memory, from [`RAM`] on: few enough pages to be invalidated by IPA, so that the twins have something to go without.
const PAGES: u64 = 16;
/// What is accessed: by which vCPU, which page, and whether it is stored to.
const ACCESSES: [(usize, u64, bool); 4] = [(0, 3, false), (1, 8, true), (0, 9, true), (1, 15, false)];

fn page(number: u64) -> u64 {
    RAM + number * 4096
}

/// The pages that are young.
fn young(guest: &Guest<'_, '_>) -> Result<u64, String> {
    let mut bitmap = [0];
    guest.stage2.scan_accessed(&guest.reader, pages::<Granule4K>(RAM, PAGES), &mut bitmap).or_say("scan")?;
    Ok(bitmap[0])
}

/// Makes all pages old that both vCPUs have in their TLBs, has some accessed, and looks which are young.
fn scenario(guest: &Guest<'_, '_>, updates: HardwareUpdate) -> Result<Saw, String> {
    for number in 0..PAGES {
        guest.map(page(number), number)?;
        guest.all_see(page(number), number)?;
    }
    expect("young pages at first", young(guest)?, (1 << PAGES) - 1)?;
    let all = pages::<Granule4K>(RAM, PAGES);
    let made_old = guest.stage2.make_old(&guest.reader, all, u32::MAX, Flush::Now).or_say("make old")?;
    expect("pages made old", made_old.young, PAGES)?;
    expect("young pages then", young(guest)?, 0)?;
    let (mut accessed, mut faults) = (0, 0);
    for (vcpu, number, store) in ACCESSES {
        let order = if store { Order::store(page(number), number) } else { Order::load(page(number)) };
        let story = guest.vcpus[vcpu].execute(order.resolving());
        story.value()?;
        accessed |= 1 << number;
        faults += story.faults;
    }
    match young(guest)? {
        bitmap if bitmap == accessed => {
            let should = if updates == HardwareUpdate::None { ACCESSES.len() as u32 } else { 0 };
            expect("faults", faults, should)?;
            Ok(Saw::TheTruth)
        }
        bitmap if bitmap & !accessed == 0 => Ok(Saw::ThePast),
        bitmap => Err(format!("young are {bitmap:#x}, accessed were {accessed:#x}")),
    }
}

pub(crate) fn exactly_what_was_accessed_since_pages_were_made_old_is_young(lab: &Lab) -> Claimed {
    // A tracer is not told of what should be old.
    let twins = [
        ("made old without TLBI", Less::without_tlbi().and_unjudged()),
        ("made old with TLBI on the own CPU alone", Less::local_only().and_unjudged()),
        ("made old without VMALLE1IS", Less::without_vmalle1().and_unjudged()),
    ];
    let with = |updates| {
        with_twins(lab, lab.features, &twins, |bench| {
            bench.guest(Setup::vcpus(2).updating(updates), |guest| scenario(guest, updates))
        })
    };
    let by_faults = with(HardwareUpdate::None)?;
    let hardware = lab.features.hardware_update();
    if hardware == HardwareUpdate::None {
        return Ok(by_faults);
    }
    let details = [by_faults, with(HardwareUpdate::AccessFlag)?, with(hardware)?].map(|verdict| match verdict {
        Verdict::Holds(detail) | Verdict::NotHere(detail) => detail,
    });
    Ok(Verdict::Holds(format!(
        "by faults: {}; by the hardware: {}; with dirty state: {}",
        details[0], details[1], details[2]
    )))
}
