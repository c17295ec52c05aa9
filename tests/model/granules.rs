//! The other granules, and roots of several tables.

use stage2::cpu::CpuIndex;
use stage2::geometry::{Granule, Granule4K, Granule16K, Granule64K};
use stage2::model::{Access, ModelMmu};

use crate::support::*;

/// Maps, faults, unmaps and reclaims at both ends of the address space, at every level that the granule has.
fn ends_of_the_address_space<G: Granule>(seed: u64) {
    let features = rich();
    let model = ModelMmu::new::<G>(2, seed);
    let mmu = machine::<G>(&model, 2, 64, features);
    let _cpu = model.cpu(0);
    let tree = guest::<G>(mmu, features, 64);
    let mut reader = mmu.reader(CpuIndex(0)).unwrap();
    let frames = Frames::with_pages_of(G::PAGE_SIZE);
    let top = (1 << 40) - G::PAGE_SIZE;
    let places = [0, G::PAGE_SIZE, G::PAGE_SIZE * G::ENTRIES as u64, 1 << 39, top];
    {
        let _cpu = model.cpu(1);
        let there = mmu.reader(CpuIndex(1)).unwrap();
        let loaded = tree.load(&there).unwrap();
        for place in places {
            guest_accesses(&loaded, &there, &frames, place, Access::Store);
        }
        let _cpu = model.cpu(0);
        for place in places {
            let release = |removed: stage2::stage2::Removed<'_>| {
                model.free_frame(*removed.frame.peek(), G::PAGE_SIZE);
                frames.set(removed.ipa, frames.fresh());
            };
            let unmapped = tree.unmap_with(&reader, range(place, G::PAGE_SIZE), release).unwrap();
            assert_eq!(unmapped.leaves, 1, "{place:#x}");
        }
        let _cpu = model.cpu(1);
        guest_accesses(&loaded, &there, &frames, top, Access::Load);
    }
    for _ in 0..8 {
        reader.quiescent();
        tree.reclaim(&reader, 64).unwrap();
    }
    assert!(tree.teardown(&reader).is_ok());
    model.assert_nothing_leaked();
}

#[test]
fn with_4k_pages_and_two_root_tables() {
    ends_of_the_address_space::<Granule4K>(1);
}

#[test]
fn with_16k_pages() {
    ends_of_the_address_space::<Granule16K>(2);
}

#[test]
fn with_64k_pages() {
    ends_of_the_address_space::<Granule64K>(3);
}
