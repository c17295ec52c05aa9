//! How many operations a fuzzer's process has done: an input is a sequence of many. The number is in the file that
//! `STAGE2_FUZZ_TALLY` names, kept up to date.

use std::cell::Cell;
use std::env;
use std::fs;
use std::path::PathBuf;

const FILE: &str = "STAGE2_FUZZ_TALLY";
/// Operations between two looks at the file.
const STRIDE: u64 = 1 << 10;

struct Tally {
    done: Cell<u64>,
    written: Cell<u64>,
    file: Option<PathBuf>,
}

thread_local! {
    static TALLY: Tally =
        Tally { done: Cell::new(0), written: Cell::new(0), file: env::var_os(FILE).map(PathBuf::from) };
}

/// So many more were done.
pub(crate) fn add(operations: u64) {
    TALLY.with(|tally| {
        tally.done.set(tally.done.get() + operations);
        if tally.done.get() - tally.written.get() >= STRIDE {
            tally.written.set(tally.done.get());
            if let Some(file) = &tally.file {
                // A tally that cannot be written is a tally that is not counted.
                let _ = fs::write(file, tally.done.get().to_string());
            }
        }
    });
}
