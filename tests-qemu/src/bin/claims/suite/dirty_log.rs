//! Claims of rule 10 that KVM's dirty_log_test makes, too: over page counts that are no multiple of 64, at the top of the IPA space, in
//! each way to track stores that the CPU has.

use alloc::{format, string::String};
use core::sync::atomic::{AtomicU64, Ordering};

use stage2::{dirty::Tracking, geometry::Granule4K};

use super::{
    guest::pages,
    lab::{Bench, Lab},
    lessened::Less,
    rounds::{self, Plan, ways},
    seat::Order,
    verdict::{Claimed, OrSay, Saw, Verdict, expect, with_twins},
};

/// Pages, IPA bits, and rounds.
const SIZES: [(u64, u8, u64); 4] = [(1, 32, 6), (63, 40, 6), (65, 48, 6), (511 * 3 + 7, 40, 4)];
/// Few enough pages to be invalidated by IPA, one by one, so that the twins have something to go without.
const FEW: u64 = 7;

pub(crate) fn stores_beside_a_harvest_are_in_it_or_the_next_by_write_protection(lab: &Lab) -> Claimed {
    stores_beside_harvests(lab, Tracking::WriteProtect)
}

pub(crate) fn stores_beside_a_harvest_are_in_it_or_the_next_by_hardware(lab: &Lab) -> Claimed {
    stores_beside_harvests(lab, Tracking::Hardware)
}

pub(crate) fn stores_beside_a_harvest_are_in_it_or_the_next_by_tables_in_use(lab: &Lab) -> Claimed {
    stores_beside_harvests(lab, Tracking::Adaptive)
}

fn stores_beside_harvests(lab: &Lab, tracking: Tracking) -> Claimed {
    let twins = [
        ("rearm without TLBI", Less::without_tlbi()),
        ("rearm with TLBI on the own CPU alone", Less::local_only()),
        ("rearm without VMALLE1IS", Less::without_vmalle1()),
    ];
    if !ways(&lab.features).any(|way| way == tracking) {
        return Ok(Verdict::NotHere("the CPU keeps no dirty state".into()));
    }
    let largest = lab.features.pa_range().bits();
    let beside = AtomicU64::new(0);
    for (pages, ipa_bits, rounds) in SIZES {
        let plan = Plan { tracking, pages, ipa_bits: ipa_bits.min(largest), rounds };
        if lab.bench(Less::NOTHING, lab.features, |bench| plan.play(bench, &beside))? != Saw::TheTruth {
            return Err(format!("{pages} pages below {} bits: a store was lost", plan.ipa_bits));
        }
    }
    let plan = Plan { tracking, pages: FEW, ipa_bits: 36, rounds: 6 };
    match with_twins(lab, lab.features, &twins, |bench| plan.play(bench, &AtomicU64::new(0)))? {
        Verdict::Holds(caught) => Ok(Verdict::Holds(format!("{} stores beside; {caught}", beside.into_inner()))),
        not_here => Ok(not_here),
    }
}

/// Who harvests: as one has to, or with one thing wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Harvester {
    Careful,
    /// Copies first and rearms then.
    CopiesFirst,
    /// Rearms all pages, not only those that it has found.
    RearmsAll,
    /// Says nothing of what it has stored itself.
    MarksNothing,
    /// Does not give back what it could not copy.
    GivesNothingBack,
}

pub(crate) fn a_harvester_copies_what_it_has_cleaned_and_marks_and_gives_back_the_rest(lab: &Lab) -> Claimed {
    use Harvester::*;
    for tracking in ways(&lab.features) {
        let play = |harvester| lab.bench(Less::NOTHING, lab.features, |bench| two_harvests(bench, tracking, harvester));
        if play(Careful)? != Saw::TheTruth {
            return Err(format!("{tracking}: a store was lost"));
        }
        for careless in [CopiesFirst, RearmsAll, MarksNothing, GivesNothingBack] {
            if play(careless)? != Saw::ThePast {
                return Err(format!("{tracking}: the twin is not caught: {careless:?}"));
            }
        }
    }
    Ok(Verdict::Holds("caught: copies first; rearms all; marks nothing; gives nothing back".into()))
}

/// A harvest with stores in its midst, one that comes to nothing, and one more.
fn two_harvests(bench: &Bench<'_, Granule4K>, tracking: Tracking, harvester: Harvester) -> Result<Saw, String> {
    const FIRST: u64 = 0;
    const MIDDLE: u64 = 32;
    const LAST: u64 = 64;
    let plan = Plan { tracking, pages: LAST + 1, ipa_bits: 40, rounds: 0 };
    bench.guest(plan.setup(), |guest| {
        let (mut log, mut replica) = plan.start(guest)?;
        let store = |nth, value| guest.vcpus[0].execute(Order::store(plan.page(nth), value).resolving()).value();
        store(FIRST, 1)?;
        let (count, mut bitmap) = plan.scan(guest, &mut log)?;
        expect("pages of the first harvest", count, 1)?;
        if harvester == Harvester::CopiesFirst {
            replica.copy(&plan, guest, [FIRST].into_iter(), false)?;
        }
        store(FIRST, 2)?;
        store(LAST, 3)?;
        if harvester == Harvester::RearmsAll {
            (0..plan.pages).for_each(|nth| rounds::set(&mut bitmap, nth));
        }
        let _rearmed = log.rearm(&guest.reader, plan.range(), &bitmap).or_say("rearm")?;
        if harvester != Harvester::CopiesFirst {
            replica.copy(&plan, guest, [FIRST].into_iter(), true)?;
        }
        // This CPU stores, as a device's backend does.
        guest.words(rounds::frame(&plan, guest, MIDDLE)?.or_say("it is not there")?)[0].store(4, Ordering::Relaxed);
        if harvester != Harvester::MarksNothing {
            guest.stage2.mark_dirty(pages::<Granule4K>(plan.page(MIDDLE), 1)).or_say("mark")?;
        }
        let (_, bitmap) = plan.scan(guest, &mut log)?;
        let _rearmed = log.rearm(&guest.reader, plan.range(), &bitmap).or_say("rearm")?;
        if harvester != Harvester::GivesNothingBack {
            log.merge(plan.range(), &bitmap).or_say("merge")?;
        }
        let (_, bitmap) = plan.scan(guest, &mut log)?;
        let _rearmed = log.rearm(&guest.reader, plan.range(), &bitmap).or_say("rearm")?;
        replica.copy(&plan, guest, plan.of(&bitmap), true)?;
        log.stop();
        replica.compare(&plan, guest)
    })
}
