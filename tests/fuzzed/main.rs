//! What the fuzz targets do, without a fuzzer: on the corpus it has left (`fuzz/corpus`), and at random.
#![cfg(not(any(loom, shuttle)))]

mod flat;
mod syndrome;

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

/// Feeds a target what the fuzzer has found to go elsewhere than all before.
fn replay(target: &str, run: fn(&[u8]) -> u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut done = 0;
    for entry in fs::read_dir(&folder).expect("a corpus") {
        done += run(&fs::read(entry.expect("a file").path()).expect("a readable one"));
    }
    assert!(done > 0, "{} says nothing", folder.display());
}

#[test]
fn a_kept_sequence_of_operations_is_that_of_a_flat_map() {
    replay("operations", flat::run);
}

#[test]
fn a_kept_exception_is_handled_by_the_rules() {
    replay("syndrome", syndrome::run);
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_tree_is_a_flat_map(setting: [u8; 4], steps in vec(any::<[u8; 4]>(), 1..80)) {
        flat::run(&[&setting, steps.as_flattened()].concat());
    }
}

proptest! {
    #![proptest_config(cases(4096))]

    #[test]
    fn any_exception_is_handled_by_the_rules(bytes in vec(any::<u8>(), 73)) {
        syndrome::run(&bytes);
    }
}
