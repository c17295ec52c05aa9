//! Permissions that come and go under a guest that runs.

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::Ordering;
use stage2::descriptor::Permissions;

use crate::scene::*;

#[test]
fn a_store_passes_only_where_somebody_may_have_given_the_permission() {
    explore(|| {
        with_guest(|scene| {
            scene.beside_the_guest(4, || {
                let (_seat, mut reader) = scene.sit(3);
                for _ in 0..3 {
                    let range = any_pages();
                    // A table there may be on its way out: then it is tried no more.
                    let _ = match thread_rng().gen_range(0..3) {
                        0 => scene.guest.write_protect(&reader, range),
                        1 => scene.guest.protect(&reader, range, Permissions::R),
                        _ => scene.guest.protect(&reader, range, Permissions::RWX),
                    };
                    reader.quiescent();
                }
            });
            scene.assert_contents();
        });
    });
}

#[test]
fn after_a_protect_no_store_passes() {
    explore(|| {
        with_guest(|scene| {
            scene.beside_the_guest(4, || {
                let (_seat, reader) = scene.sit(3);
                scene.book.read_only.store(true, Ordering::SeqCst);
                scene.guest.protect(&reader, pages(0, PAGES), Permissions::RX).unwrap();
                scene.book.closed.store(true, Ordering::SeqCst);
            });
            scene.assert_contents();
        });
    });
}
