//! A QEMU plugin that tells what EL2 does to translation tables and TLBs.
//!
//! `-plugin libstage2_trace_plugin.so,socket=PATH` connects to the Unix socket PATH and sends
//! [records](stage2_trace_events::record) of what EL2 does:
//! - stores to table memory (which the image [marks](stage2_trace_events::mark)), with value, size and release; for atomics,
//!   what they found, too, so that what the hardware wrote is seen;
//! - DSB, DMB, ERET, and the first ISB of several; TLBI with operand; writes of VTTBR_EL2, VTCR_EL2 and HCR_EL2;
//! - the image's marks.
//!
//! # How
//! A block of code is translated for the exception level it runs at. One of EL2 has its stores instrumented, and those of its
//! instructions that [`decode`] knows; all others run as without a plugin. EL2 maps RAM one to one, so a store's virtual address
//! picks those that may concern table memory; of these the physical address is asked for.
//!
//! `-plugin libstage2_trace_plugin.so,counts=FILE` counts instead what is executed in the windows that the image opens: [`counter`].
//!
//! Not seen: DC ZVA, which stores no descriptors here; what the hardware's walkers write, until an atomic finds it; what the guest
//! does. Needs `thread=single`, or records of different CPUs come in an order that is not the events'.

mod api;
mod counter;
mod registers;
mod tracer;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::{io, ptr, slice};

use stage2_trace_events::instruction::{Instruction, decode, store_kind};
use stage2_trace_events::{Happening, Mark};

use crate::tracer::{Tracer, tracer};

/// EL2.
const HYPERVISOR: u64 = 2;

/// What QEMU looks for first.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = api::VERSION;

/// Called by QEMU when it has loaded the plugin.
///
/// # Safety
/// `arguments` are `count` strings, as QEMU gives them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: api::Id,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let arguments = match usize::try_from(count) {
        // SAFETY: there are so many of them, by contract.
        Ok(count @ 1..) => unsafe { slice::from_raw_parts(arguments, count) },
        _ => &[],
    };
    // SAFETY: each is a string, by contract.
    let mut words = arguments.iter().filter_map(|&word| unsafe { CStr::from_ptr(word) }.to_str().ok());
    let Some((kind, place)) = words.find_map(|word| word.split_once('=')) else {
        eprintln!("the trace plugin has neither socket=PATH nor counts=FILE");
        return 1;
    };
    let (started, callbacks): (_, (api::TranslationCallback, api::ExitCallback)) = match kind {
        "socket" => (tracer::connect(place), (block_translated, machine_stopped)),
        "counts" => (counter::start(place), (counter::block_translated, counter::machine_stopped)),
        _ => (Err(io::Error::other("no such argument")), (block_translated, machine_stopped)),
    };
    if let Err(error) = started {
        eprintln!("the trace plugin cannot use {kind}={place}: {error}");
        return 1;
    }
    let (translated, stopped) = callbacks;
    // SAFETY: `id` is ours, and the callbacks are of the types the interface asks for.
    unsafe { api::qemu_plugin_register_vcpu_init_cb(id, cpu_made) };
    // SAFETY: as above.
    unsafe { api::qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    // SAFETY: as above.
    unsafe { api::qemu_plugin_register_atexit_cb(id, stopped, ptr::null_mut()) };
    0
}

extern "C" fn cpu_made(_: api::Id, _: c_uint) {
    registers::learn();
}

extern "C" fn machine_stopped(_: api::Id, _: *mut c_void) {
    tracer().end();
}

/// Chooses what will be told of a block.
extern "C" fn block_translated(_: api::Id, block: *mut api::Block) {
    if registers::exception_level(&mut tracer().buffer) != HYPERVISOR {
        return;
    }
    for (instruction, site) in sites(block) {
        let (opcode, data) = (site.opcode, site.to_pointer());
        if decode(opcode).is_some() {
            // SAFETY: the callback is of the type the interface asks for; `data` is a number.
            unsafe {
                api::qemu_plugin_register_vcpu_insn_exec_cb(instruction, executed, api::READ_REGISTERS, data);
            }
        }
        let accesses = if store_kind(opcode).atomic { api::READS_AND_WRITES } else { api::WRITES };
        // SAFETY: as above.
        unsafe {
            api::qemu_plugin_register_vcpu_mem_cb(instruction, accessed, api::NO_REGISTERS, accesses, data);
        }
    }
}

