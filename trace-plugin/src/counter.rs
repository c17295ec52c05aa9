//! Counting: what EL2 executes in the windows that the image opens and closes, by operation.
//!
//! Each instruction of EL2 is counted when it is about to be executed, and by what it is: load, store, atomic, barrier, TLBI, cache
//! maintenance. A
//! store's line is one that another CPU may touch unless the image has said that its memory is private. A lock of this library is a
//! byte that is taken by a compare-and-swap with acquire and no release, and nothing else in it is.
//!
//! At the end a file is written: a line for each operation, and one for each instruction it has executed.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{c_uint, c_void};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use stage2_trace_events::Mark;
use stage2_trace_events::instruction::{Access, Atomic, Instruction, access, decode, maintains_caches};

use crate::registers::Buffer;
use crate::{Site, api, registers};

/// log2 of the bytes of a cache line.
const LINE_SHIFT: u32 = 6;

/// Whether a window is open: every instruction of EL2 asks.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

static COUNTER: OnceLock<Mutex<Counter>> = OnceLock::new();

struct Counter {
    place: PathBuf,
    buffer: Buffer,
    /// Memory that is one CPU's own: first address and bytes.
    private: Vec<(u64, u64)>,
    operations: BTreeMap<u64, Counts>,
    /// The one whose window is open.
    open: u64,
    /// The shared lines that were written in this window.
    lines: HashSet<u64>,
}

/// What was counted of one operation.
#[derive(Default)]
struct Counts {
    windows: u64,
    instructions: u64,
    loads: u64,
    stores: u64,
    atomics: u64,
    barriers: u64,
    tlbis: u64,
    cache_operations: u64,
    locks: u64,
    shared_lines: u64,
    /// How often each instruction was executed.
    places: BTreeMap<u32, u64>,
}

/// Counts from here on. Once.
pub(crate) fn start(place: &str) -> io::Result<()> {
    let counter = Counter {
        place: place.into(),
        buffer: Buffer::new(),
        private: Vec::new(),
        operations: BTreeMap::new(),
        open: 0,
        lines: HashSet::new(),
    };
    COUNTER.set(Mutex::new(counter)).map_err(|_| io::Error::other("loaded twice"))
}

fn counter() -> MutexGuard<'static, Counter> {
    let counter = COUNTER.get().expect("started when the plugin was installed");
    counter.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chooses what is counted of a block: EL2's instructions, and the marks of any EL.
pub(crate) extern "C" fn block_translated(_: api::Id, block: *mut api::Block) {
    let is_hypervisor = registers::exception_level(&mut counter().buffer) == crate::HYPERVISOR;
    for (instruction, site) in crate::sites(block) {
        let data = site.to_pointer();
        if decode(site.opcode) == Some(Instruction::Mark) {
            // SAFETY: the callback is of the type the interface asks for; `data` is a number.
            unsafe { api::qemu_plugin_register_vcpu_insn_exec_cb(instruction, marked, api::READ_REGISTERS, data) };
        } else if is_hypervisor {
            // SAFETY: as above.
            unsafe { api::qemu_plugin_register_vcpu_insn_exec_cb(instruction, executed, api::NO_REGISTERS, data) };
            // SAFETY: as above.
            unsafe {
                api::qemu_plugin_register_vcpu_mem_cb(instruction, stored, api::NO_REGISTERS, api::WRITES, data);
            }
        }
    }
}

pub(crate) extern "C" fn machine_stopped(_: api::Id, _: *mut c_void) {
    let counter = counter();
    if let Err(error) = counter.write() {
        eprintln!("the counts cannot be written to {}: {error}", counter.place.display());
    }
}

extern "C" fn marked(_: c_uint, data: *mut c_void) {
    let mut guard = counter();
    let counter: &mut Counter = &mut guard;
    let mark = [0, 1, 2].map(|number| registers::general(&mut counter.buffer, number));
    match Mark::from_registers(mark) {
        Some(Mark::WindowOpens { operation }) => {
            counter.open = operation;
            counter.lines.clear();
            counter.operations.entry(operation).or_default().windows += 1;
            IS_OPEN.store(true, Ordering::Relaxed);
        }
        Some(Mark::WindowCloses) => {
            let lines = counter.lines.len() as u64;
            counter.counts().shared_lines += lines;
            IS_OPEN.store(false, Ordering::Relaxed);
        }
        Some(Mark::Private { start, bytes }) => counter.private.push((start, bytes)),
        // To the CPU it is a NOP like any other.
        _ if IS_OPEN.load(Ordering::Relaxed) => counter.counts().add(Site::from_pointer(data)),
        _ => {}
    }
}

extern "C" fn executed(_: c_uint, data: *mut c_void) {
    if IS_OPEN.load(Ordering::Relaxed) {
        counter().counts().add(Site::from_pointer(data));
    }
}

extern "C" fn stored(_: c_uint, info: api::MemInfo, address: u64, _: *mut c_void) {
    if IS_OPEN.load(Ordering::Relaxed) {
        // SAFETY: `info` is of this callback's access.
        let bytes = 1 << unsafe { api::qemu_plugin_mem_size_shift(info) };
        counter().note(address, bytes);
    }
}

impl Counter {
    fn counts(&mut self) -> &mut Counts {
        self.operations.entry(self.open).or_default()
    }

    /// EL2 maps memory one to one: an address is a place.
    fn note(&mut self, address: u64, bytes: u64) {
        if !self.private.iter().any(|&(start, length)| address.wrapping_sub(start) < length) {
            self.lines.extend(address >> LINE_SHIFT..=(address + bytes - 1) >> LINE_SHIFT);
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(&self.place)?);
        for (operation, counts) in &self.operations {
            let Counts { windows, instructions, loads, stores, atomics, barriers, tlbis, .. } = counts;
            let Counts { cache_operations, locks, shared_lines, places, .. } = counts;
            writeln!(
                file,
                "operation {operation} {windows} {instructions} {loads} {stores} {atomics} {barriers} {tlbis} \
                 {cache_operations} {locks} {shared_lines}"
            )?;
            for (place, times) in places {
                writeln!(file, "place {operation} {place:#x} {times}")?;
            }
        }
        file.flush()
    }
}

impl Counts {
    fn add(&mut self, Site { opcode, pc }: Site) {
        self.instructions += 1;
        *self.places.entry(pc).or_default() += 1;
        match access(opcode) {
            Some(Access::Load) => self.loads += 1,
            Some(Access::Store) => self.stores += 1,
            Some(Access::Atomic(Atomic { size, release })) => {
                self.atomics += 1;
                self.locks += u64::from(size == 0 && !release);
            }
            Some(Access::LoadExclusive) | None => {}
        }
        match decode(opcode) {
            Some(Instruction::Barrier(_) | Instruction::Isb) => self.barriers += 1,
            Some(Instruction::Tlbi(..)) => self.tlbis += 1,
            _ => {}
        }
        self.cache_operations += u64::from(maintains_caches(opcode));
    }
}
