//! Guests that run, fault and lose their pages.

use stage2::addr::Ipa;
use stage2::geometry::Granule4K;
use stage2::model::{Access, ModelMmu};

use crate::support::*;

#[test]
fn a_guest_runs_and_its_pages_and_tables_go_back_one_after_the_other() {
    for features in [rich(), plain()] {
        let model = ModelMmu::new::<Granule4K>(2, 1);
        let mmu = machine(&model, 2, 16, features);
        let frames = Frames::default();
        let _cpu = seat(mmu, 0);
        let guest = guest(mmu, features, 4 * 512);
        let mut reader = reader(mmu, 0);
        let loaded = guest.load(&reader).unwrap();
        for page in [0, 1, 511, 512, 1024] {
            guest_stores(&loaded, &reader, &frames, page * PAGE, page);
            guest_accesses(&loaded, &reader, &frames, page * PAGE, Access::Load);
        }
        guest
            .unmap_with(&reader, range(0, 4 * TABLE), |removed| {
                model.free_frame(*removed.frame.peek(), PAGE);
                frames.set(removed.ipa, frames.fresh());
            })
            .unwrap();
        for _ in 0..4 {
            reader.quiescent();
            guest.reclaim(&reader, 32).unwrap();
        }
        for page in [0, 512] {
            guest_stores(&loaded, &reader, &frames, page * PAGE, page);
        }
        drop(loaded);
        assert!(guest.teardown(&reader).is_ok());
        model.assert_nothing_leaked();
        assert_eq!(frames.get(Ipa::new(0)), frames.get(Ipa::new(0)));
    }
}
