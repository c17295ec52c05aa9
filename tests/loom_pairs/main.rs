//! Every pair of operations under loom: what must hold between the two, at a preemption bound of 3; and triples, at 2 or more.
#![cfg(loom)]

#[path = "../support/loom_backing.rs"]
mod backing;
#[path = "../support/loom_hardware.rs"]
mod hardware;
#[path = "../support/loom_harvest.rs"]
mod harvest;
#[path = "../support/loom.rs"]
mod scene;

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

/// The guest's pages from 0 on, as a fault finds them: loads the guest and stores `value` to page `n`, frame `n` if nothing
/// is mapped.
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
