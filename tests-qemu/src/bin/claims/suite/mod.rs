//! The list of claims, and making them.

mod aging;
mod blob;
mod dirty;
mod dirty_log;
mod faults;
mod guest;
mod invalidation;
mod lab;
mod lessened;
mod lifetime;
mod mailbox;
mod page_faults;
mod places;
mod rounds;
mod seat;
mod shapes;
mod stage1;
mod verdict;
mod vmids;
mod walks;

use serde::Serialize;
use stage2::arch::Dsb;
use stage2_platform::{ExitCode, args, cpus, events, timer};

use lab::Lab;
use lessened::Keeps;
use verdict::{Claimed, Verdict};

/// A sentence, and how to find out whether it is true.
struct Claim {
    name: &'static str,
    make: fn(&Lab) -> Claimed,
}

/// Claims by the functions that make them.
macro_rules! claims {
    ($($module:ident { $($name:ident),* $(,)? })*) => {
        &[$($(Claim { name: stringify!($name), make: $module::$name }),*),*]
    };
}

const CLAIMS: &[Claim] = claims! {
    invalidation {
        an_unmapped_page_faults_on_every_vcpu,
        a_moved_page_is_seen_where_it_went,
        a_moved_page_is_seen_through_the_guests_own_tables,
        the_guests_own_tables_can_be_moved,
        a_write_protected_page_stops_writes_on_every_vcpu,
        ranges_are_invalidated_whole_with_range_operations,
        ranges_are_invalidated_whole_without_range_operations,
        a_relaxed_permission_ends_the_faults,
    }
    dirty {
        a_write_after_rearm_is_in_the_next_harvest,
        a_write_after_a_clean_start_is_in_the_first_harvest,
    }
    dirty_log {
        stores_beside_a_harvest_are_in_it_or_the_next_by_write_protection,
        stores_beside_a_harvest_are_in_it_or_the_next_by_hardware,
        stores_beside_a_harvest_are_in_it_or_the_next_by_tables_in_use,
        a_harvester_copies_what_it_has_cleaned_and_marks_and_gives_back_the_rest,
    }
    aging {
        exactly_what_was_accessed_since_pages_were_made_old_is_young,
    }
    lifetime {
        a_frozen_guest_stops_at_its_next_access,
        a_reclaimed_table_serves_again_at_once,
    }
    vmids {
        two_guests_on_one_cpu_see_their_own_memory,
        more_guests_than_vmids_take_turns,
        a_vmid_given_out_again_brings_nothing_along,
    }
    shapes {
        every_ipa_size_is_walked_from_each_of_its_root_tables,
        trees_of_16k_pages_are_walked,
        trees_of_64k_pages_are_walked,
    }
    faults {
        translation_faults_tell_reads_writes_and_fetches_apart,
        a_permission_fault_is_found_through_the_guests_stage_1,
        the_guests_par_survives_a_fault,
        a_device_access_is_decoded,
        a_device_access_without_syndrome_is_an_external_abort,
        a_write_to_read_only_memory_is_an_external_abort,
        a_fetch_from_execute_never_memory_is_an_external_abort,
        nothing_at_an_address_is_an_external_abort,
    }
    page_faults {
        each_access_takes_exactly_the_faults_it_must,
    }
    walks {
        the_guests_table_walk_pages_its_tables_in,
        a_table_walk_that_updates_makes_its_table_dirty,
        a_table_walk_that_may_not_update_is_an_external_abort,
    }
};

/// What the host's tool is told of a claim.
#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    name: &'a str,
    outcome: &'a str,
    detail: &'a str,
    milliseconds: u64,
}

/// The main function.
pub(crate) fn run() -> ExitCode {
    if args::get("list").is_some() {
        CLAIMS.iter().for_each(|claim| defmt::println!("{=str}", claim.name));
        return ExitCode::Good;
    }
    let wanted = args::get("claim");
    if wanted.is_some_and(|wanted| CLAIMS.iter().all(|claim| claim.name != wanted)) {
        defmt::error!("there is no claim {}", wanted);
        return ExitCode::BadArguments;
    }
    if cpus::count() < guest::CPUS {
        defmt::error!("the claims take {=u32} CPUs", guest::CPUS as u32);
        return ExitCode::BadArguments;
    }
    let keeps: Option<Keeps> = match args::get("without") {
        None => None,
        Some("dsb-ishst") => Some(|barrier| barrier != Dsb::Ishst),
        Some("dsb-ish") => Some(|barrier| barrier != Dsb::Ish),
        Some(other) => {
            defmt::error!("nothing is known of {}", other);
            return ExitCode::BadArguments;
        }
    };
    let Some(lab) = Lab::new(keeps) else {
        defmt::error!("the machine has too little RAM");
        return ExitCode::Violation;
    };
    let mut all_hold = true;
    for claim in CLAIMS.iter().filter(|claim| wanted.is_none_or(|wanted| claim.name == wanted)) {
        all_hold &= make(claim, &lab);
    }
    if all_hold { ExitCode::Good } else { ExitCode::Violation }
}

/// Makes one claim and reports it; whether it did not fail.
fn make(claim: &Claim, lab: &Lab) -> bool {
    let start = timer::now();
    let (outcome, detail) = match (claim.make)(lab) {
        Ok(Verdict::Holds(detail)) => ("passed", detail),
        Ok(Verdict::NotHere(reason)) => ("skipped", reason),
        Err(reason) => ("failed", reason),
    };
    defmt::info!("{=str}: {=str} ({=str})", outcome, claim.name, detail.as_str());
    let milliseconds = (timer::now() - start).as_millis() as u64;
    let event = Event { event: "claim", name: claim.name, outcome, detail: &detail, milliseconds };
    events::emit(&event).is_ok() && outcome != "failed"
}
