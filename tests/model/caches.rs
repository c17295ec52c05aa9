//! What a guest sees behind the data caches, and what it fetches (rule 13).

use stage2::descriptor::{Attributes, MemoryType, Permissions};
use stage2::dirty::Content;
use stage2::model::{Access, Through};

use crate::support::*;

/// The value a frame holds in the caches before it is mapped.
const FILLED: u64 = 0x5eed;

#[test]
fn a_guest_with_its_caches_off_reads_what_the_hypervisor_has_put_into_its_page() {
    let scene = Scene::new(plain(), 1);
    scene.on(0, |here| {
        let frame = scene.frames.get(stage2::Ipa::new(0));
        scene.model.fill(frame, FILLED);
        here.accesses(0, Access::Load);
        assert_eq!(scene.model.load(scene.mmu.memory(), 0, Through::Memory), Ok(FILLED));
    });
}

#[test]
fn memory_that_is_mapped_non_cacheable_is_seen_as_it_was_filled_whatever_the_cpus_have() {
    for features in [plain(), rich()] {
        let scene = Scene::new(features, 1);
        scene.on(0, |here| {
            let frame = scene.frames.fresh();
            scene.model.fill(frame, FILLED);
            let attributes =
                Attributes { memory: MemoryType::NormalNonCacheable, ..Attributes::normal(Permissions::RW) };
            scene.guest.map(&here.reader, range(0, PAGE), frame, attributes, Content::New).unwrap();
            here.accesses(0, Access::Load);
            assert_eq!(scene.model.load(scene.mmu.memory(), 0, Through::Memory), Ok(FILLED));
        });
    }
}

#[test]
fn a_fetch_sees_what_was_put_into_its_page() {
    let scene = Scene::new(plain(), 1);
    scene.on(0, |here| {
        scene.model.fill(scene.frames.get(stage2::Ipa::new(0)), FILLED);
        here.accesses(0, Access::Fetch);
        assert_eq!(scene.model.fetch(scene.mmu.memory(), 0, Through::Memory), Ok(()));
    });
}

#[test]
fn a_page_that_becomes_executable_is_fetched_as_it_is_then() {
    let scene = Scene::new(plain(), 1);
    scene.on(0, |here| {
        let frame = scene.frames.fresh();
        let attributes = Attributes::normal(Permissions::RW);
        scene.guest.map(&here.reader, range(0, PAGE), frame, attributes, Content::New).unwrap();
        here.stores(0, FILLED);
        scene.guest.protect(&here.reader, range(0, PAGE), Permissions::RX).unwrap();
        here.accesses(0, Access::Fetch);
        assert_eq!(scene.model.fetch(scene.mmu.memory(), 0, Through::Memory), Ok(()));
    });
}

#[test]
fn what_a_guest_has_stored_behind_the_caches_is_what_its_frame_holds_when_it_is_handed_back() {
    let scene = Scene::new(plain(), 1);
    scene.on(0, |here| {
        let frame = here.accesses(0, Access::Store);
        assert_eq!(scene.model.content(frame), 0, "and with that it is in the caches");
        scene.model.store(scene.mmu.memory(), 0, FILLED, Through::Memory).unwrap();
        let mut held = None;
        let release = |removed: stage2::stage2::Removed<'_>| held = Some(scene.model.content(*removed.frame.peek()));
        scene.guest.unmap_with(&here.reader, range(0, PAGE), release).unwrap();
        assert_eq!(held, Some(FILLED));
    });
}