/// The instructions of a block that is just being translated.
fn sites(block: *mut api::Block) -> impl Iterator<Item = (*mut api::Instruction, Site)> {
    // SAFETY: `block` is valid during the callback that was given it.
    let count = unsafe { api::qemu_plugin_tb_n_insns(block) };
    (0..count).map(move |index| {
        // SAFETY: as above; `index < count`.
        let instruction = unsafe { api::qemu_plugin_tb_get_insn(block, index) };
        let mut bytes = [0u8; 4];
        // SAFETY: there is room for as many bytes as are asked for.
        unsafe { api::qemu_plugin_insn_data(instruction, bytes.as_mut_ptr().cast(), bytes.len()) };
        // SAFETY: as for `block`.
        let pc = unsafe { api::qemu_plugin_insn_vaddr(instruction) } as u32;
        (instruction, Site { opcode: u32::from_le_bytes(bytes), pc })
    })
}

extern "C" fn executed(_: c_uint, data: *mut c_void) {
    let site = Site::from_pointer(data);
    let Some(instruction) = decode(site.opcode) else { return };
    let mut guard = tracer();
    let tracer: &mut Tracer = &mut guard;
    let mut general = |number| registers::general(&mut tracer.buffer, number);
    let what = match instruction {
        Instruction::Mark => match Mark::from_registers([general(0), general(1), general(2)]) {
            Some(mark) => Happening::Mark(mark),
            None => return,
        },
        Instruction::Tlbi(_, register) | Instruction::Msr(_, register) => {
            Happening::Executed { opcode: site.opcode, operand: general(register) }
        }
        Instruction::Barrier(_) | Instruction::Isb | Instruction::Eret => {
            Happening::Executed { opcode: site.opcode, operand: 0 }
        }
    };
    let cpu = registers::cpu(&mut tracer.buffer);
    tracer.tell(cpu, site.pc, what);
}

extern "C" fn accessed(_: c_uint, info: api::MemInfo, address: u64, data: *mut c_void) {
    if !tracer::is_watched(address) {
        return;
    }
    let site = Site::from_pointer(data);
    // SAFETY: `info` is of this callback's access.
    let hardware = unsafe { api::qemu_plugin_get_hwaddr(info, address) };
    if hardware.is_null() {
        return;
    }
    // SAFETY: valid during this callback.
    let pa = unsafe { api::qemu_plugin_hwaddr_phys_addr(hardware) };
    // SAFETY: as above.
    let value = unsafe { api::qemu_plugin_mem_get_value(info) };
    // SAFETY: as above.
    let size = unsafe { api::qemu_plugin_mem_size_shift(info) } as u8;
    // SAFETY: as above.
    let is_store = unsafe { api::qemu_plugin_mem_is_store(info) };
    let kind = store_kind(site.opcode);
    let mut tracer = tracer();
    let cpu = registers::cpu(&mut tracer.buffer);
    let mut tell = |pa: u64, value: u64, size: u8| {
        let what = match is_store {
            true => Happening::Store { pa, value, size, kind },
            false => Happening::Found { pa, value, size },
        };
        tracer.tell(cpu, site.pc, what);
    };
    if value.kind == api::VALUE_OF_16_BYTES {
        tell(pa, value.low, 3);
        tell(pa + 8, value.high, 3);
    } else {
        // The rest of the union's bytes are not the value's.
        tell(pa, value.low & u64::MAX >> (64 - (8 << size)), size);
    }
}

/// An instruction, in the bits of a pointer that QEMU hands to its callbacks.
#[derive(Clone, Copy)]
struct Site {
    opcode: u32,
    /// Its address, the low half.
    pc: u32,
}

impl Site {
    fn to_pointer(self) -> *mut c_void {
        ptr::without_provenance_mut((u64::from(self.pc) << 32 | u64::from(self.opcode)) as usize)
    }

    fn from_pointer(data: *mut c_void) -> Self {
        let bits = data.addr() as u64;
        Self { opcode: bits as u32, pc: (bits >> 32) as u32 }
    }
}
