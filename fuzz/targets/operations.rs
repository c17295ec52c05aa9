//! Sequences of operations on the modelled MMU, against a flat map.
#![no_main]

#[path = "../../tests/fuzzed/flat/mod.rs"]
mod flat;
mod tally;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tally::add(flat::run(bytes)));
