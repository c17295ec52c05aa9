//! QEMU's plugin interface, as far as it is used here.
//!
//! Declared from its public documentation (QEMU's "TCG Plugins" and the comments of its header `qemu-plugin.h`), version 4:
//! QEMU 10.0. QEMU resolves these symbols in itself when it loads the plugin; it brings glib along, whose arrays the interface
//! uses.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The version of the interface this is written for; QEMU refuses a plugin that is older or newer than it can serve.
pub(crate) const VERSION: c_int = 4;

/// Identifies the plugin.
pub(crate) type Id = u64;
/// Describes one access to memory.
pub(crate) type MemInfo = u32;

/// A block of instructions that is being translated.
#[repr(C)]
pub(crate) struct Block([u8; 0]);

/// An instruction of such a block.
#[repr(C)]
pub(crate) struct Instruction([u8; 0]);

/// The physical side of an access.
#[repr(C)]
pub(crate) struct HardwareAddress([u8; 0]);

/// A register of the emulated CPU.
#[repr(C)]
pub(crate) struct Register([u8; 0]);

/// What may be read in a callback.
pub(crate) const NO_REGISTERS: c_int = 0;
pub(crate) const READ_REGISTERS: c_int = 1;

/// Which accesses are told.
pub(crate) const WRITES: c_int = 2;
pub(crate) const READS_AND_WRITES: c_int = 3;

/// What a value's `kind` says.
pub(crate) const VALUE_OF_16_BYTES: c_int = 4;

/// A value that was loaded or stored. `low` begins where the smaller values of the interface's union do: on a little-endian host
/// they are its low bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Value {
    pub(crate) kind: c_int,
    pub(crate) low: u64,
    pub(crate) high: u64,
}

/// A register and its name.
#[repr(C)]
pub(crate) struct RegisterDescriptor {
    pub(crate) handle: *mut Register,
    pub(crate) name: *const c_char,
    pub(crate) feature: *const c_char,
}

/// The public part of glib's `GArray` and `GByteArray`.
#[repr(C)]
pub(crate) struct Array<T> {
    pub(crate) data: *mut T,
    pub(crate) length: c_uint,
}

pub(crate) type InitializedCallback = extern "C" fn(Id, c_uint);
pub(crate) type TranslationCallback = extern "C" fn(Id, *mut Block);
pub(crate) type ExecutionCallback = extern "C" fn(c_uint, *mut c_void);
pub(crate) type MemoryCallback = extern "C" fn(c_uint, MemInfo, u64, *mut c_void);
pub(crate) type ExitCallback = extern "C" fn(Id, *mut c_void);

unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_init_cb(id: Id, callback: InitializedCallback);
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: TranslationCallback);
    pub(crate) fn qemu_plugin_register_atexit_cb(id: Id, callback: ExitCallback, data: *mut c_void);
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        callback: ExecutionCallback,
        registers: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut Instruction,
        callback: MemoryCallback,
        registers: c_int,
        accesses: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub(crate) fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub(crate) fn qemu_plugin_insn_data(instruction: *const Instruction, to: *mut c_void, length: usize) -> usize;
    pub(crate) fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    pub(crate) fn qemu_plugin_mem_size_shift(info: MemInfo) -> c_uint;
    pub(crate) fn qemu_plugin_mem_is_store(info: MemInfo) -> bool;
    pub(crate) fn qemu_plugin_mem_get_value(info: MemInfo) -> Value;
    pub(crate) fn qemu_plugin_get_hwaddr(info: MemInfo, address: u64) -> *mut HardwareAddress;
    pub(crate) fn qemu_plugin_hwaddr_phys_addr(address: *const HardwareAddress) -> u64;
    pub(crate) fn qemu_plugin_get_registers() -> *mut Array<RegisterDescriptor>;
    pub(crate) fn qemu_plugin_read_register(register: *mut Register, to: *mut Array<u8>) -> c_int;

    pub(crate) fn g_byte_array_new() -> *mut Array<u8>;
    pub(crate) fn g_byte_array_set_size(array: *mut Array<u8>, length: c_uint) -> *mut Array<u8>;
}
