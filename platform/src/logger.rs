//! defmt's global logger: frames to `defmt.bin` in QEMU's working directory, each with the microseconds since power-on.
//! (A file of our own: where semihosting's standard output goes differs between QEMU's versions.)
//!
//! One lock makes a frame whole when several CPUs log; a frame is collected in a buffer, because a semihosting call
//! costs far more than the copy. (Crate defmt-semihosting makes a call for every few bytes, and asks for a
//! critical-section implementation, which this platform has no other use for.)
//!
//! Only the owner touches the state: OWNER goes from NOBODY to a CPU with acquire, back with release.

use core::{
    cell::UnsafeCell,
    hint,
    sync::atomic::{AtomicU8, Ordering},
};

use defmt::Encoder;
use semihosting::{fs::File, io::Write};

use crate::{cpus, timer};

defmt::timestamp!("{=u64:us}", timer::now().as_micros() as u64);

#[defmt::global_logger]
struct Logger;

const NOBODY: u8 = u8::MAX;

/// The CPU that writes a frame.
static OWNER: AtomicU8 = AtomicU8::new(NOBODY);

struct Frame(UnsafeCell<State>);

// SAFETY: accessed by OWNER's CPU alone.
unsafe impl Sync for Frame {}

struct State {
    encoder: Encoder,
    output: Output,
}

struct Output {
    file: Option<File>,
    buffer: [u8; 1024],
    used: usize,
}

static FRAME: Frame = Frame(UnsafeCell::new(State {
    encoder: Encoder::new(),
    output: Output { file: None, buffer: [0; 1024], used: 0 },
}));

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.used == self.buffer.len() {
                self.flush();
            }
            self.buffer[self.used] = byte;
            self.used += 1;
        }
    }

    /// A host that refuses log output is no reason to stop.
    fn flush(&mut self) {
        if self.file.is_none() {
            self.file = File::create(c"defmt.bin").ok();
        }
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&self.buffer[..self.used]);
        }
        self.used = 0;
    }
}

/// Whether this CPU is in the middle of a frame, and so must not begin another.
pub(crate) fn is_busy_here() -> bool {
    OWNER.load(Ordering::Relaxed) == cpus::current().get() as u8
}

// SAFETY: `acquire` returns only as the one owner, until `release`; defmt calls the others in between.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        let me = cpus::current().get() as u8;
        assert!(!is_busy_here(), "a log message within a log message");
        while OWNER.compare_exchange_weak(NOBODY, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            hint::spin_loop();
        }
        // SAFETY: this CPU is the owner.
        let State { encoder, output } = unsafe { &mut *FRAME.0.get() };
        encoder.start_frame(|bytes| output.push(bytes));
    }

    unsafe fn flush() {
        // SAFETY: called by the owner.
        let state = unsafe { &mut *FRAME.0.get() };
        state.output.flush();
    }

    unsafe fn release() {
        // SAFETY: called by the owner.
        let State { encoder, output } = unsafe { &mut *FRAME.0.get() };
        encoder.end_frame(|bytes| output.push(bytes));
        output.flush();
        OWNER.store(NOBODY, Ordering::Release);
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: called by the owner.
        let State { encoder, output } = unsafe { &mut *FRAME.0.get() };
        encoder.write(bytes, |bytes| output.push(bytes));
    }
}
