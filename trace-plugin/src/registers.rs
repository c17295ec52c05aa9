//! The registers of the CPU that is just running.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::{ptr, slice};

use crate::api::{self, Array, Register};

/// Handles of PSTATE, VMPIDR_EL2 and X0 to X30: the same for every CPU.
struct Handles {
    pstate: *mut Register,
    vmpidr: *mut Register,
    x: [*mut Register; 31],
}

// SAFETY: the handles are names that QEMU gives to registers; nothing is behind them that a thread could touch.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

static HANDLES: OnceLock<Handles> = OnceLock::new();

/// Learns the registers' handles. In the context of a CPU that was just made.
pub(crate) fn learn() {
    HANDLES.get_or_init(|| {
        let mut handles = Handles { pstate: ptr::null_mut(), vmpidr: ptr::null_mut(), x: [ptr::null_mut(); 31] };
        // SAFETY: called from a CPU's own callback, as the interface asks.
        let list = unsafe { api::qemu_plugin_get_registers() };
        // SAFETY: an array of descriptors, ours from now on; it is never freed.
        let list = unsafe { &*list };
        // SAFETY: as many as it says.
        let descriptors = unsafe { slice::from_raw_parts(list.data, list.length as usize) };
        for descriptor in descriptors {
            // SAFETY: names are strings that live as long as QEMU.
            let name = unsafe { CStr::from_ptr(descriptor.name) }.to_bytes();
            match name.strip_prefix(b"x").and_then(|number| str::from_utf8(number).ok()?.parse::<usize>().ok()) {
                Some(number) if number < handles.x.len() => handles.x[number] = descriptor.handle,
                _ if name == b"cpsr" => handles.pstate = descriptor.handle,
                _ if name == b"VMPIDR_EL2" => handles.vmpidr = descriptor.handle,
                _ => {}
            }
        }
        let is_known = |handle: &*mut Register| !handle.is_null();
        let all = handles.x.iter().all(is_known) && is_known(&handles.pstate) && is_known(&handles.vmpidr);
        assert!(all, "QEMU does not show the registers of an AArch64 CPU with EL2");
        handles
    });
}

fn handles() -> &'static Handles {
    HANDLES.get().expect("a CPU was made before it runs")
}

/// The exception level, of the CPU in whose context this is called.
pub(crate) fn exception_level(buffer: &mut Buffer) -> u64 {
    const AARCH32: u64 = 1 << 4;
    let pstate = buffer.read(handles().pstate);
    if pstate & AARCH32 != 0 { 1 } else { pstate >> 2 & 0b11 }
}

/// The CPU in whose context this is called.
///
/// Not the number that QEMU hands to a callback: where all CPUs are one thread's it is that of the CPU for which the block was
/// translated, whoever executes it (seen with 10.0). VMPIDR_EL2 is MPIDR_EL1 from reset on, and a vCPU here is its CPU; Aff0 of
/// the `virt` machine is the CPU's number, as long as there are no more than 16.
pub(crate) fn cpu(buffer: &mut Buffer) -> u8 {
    buffer.read(handles().vmpidr) as u8
}

/// X`number`; 31 is XZR.
pub(crate) fn general(buffer: &mut Buffer, number: u8) -> u64 {
    handles().x.get(usize::from(number)).map_or(0, |&handle| buffer.read(handle))
}

/// Where QEMU puts a register's value.
pub(crate) struct Buffer(*mut Array<u8>);

// SAFETY: the array belongs to this alone, and is used through `&mut` only.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(crate) fn new() -> Self {
        // SAFETY: has no preconditions.
        Self(unsafe { api::g_byte_array_new() })
    }

    fn read(&mut self, register: *mut Register) -> u64 {
        // SAFETY: our array; QEMU appends to it.
        unsafe { api::g_byte_array_set_size(self.0, 0) };
        // SAFETY: called in a callback that may read registers, with one of QEMU's handles.
        let length = unsafe { api::qemu_plugin_read_register(register, self.0) };
        let length = usize::try_from(length).expect("the register can be read");
        // SAFETY: our array.
        let array = unsafe { &*self.0 };
        // SAFETY: QEMU put as many bytes there as it says.
        let bytes = unsafe { slice::from_raw_parts(array.data, length.min(array.length as usize)) };
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }
}
