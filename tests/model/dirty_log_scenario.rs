//! KVM's dirty_log_test, as facts: what a guest stores while it is harvested is in this harvest or in the next ([`rounds`]). Over page
//! counts that are no multiple of 64, with the last page the last of the IPA space, in each way to track stores.
//!
//! [`rounds`]: super::rounds

use stage2::addr::Level;
use stage2::dirty::{Initial, Tracking};
use stage2::geometry::Features;

use crate::rounds::{Harvester, Plan};
use crate::support::*;

/// Each way to track stores, on each kind of CPU that has it.
pub(crate) fn ways() -> [(Features, Tracking); 5] {
    use Tracking::*;
    [
        (plain(), WriteProtect),
        (rich(), WriteProtect),
        (with_hardware_updates(), WriteProtect),
        (with_hardware_updates(), Hardware),
        (with_hardware_updates(), Adaptive),
    ]
}

const FEW: [u64; 3] = [1, 63, 65];
const MANY: u64 = 511 * 3 + 7;

fn plan(features: Features, tracking: Tracking, pages: u64, ipa_bits: u8) -> Plan {
    let (initial, largest, harvester) = (Initial::Clean, Level::LEAF, Harvester::Careful);
    Plan { features, tracking, initial, ipa_bits, pages, largest, harvester, seed: pages << 8 | u64::from(ipa_bits) }
}

fn holds(plan: Plan) {
    let Plan { tracking, ipa_bits, pages, initial, seed, .. } = plan;
    if let Err(wrong) = plan.play() {
        panic!("{tracking}, {pages} pages below {ipa_bits} bits, {initial:?}, seed {seed}: {wrong}");
    }
}

#[test]
fn a_bit_that_is_set_is_of_this_round_or_the_last_and_one_that_is_clear_of_an_older_whatever_the_page_count() {
    for (features, tracking) in ways() {
        for pages in FEW {
            for ipa_bits in [32, 40, 48] {
                for seed in [1, 2, 3] {
                    holds(Plan { seed, ..plan(features, tracking, pages, ipa_bits) });
                }
            }
        }
    }
}

#[test]
fn the_same_of_many_tables_the_last_of_which_is_the_last_there_is() {
    for ((features, tracking), ipa_bits) in ways().into_iter().zip([32, 40, 48, 40, 48]) {
        holds(plan(features, tracking, MANY, ipa_bits));
    }
}

#[test]
fn the_same_of_memory_that_is_mapped_by_blocks() {
    for ((features, tracking), ipa_bits) in ways().into_iter().zip([48, 32, 40, 48, 32]) {
        holds(Plan { largest: Level::L2, ..plan(features, tracking, MANY, ipa_bits) });
    }
}

#[test]
fn the_same_of_a_log_that_begins_with_everything_dirty() {
    for (features, tracking) in ways() {
        for pages in FEW {
            holds(Plan { initial: Initial::Dirty, ..plan(features, tracking, pages, 40) });
        }
        holds(Plan { initial: Initial::Dirty, largest: Level::L2, ..plan(features, tracking, 1100, 40) });
    }
}

#[test]
fn a_harvester_who_copies_first_or_cleans_more_than_it_copies_or_marks_nothing_or_gives_nothing_back_loses_stores() {
    use Harvester::*;
    for (features, tracking) in ways() {
        for harvester in [CopiesFirst, RearmsAll, MarksNothing, GivesNothingBack] {
            for pages in [63, 65] {
                let careless = Plan { harvester, ..plan(features, tracking, pages, 40) };
                assert!(careless.play().is_err(), "{tracking}: {harvester:?} is not found out");
            }
        }
    }
}
