//! Registers as a CPU may report them with an exception.
#![no_main]

#[path = "../../tests/fuzzed/syndrome.rs"]
mod syndrome;
mod tally;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tally::add(syndrome::run(bytes)));
