//! Claims of rule 7: what was changed in the tables is so for every vCPU.

use alloc::{format, string::String};
use core::sync::atomic::Ordering;

use stage2::{
    descriptor::Permissions,
    geometry::{Features, Granule, Granule4K},
};

use super::{
    guest::{Guest, Setup, pages},
    lab::{Bench, Lab},
    lessened::Less,
    places::RAM,
    seat::{End, Order, Story},
    stage1::{self, LEAVES, MIDDLE, MIDDLE_2, WINDOW},
    verdict::{Claimed, OrSay, Saw, Twin, Verdict, expect, with_twins},
};

/// A page of the guest.
const PAGE: u64 = RAM + 0x10_0000;
/// Another.
const OTHER: u64 = RAM + 0x20_0000;
/// Where the guest's last tables are when there are many.
const MANY: u64 = RAM + 0x400_0000 + 0x40_0000;
const OLD: u64 = 0x01d;
const NEW: u64 = 0x4e3;

const NO_TLBI: Twin = ("no TLBI", Less::without_tlbi());
const LOCAL: Twin = ("TLBI on the own CPU alone", Less::local_only());
const NO_VMALLE1: Twin = ("IPAS2E1IS without VMALLE1IS", Less::without_vmalle1());
const NO_IPAS2E1: Twin = ("VMALLE1IS without IPAS2E1IS", Less::without_ipas2e1());
const WRONG_IPA: Twin = ("IPAS2E1IS of the neighbour", Less::wrong_ipa());

/// A fault is the truth, a value the past.
fn faults(story: &Story) -> Result<Saw, String> {
    match &story.end {
        End::Fault => Ok(Saw::TheTruth),
        End::Done(_) => Ok(Saw::ThePast),
        end => Err(format!("{end:x?}")),
    }
}

/// What the vCPUs together see of what `look` asks each for.
fn together(guest: &Guest<'_, '_>, look: impl Fn(&Story) -> Result<Saw, String>, order: Order) -> Result<Saw, String> {
    guest.vcpus.iter().try_fold(Saw::TheTruth, |saw, vcpu| Ok(saw.and(look(&vcpu.execute(order))?)))
}

pub(crate) fn an_unmapped_page_faults_on_every_vcpu(lab: &Lab) -> Claimed {
    with_twins(lab, lab.features, &[NO_TLBI, LOCAL, NO_VMALLE1], |bench| {
        bench.guest(Setup::vcpus(2), |guest| {
            guest.map(PAGE, OLD)?;
            guest.all_see(PAGE, OLD)?;
            guest.unmap(PAGE, 1)?;
            together(guest, faults, Order::load(PAGE))
        })
    })
}

pub(crate) fn a_moved_page_is_seen_where_it_went(lab: &Lab) -> Claimed {
    with_twins(lab, lab.features, &[NO_TLBI, LOCAL, NO_VMALLE1], |bench| {
        bench.guest(Setup::vcpus(2), |guest| {
            guest.map(PAGE, OLD)?;
            guest.all_see(PAGE, OLD)?;
            guest.replace(PAGE, NEW)?;
            together(guest, |story| Saw::of(story.value()?, NEW, OLD), Order::load(PAGE))
        })
    })
}

pub(crate) fn a_moved_page_is_seen_through_the_guests_own_tables(lab: &Lab) -> Claimed {
    with_twins(lab, lab.features, &[NO_TLBI, LOCAL, NO_VMALLE1], |bench| {
        bench.guest(Setup::vcpus(2).with_stage1(), |guest| {
            let leaves = guest.map(LEAVES, 0)?;
            guest.words(leaves)[0].store(stage1::page(PAGE), Ordering::Relaxed);
            guest.map(PAGE, OLD)?;
            guest.all_see(WINDOW, OLD)?;
            guest.replace(PAGE, NEW)?;
            together(guest, |story| Saw::of(story.value()?, NEW, OLD), Order::load(WINDOW))
        })
    })
}

/// The walks of the guest's tables use entries by IPA: this is where IPAS2E1IS itself can be seen.
pub(crate) fn the_guests_own_tables_can_be_moved(lab: &Lab) -> Claimed {
    with_twins(lab, lab.features, &[NO_TLBI, LOCAL, NO_IPAS2E1, WRONG_IPA], |bench| {
        bench.guest(Setup::vcpus(2).with_stage1(), |guest| {
            guest.map(PAGE, OLD)?;
            guest.map(OTHER, NEW)?;
            let before = guest.map(LEAVES, 0)?;
            guest.words(before)[0].store(stage1::page(PAGE), Ordering::Relaxed);
            guest.all_see(WINDOW, OLD)?;
            let after = guest.replace(LEAVES, 0)?;
            guest.words(after)[0].store(stage1::page(OTHER), Ordering::Relaxed);
            together(guest, |story| Saw::of(story.value()?, NEW, OLD), Order::load(WINDOW))
        })
    })
}

pub(crate) fn a_write_protected_page_stops_writes_on_every_vcpu(lab: &Lab) -> Claimed {
    // Nothing is given back or put in the page's place: only the guest can tell.
    let twins = [NO_TLBI, LOCAL, NO_VMALLE1].map(|(what, less)| (what, less.and_unjudged()));
    with_twins(lab, lab.features, &twins, |bench| {
        bench.guest(Setup::vcpus(2), |guest| {
            guest.map(PAGE, OLD)?;
            for vcpu in guest.vcpus {
                vcpu.execute(Order::store(PAGE, OLD)).value()?;
            }
            guest.stage2.write_protect(&guest.reader, pages::<Granule4K>(PAGE, 1)).or_say("write-protect")?;
            together(guest, faults, Order::store(PAGE, NEW))
        })
    })
}

