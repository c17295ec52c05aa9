//! VMIDs that run out.

use stage2::cpu::CpuIndex;
use stage2::geometry::Granule4K;
use stage2::model::ModelMmu;

use crate::support::*;

/// More than there are 8-bit VMIDs.
const GUESTS: usize = 270;

#[test]
fn with_more_guests_than_vmids_each_sees_its_own_memory_and_frames_go_back_clean() {
    let features = rich().without_vmid16();
    let model = ModelMmu::new::<Granule4K>(4, 11);
    let mmu = machine(&model, 4, 6 * GUESTS, features);
    let _cpu = model.cpu(0);
    let guests: Vec<Guest> = (0..GUESTS).map(|_| guest(mmu, features, 64)).collect();
    let frames: Vec<Frames> = (0..GUESTS as u64).map(Frames::beginning_at).collect();
    for round in 0..3 {
        for (guest, frames) in guests.iter().zip(&frames) {
            let _cpu = model.cpu(1);
            let reader = mmu.reader(CpuIndex(1)).unwrap();
            let loaded = guest.load(&reader).unwrap();
            guest_stores(&loaded, &reader, frames, 0, round);
            guest_stores(&loaded, &reader, frames, PAGE, round);
        }
        // CPU 0 takes pages back, of guests whose VMID is of this generation and of guests whose is not.
        let reader = mmu.reader(CpuIndex(0)).unwrap();
        for (guest, frames) in guests.iter().zip(&frames).step_by(7) {
            let release = |removed: stage2::stage2::Removed<'_>| {
                model.free_frame(*removed.frame.peek(), PAGE);
                frames.set(removed.ipa, frames.fresh());
            };
            assert_eq!(guest.unmap_with(&reader, range(0, PAGE), release).unwrap().leaves, 1);
        }
    }
    assert!(mmu.vmids().rollovers() >= 3);
    let reader = mmu.reader(CpuIndex(0)).unwrap();
    for guest in guests {
        assert!(guest.teardown(&reader).is_ok());
    }
    model.assert_nothing_leaked();
}

#[test]
fn a_guest_that_runs_through_a_rollover_keeps_its_vmid_and_loses_its_pages_like_any_other() {
    let features = rich().without_vmid16();
    let model = ModelMmu::new::<Granule4K>(4, 12);
    let mmu = machine(&model, 4, 6 * GUESTS, features);
    let _cpu = model.cpu(0);
    let running = guest(mmu, features, 64);
    let frames = Frames::default();
    let reader = mmu.reader(CpuIndex(0)).unwrap();
    let there = mmu.reader(CpuIndex(1)).unwrap();
    let loaded = {
        let _cpu = model.cpu(1);
        let loaded = running.load(&there).unwrap();
        guest_stores(&loaded, &there, &frames, 0, 1);
        loaded
    };
    let others: Vec<Guest> = (0..GUESTS).map(|_| guest(mmu, features, 64)).collect();
    for other in &others {
        drop(other.load(&reader).unwrap());
    }
    assert!(mmu.vmids().rollovers() >= 1);
    let release = |removed: stage2::stage2::Removed<'_>| {
        model.free_frame(*removed.frame.peek(), PAGE);
        frames.set(removed.ipa, frames.fresh());
    };
    assert_eq!(running.unmap_with(&reader, range(0, PAGE), release).unwrap().leaves, 1);
    {
        let _cpu = model.cpu(1);
        guest_stores(&loaded, &there, &frames, 0, 2);
        drop(loaded);
    }
    for guest in others.into_iter().chain([running]) {
        assert!(guest.teardown(&reader).is_ok());
    }
}
