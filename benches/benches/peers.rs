//! The same work by each library, in one run: `cargo xtask bench peers`.

use divan::Bencher;
use divan::counter::ItemsCount;
use stage2_benches::{Generic, Multiarch, Ours, PAGES, Paging, Subject};

fn main() {
    divan::main();
}

/// Does `work` to tables that `prepare` has had its way with.
fn each<S: Subject>(bencher: Bencher, prepare: fn(&mut S), work: fn(&mut S)) {
    let prepared = || {
        let mut subject = S::new();
        prepare(&mut subject);
        subject
    };
    bencher.counter(ItemsCount::new(PAGES)).with_inputs(prepared).bench_local_values(|mut subject| {
        work(&mut subject);
        // Dropped afterwards.
        subject
    });
}

#[divan::bench(types = [Ours, Multiarch, Paging, Generic], sample_size = 1)]
fn map_page<S: Subject>(bencher: Bencher) {
    each::<S>(bencher, |_| (), |subject| (0..PAGES).for_each(|page| subject.map_page(page)));
}

#[divan::bench(types = [Ours, Multiarch, Paging, Generic], sample_size = 1)]
fn map_range<S: Subject>(bencher: Bencher) {
    each::<S>(bencher, |_| (), S::map_all);
}

#[divan::bench(types = [Ours, Multiarch, Paging, Generic], sample_size = 1)]
fn query<S: Subject>(bencher: Bencher) {
    let look = |subject: &mut S| {
        (0..PAGES).for_each(|page| {
            divan::black_box(subject.query(page));
        });
    };
    each::<S>(bencher, S::map_all, look);
}

#[divan::bench(types = [Ours, Multiarch, Paging, Generic], sample_size = 1)]
fn protect_range<S: Subject>(bencher: Bencher) {
    each::<S>(bencher, S::map_all, S::protect_all);
}

#[divan::bench(types = [Ours, Multiarch, Paging, Generic], sample_size = 1)]
fn unmap_page<S: Subject>(bencher: Bencher) {
    each::<S>(bencher, S::map_all, |subject| (0..PAGES).for_each(|page| subject.unmap_page(page)));
}

#[divan::bench(types = [Ours, Multiarch, Paging, Generic], sample_size = 1)]
fn unmap_range<S: Subject>(bencher: Bencher) {
    each::<S>(bencher, S::map_all, S::unmap_all);
}