/// Moves `count` of the guest's last tables, one next to the other, and has it look through all of them.
fn move_tables(bench: &Bench<'_, Granule4K>, count: u64) -> Result<Saw, String> {
    /// How far the addresses are apart that two of these tables are for.
    const STRIDE: u64 = 2 << 20;
    bench.guest(Setup::vcpus(1).with_stage1(), |guest| {
        guest.map(PAGE, 1)?;
        guest.map(OTHER, 2)?;
        // Two tables behind the root, of 512 entries.
        let middle = [guest.replace(MIDDLE, 0)?, guest.map(MIDDLE_2, 0)?];
        for table in 0..count {
            let ipa = MANY + table * Granule4K::PAGE_SIZE;
            guest.words(middle[table as usize / 512])[table as usize % 512]
                .store(stage1::table(ipa), Ordering::Relaxed);
            guest.words(guest.map(ipa, 0)?)[0].store(stage1::page(PAGE), Ordering::Relaxed);
        }
        let look = Order::sum(WINDOW, STRIDE, count);
        expect("the sum at first", guest.vcpus[0].execute(look).register(3)?, count)?;
        guest.unmap(MANY, count)?;
        for table in 0..count {
            let ipa = MANY + table * Granule4K::PAGE_SIZE;
            guest.words(guest.map(ipa, 0)?)[0].store(stage1::page(OTHER), Ordering::Relaxed);
        }
        // Backwards: what was seen last has the best chance to be cached still.
        let look_back = Order::sum(WINDOW + (count - 1) * STRIDE, STRIDE.wrapping_neg(), count);
        match guest.vcpus[0].execute(look_back).register(3)? {
            sum if sum == 2 * count => Ok(Saw::TheTruth),
            sum if (count..2 * count).contains(&sum) => Ok(Saw::ThePast),
            sum => Err(format!("the sum is {sum}")),
        }
    })
}

/// Both a few pages and many.
const RANGES: [u64; 2] = [3, 600];

/// QEMU drops all entries by IPA where a range is long compared with its TLB: a twin with a wrong range cannot be caught.
pub(crate) fn ranges_are_invalidated_whole_with_range_operations(lab: &Lab) -> Claimed {
    if !lab.features.range_tlbi() {
        return Ok(Verdict::NotHere("the CPU has no range TLBI".into()));
    }
    let mut verdict = Verdict::Holds(String::new());
    for count in RANGES {
        verdict = with_twins(lab, lab.features, &[NO_TLBI, NO_IPAS2E1], |bench| {
            let before = bench.mmu.statistics();
            let saw = move_tables(bench, count)?;
            let after = bench.mmu.statistics();
            if after.tlbi_by_range == before.tlbi_by_range {
                return Err(format!("{count} pages took no range TLBI"));
            }
            Ok(saw)
        })?;
    }
    Ok(verdict)
}

pub(crate) fn ranges_are_invalidated_whole_without_range_operations(lab: &Lab) -> Claimed {
    let features: Features = lab.features.without_range_tlbi();
    let mut verdict = Verdict::Holds(String::new());
    for count in RANGES {
        let twins: &[Twin] = match count {
            3 => &[NO_TLBI, NO_IPAS2E1, WRONG_IPA],
            _ => &[NO_TLBI, ("no VMALLS12E1IS", Less::without_vmalls12e1())],
        };
        verdict = with_twins(lab, features, twins, |bench| {
            let saw = move_tables(bench, count)?;
            let after = bench.mmu.statistics();
            if after.tlbi_by_range != 0 {
                return Err(format!("{count} pages took a range TLBI"));
            }
            Ok(saw)
        })?;
    }
    Ok(verdict)
}

/// QEMU walks the tables again before it reports a permission fault: a twin without the local invalidation cannot be caught.
pub(crate) fn a_relaxed_permission_ends_the_faults(lab: &Lab) -> Claimed {
    lab.bench(Less::NOTHING, lab.features, |bench| {
        bench.guest(Setup::vcpus(2), |guest| {
            guest.map_with(PAGE, OLD, Permissions::R)?;
            guest.all_see(PAGE, OLD)?;
            let range = pages::<Granule4K>(PAGE, 1);
            guest.stage2.protect(&guest.reader, range, Permissions::RW).or_say("protect")?;
            for vcpu in guest.vcpus {
                let story = vcpu.execute(Order::store(PAGE, NEW).resolving());
                story.value()?;
                if story.faults > 1 {
                    return Err(format!("{} faults", story.faults));
                }
            }
            // Clean again: the next store has to fault once, and no more.
            guest.stage2.write_protect(&guest.reader, range).or_say("write-protect")?;
            guest.all_see(PAGE, NEW)?;
            let store = |vcpu: usize| {
                let story = guest.vcpus[vcpu].execute(Order::store(PAGE, OLD).resolving());
                story.value().map(|_| story.faults)
            };
            expect("the faults of the first vCPU", store(0)?, 1)?;
            if store(1)? > 1 {
                return Err("the second vCPU faults more than once".into());
            }
            Ok(Verdict::Holds("no twin: QEMU walks again before it reports a permission fault".into()))
        })
    })
}
