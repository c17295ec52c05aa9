//! Every pair of {fault, unmap, protect, scan, rearm, reclaim, teardown, quiesce} under loom: what must hold between the two.
//!
//! As in `loom_protocol.rs`: the library's own code on a tree of two levels with two entries a table, every interleaving of the two
//! CPUs with at most three involuntary switches, every value that the memory model lets a load return. Where an access of the guest
//! or an invalidation is part of the claim the machine is `Hardware`, with a TLB that keeps what it has as long as it may.
//! Triples, at two switches, are below. `STAGE2_LOOM_PREEMPTIONS` raises the bounds: see `support/loom.rs`.
//!
//! | pair | what must hold | test |
//! |---|---|---|
//! | fault, fault | of one page one frame is mapped, and the other goes back; under one missing table both pages are found | [`mappings`]`::of_two_faults_...`, `two_faults_...` |
//! | fault, unmap | the page is mapped to the frame that holds the content, or not at all, and no TLB leads to one handed back | `mappings::beside_an_unmap_...`, `a_frame_taken_back_...`; `loom_guest::a_fault_never_maps_a_frame_...`; without a table `loom_lines::a_fault_never_maps_what_was_given_up_...`, too |
//! | fault, protect | what was protected is not writable again, in no entry and no TLB, and does not change | `mappings::a_permission_taken_back_...`, `a_fault_that_makes_a_page_dirty_...` |
//! | fault, scan | a store that was over before is in the scan, any other in the next | [`dirty`]`::a_store_that_was_over_...` |
//! | fault, rearm | a store is in this harvest or in the next, and passes in the end | `loom_dirty::a_store_that_faults_...`; `dirty::a_store_beside_a_rearm_...` |
//! | fault, reclaim | what was mapped is found | `loom_guest::a_fault_never_maps_into_a_table_...` |
//! | fault, quiesce | a freeze is settled when the last fault is over | `loom_guest::once_a_freeze_has_settled_...` |
//! | unmap, unmap | each frame is handed back once, and after either no TLB leads to it | `loom_protocol::two_unmaps_...`; `mappings::after_each_of_two_unmaps_...` |
//! | unmap, protect | the page goes, dirty as it was, and a protect brings nothing back | `mappings::a_page_that_was_stored_to_...` |
//! | unmap, scan | a dirty page is seen in its entry or in the side log | `loom_dirty::a_dirty_page_that_is_unmapped_...` |
//! | unmap, rearm | a dirty page is copied now or in the next scan | `dirty::a_dirty_page_that_is_unmapped_...` |
//! | unmap, reclaim | all tables that were emptied come back, once | [`tables`]`::all_tables_...`; with a map `loom_protocol::no_table_that_was_emptied_...` |
//! | unmap, quiesce | a frame is not used again before the section of a view ends | [`sections`]`::the_frame_of_a_view_...` |
//! | protect, protect | after either the next store faults | `loom_dirty::after_a_write_protect_...` |
//! | protect, scan | a page that loses its write permission is dirty to every scan | `dirty::a_page_that_loses_...` |
//! | protect, rearm | what was copied cannot change unseen | `dirty::after_a_rearm_...` |
//! | protect, reclaim | what stays is restricted, and nothing in the table that goes | `tables::a_protect_restricts_...` |
//! | protect, quiesce | a table that was recycled elsewhere is out of its reach | `sections::a_protect_never_reaches_...` |
//! | scan, reclaim | a table is not looked at once it is freed | `loom_protocol::a_scan_never_looks_...` |
//! | scan, quiesce | nor at the place it was freed from, in the next section | `sections::a_scan_in_its_next_section_...`; `loom_protocol::a_query_never_looks_...` |
//! | rearm, reclaim | a page that comes where a table goes is cleaned or found by the next scan | `tables::a_page_that_comes_...` |
//! | rearm, quiesce | a page is copied before its frame is used again | `sections::a_page_that_is_rearmed_...` |
//! | reclaim, reclaim | one takes the table, one gives it back | `tables::of_two_reclaims_...` |
//! | reclaim, quiesce | a grace period outlasts every section there was | `loom_protocol::a_reader_that_comes_back_online_...` |
//! | make old, make old | after either each access is noted, whether the other flushes or not | [`aging`]`::after_each_of_two_...`, `what_another_leaves_...` |
//! | protect, access by hardware | the page is young | `aging::a_flag_that_the_hardware_sets_...` |
//! | make old, store by hardware | the page is dirty, and young if it was stored to later | `aging::a_store_that_the_hardware_notes_...` |
//! | quiesce, quiesce | and those of two readers | `loom_protocol::a_grace_period_outlasts_...` |
//! | scan, scan; scan, rearm; rearm, rearm | there is one harvester, and it does one thing at a time: `scan` and `rearm` take `&mut DirtyLog` | `compile-fail/two_harvesters.rs` |
//!
//! A teardown takes the tree by value, so that beside it there is no operation on the same tree: the compiler has proved it
//! (`compile-fail/teardown_with_a_cpu_on_it.rs`, `teardown_with_a_log.rs`, `teardown_of_a_frozen_guest.rs`). What is left is what
//! goes on in another guest, which shares table memory, VMIDs, TLBs and the readers, and a CPU whose `Loaded` was forgotten:
//!
//! | teardown beside | what must hold | test in [`teardown`] |
//! |---|---|---|
//! | fault | each maps into its own tables; a VMID that was given back brings nothing along | `a_fault_beside_...`, `the_vmid_of_a_guest_...` |
//! | unmap, protect, rearm | each invalidates its own | `an_unmap_and_...`, `a_protect_and_...`, `a_rearm_and_...` |
//! | scan | nothing is seen of the life before of a table that was recycled | `a_scan_sees_nothing_...` |
//! | reclaim | each table is given back once | `a_reclaim_and_...` |
//! | teardown | both are given back | `two_guests_...` |
//! | quiesce | what waits for readers is given back at once, and no reader of another guest meets it | `a_teardown_gives_back_...` |
//! | a CPU that has the tree loaded | it is refused, and the CPU runs on | `a_tree_that_a_cpu_has_loaded_...` |
//!
//! | triple | test |
//! |---|---|
//! | fault, unmap, reclaim | [`triples`]`::a_fault_an_unmap_and_a_reclaim_...`; with a map `loom_protocol::map_unmap_and_reclaim_...` |
//! | fault, scan, rearm | `loom_dirty::a_store_that_faults_...`, with all of a harvest |
//! | fault, guest on another CPU, scan | `triples::a_store_through_an_entry_...` |
//! | fault, unmap, scan and rearm | `triples::a_store_by_fault_to_a_page_that_is_moved_...` |
//! | fault, protect, scan and rearm | `triples::a_store_by_fault_beside_a_write_protect_...`; through the TLB `loom_dirty::a_store_beside_a_write_protect_...` |
//! | fault, reclaim, scan | `triples::a_store_into_a_table_...` |
//! | unmap, unmap, fault | `loom_guest::of_two_unmaps_neither_...` |
//! | map, map, reclaim | `loom_protocol::two_mappings_...` |
#![cfg(loom)]

