//! Claims of rule 10: a write is in this harvest or in the next.

use alloc::{format, string::String};

use stage2::{dirty::Initial, geometry::Granule4K};
use stage2_platform::trace::{self, Mark};

use super::{
    guest::{Guest, Setup, pages},
    lab::Lab,
    lessened::Less,
    places::RAM,
    seat::Order,
    verdict::{Claimed, OrSay, Saw, expect, with_twins},
};

/// The guest's memory in these claims: so many pages from [`RAM`] on. Few enough to be invalidated by IPA, one by one, so that
/// the twins have something to go without.
const PAGES: u64 = 16;
/// The page that is written.
const WRITTEN: u64 = 5;
const PAGE: u64 = RAM + WRITTEN * 4096;

/// A harvest of one word: all it found, no more than the page that was written.
fn saw_written(bitmap: u64) -> Result<Saw, String> {
    match bitmap {
        bitmap if bitmap == 1 << WRITTEN => Ok(Saw::TheTruth),
        0 => Ok(Saw::ThePast),
        bitmap => Err(format!("the harvest is {bitmap:#x}")),
    }
}

/// Has the vCPU store to the page, and says how many faults it took.
fn store(guest: &Guest<'_, '_>, value: u64) -> Result<u32, String> {
    let story = guest.vcpus[0].execute(Order::store(PAGE, value).resolving());
    story.value()?;
    Ok(story.faults)
}

pub(crate) fn a_write_after_rearm_is_in_the_next_harvest(lab: &Lab) -> Claimed {
    let twins = [
        ("rearm without TLBI", Less::without_tlbi()),
        ("rearm with TLBI on the own CPU alone", Less::local_only()),
        ("rearm without VMALLE1IS", Less::without_vmalle1()),
    ];
    with_twins(lab, lab.features, &twins, |bench| {
        bench.guest(Setup::vcpus(1), |guest| {
            let all = pages::<Granule4K>(RAM, PAGES);
            guest.map(PAGE, 0)?;
            let mut log = guest.stage2.start_logging(&guest.reader, Initial::Clean).or_say("start")?;
            store(guest, 1)?;
            let mut first = [0];
            log.scan(&guest.reader, all, &mut first).or_say("scan")?;
            expect("the first harvest", first, [1 << WRITTEN])?;
            let rearmed = log.rearm(&guest.reader, all, &first).or_say("rearm")?;
            expect("pages cleaned", rearmed.cleaned, 1)?;
            trace::mark(Mark::Copied { ipa: PAGE });
            let faults = store(guest, 2)?;
            let mut second = [0];
            log.scan(&guest.reader, all, &mut second).or_say("scan")?;
            log.stop();
            let saw = saw_written(second[0])?;
            expect("faults", faults, u32::from(saw == Saw::TheTruth))?;
            Ok(saw)
        })
    })
}

pub(crate) fn a_write_after_a_clean_start_is_in_the_first_harvest(lab: &Lab) -> Claimed {
    with_twins(lab, lab.features, &[("no VMALLS12E1IS", Less::without_vmalls12e1())], |bench| {
        bench.guest(Setup::vcpus(1), |guest| {
            guest.map(PAGE, 0)?;
            store(guest, 1)?;
            let mut log = guest.stage2.start_logging(&guest.reader, Initial::Clean).or_say("start")?;
            trace::mark(Mark::Copied { ipa: PAGE });
            store(guest, 2)?;
            let mut harvest = [0];
            log.scan(&guest.reader, pages::<Granule4K>(RAM, PAGES), &mut harvest).or_say("scan")?;
            log.stop();
            saw_written(harvest[0])
        })
    })
}
