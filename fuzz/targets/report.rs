//! What an image may have written to its report and its guest to its console, as `cargo xtask` reads it. The reader's files are
//! here under the names they have there.
#![no_main]
#![allow(dead_code, reason = "what only the runner of machines uses")]

#[path = "../../xtask/src/guest/console.rs"]
mod console;
#[path = "../../xtask/src/machine/ending.rs"]
mod ending;
#[path = "../../xtask/src/machine/events.rs"]
mod events;
#[path = "../../xtask/src/reading.rs"]
mod reading;
#[path = "../../xtask/src/report.rs"]
mod report;
#[path = "../../xtask/src/summary.rs"]
mod summary;
mod tally;
#[path = "../../xtask/src/verdict.rs"]
mod verdict;
#[path = "../../xtask/src/machine/watchdog.rs"]
mod watchdog;

mod guest {
    pub(crate) use crate::console;
}

mod machine {
    pub(crate) use crate::ending::Ending;
    pub(crate) use crate::{events, watchdog};
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tally::add(reading::run(bytes)));