#[path = "../support/loom_backing.rs"]
mod backing;
#[path = "../support/loom_hardware.rs"]
mod hardware;
#[path = "../support/loom_harvest.rs"]
mod harvest;
#[path = "../support/loom.rs"]
mod scene;

mod aging;
mod dirty;
mod mappings;
mod sections;
mod tables;
mod teardown;
mod triples;

use backing::SameFrame;
use hardware::{Hardware, guest_stores};
use scene::{frame, map, page};
use stage2::Reader;
use stage2::arch::Arch;

pub(crate) type Scene = scene::Scene<Hardware>;
pub(crate) type Guest = scene::Guest<Hardware>;

/// What every pair is explored to.
pub(crate) const PAIR: scene::Setting = scene::Setting::new(3, 2);
/// What every triple of three CPUs is explored to.
pub(crate) const TRIPLE: scene::Setting = scene::Setting::new(2, 3);

/// Unlinks what is ready, passes a quiescent state, and frees what it can.
pub(crate) fn unlink_and_free<A: Arch>(guest: &scene::Guest<A>, reader: &mut Reader<'_>) {
    guest.reclaim(reader, 1).expect("the reader is of this machine");
    reader.quiescent();
    guest.reclaim(reader, 1).expect("the reader is of this machine");
}

/// Page `n` is mapped to frame `to`, where the guest has stored `value`, and the TLB has it.
pub(crate) fn stored(scene: &'static Scene, guest: &Guest, n: u64, to: u64, value: u64) {
    scene.alone(|reader| {
        map(guest, reader, n, to).expect("nothing is mapped");
        let _loaded = guest.load(reader).expect("nothing is loaded");
        scene.mmu.arch().store(scene.mmu.memory(), page(n), value).expect("it is mapped read-write");
        assert!(scene.mmu.arch().writes(frame(to)));
    });
}

/// This CPU loads the guest and stores `value` to its page `n`, which a fault maps to frame `n` if nothing is mapped.
pub(crate) fn store_by_fault(
    scene: &'static Scene,
    guest: &'static Guest,
    reader: &Reader<'_>,
    n: u64,
    value: u64,
) -> bool {
    let loaded = guest.load(reader).expect("nothing is loaded");
    guest_stores(scene.mmu, &loaded, reader, &SameFrame, page(n), value)
}
