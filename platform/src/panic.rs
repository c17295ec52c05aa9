//! The panic handler: one log message, one event, exit code 2.

use core::{
    fmt::Write,
    hint,
    panic::PanicInfo,
    sync::atomic::{AtomicU8, Ordering},
};

use arrayvec::ArrayString;
use serde::Serialize;

use crate::{ExitCode, cpus, events, exit, logger};

const NOBODY: u8 = u8::MAX;

/// The first CPU that panicked, which reports.
static REPORTER: AtomicU8 = AtomicU8::new(NOBODY);

#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    cpu: u8,
    message: &'a str,
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let cpu = cpus::current().get() as u8;
    match REPORTER.compare_exchange(NOBODY, cpu, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => report(cpu, info),
        // The report itself panicked.
        Err(reporter) if reporter == cpu => exit(ExitCode::Panic),
        // Another CPU reports, and then stops them all.
        Err(_) => loop {
            hint::spin_loop();
        },
    }
}

fn report(cpu: u8, info: &PanicInfo<'_>) -> ! {
    let mut message = ArrayString::<1024>::new();
    // What does not fit is left out.
    let _ = write!(message, "{info}");
    if !logger::is_busy_here() {
        defmt::error!("CPU {=u8}: {=str}", cpu, message.as_str());
    }
    events::emit_last(&Event { event: "panic", cpu, message: &message });
    exit(ExitCode::Panic)
}
