//! What is watched, and the way out.

use std::io::{self, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use stage2_trace_events::instruction::{Instruction, decode};
use stage2_trace_events::{Happening, Mark, Record, mark};

use crate::registers::Buffer;

/// The memory whose stores are told: the pool that began last. Two numbers, since every store at EL2 is compared with them.
static START: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

static TRACER: OnceLock<Mutex<Tracer>> = OnceLock::new();

/// Whether a store to `address` is told.
pub(crate) fn is_watched(address: u64) -> bool {
    address.wrapping_sub(START.load(Ordering::Relaxed)) < BYTES.load(Ordering::Relaxed)
}

/// The stream of records.
pub(crate) struct Tracer {
    stream: BufWriter<UnixStream>,
    records: u64,
    /// The reader has gone: nobody is left to be told.
    broken: bool,
    /// CPUs, by bits, whose last record is an ISB: the next one says nothing new. They wait in loops of them.
    synchronized: u64,
    pub(crate) buffer: Buffer,
}

/// Connects with the reader. Once.
pub(crate) fn connect(socket: &str) -> io::Result<()> {
    let stream = BufWriter::with_capacity(1 << 16, UnixStream::connect(socket)?);
    let tracer = Tracer { stream, records: 0, broken: false, synchronized: 0, buffer: Buffer::new() };
    TRACER.set(Mutex::new(tracer)).map_err(|_| io::Error::other("loaded twice"))
}

/// The tracer, for one callback. All CPUs are one thread's (`-accel tcg,thread=single`): the records' order is the events'.
pub(crate) fn tracer() -> MutexGuard<'static, Tracer> {
    let tracer = TRACER.get().expect("connected when the plugin was installed");
    tracer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tracer {
    pub(crate) fn tell(&mut self, cpu: u8, pc: u32, what: Happening) {
        let bit = 1u64.checked_shl(u32::from(cpu)).unwrap_or(0);
        let is_isb = matches!(what, Happening::Executed { opcode, .. } if decode(opcode) == Some(Instruction::Isb));
        if is_isb && self.synchronized & bit != 0 {
            return;
        }
        self.synchronized = self.synchronized & !bit | if is_isb { bit } else { 0 };
        if let Happening::Mark(Mark::Pool(mark::Pool { start, bytes, .. })) = what {
            START.store(start, Ordering::Relaxed);
            BYTES.store(bytes, Ordering::Relaxed);
        }
        self.send(Record { cpu, pc, what });
        self.records += 1;
    }

    /// Says that this was all.
    pub(crate) fn end(&mut self) {
        self.send(Record { cpu: 0, pc: 0, what: Happening::End { records: self.records } });
        self.check(|stream| stream.flush());
    }

    fn send(&mut self, record: Record) {
        self.check(|stream| stream.write_all(&record.to_bytes()));
    }

    fn check(&mut self, write: impl FnOnce(&mut BufWriter<UnixStream>) -> io::Result<()>) {
        if !self.broken
            && let Err(error) = write(&mut self.stream)
        {
            self.broken = true;
            eprintln!("the trace's reader has gone: {error}");
        }
    }
}
