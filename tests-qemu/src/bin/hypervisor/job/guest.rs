//! What runs: where the guest's RAM is, what is in it at the start, and where the first vCPU begins.

use arrayvec::ArrayVec;
use stage2::{Ipa, IpaRange};
use stage2_platform::{guest_tree::GuestTree, psci::Start, ram::Region};
use stage2_tests_qemu::memory::PAGE_BYTES;

use super::{arguments::Arguments, builtin, devices};

/// Where RAM begins, as on the real `virt` machine.
pub(crate) const RAM: u64 = 0x4000_0000;
/// Where the kernel is put: at its `text_offset` of 0 from a 2 MiB boundary.
const KERNEL: u64 = 0x4020_0000;
const INITRD: u64 = 0x4400_0000;
const DEVICE_TREE: u64 = 0x4800_0000;

/// `earlycon`, or a guest that dies early says nothing; a panic resets at once, which ends the run.
const BOOTARGS: &str = "console=ttyAMA0 earlycon=pl011,0x9000000 panic=-1";

/// The bytes of RAM that the guest is told of. The page behind them is RAM, too, and shared: the hypervisor stores a
/// number to it that grows, as a device would, and the dirty log has to notice.
pub(crate) const fn usable(memory: u64) -> u64 {
    memory - PAGE_BYTES
}

/// The shared page.
pub(crate) fn heartbeat(ram: IpaRange) -> Ipa {
    ram.start().offset(usable(ram.bytes()))
}

/// Bytes that the guest finds in its memory.
#[derive(Clone, Copy)]
pub(crate) struct Blob {
    /// Where: the start of a page.
    at: u64,
    bytes: &'static [u8],
}

impl Blob {
    /// The bytes that are in the page at `ipa`.
    pub(crate) fn page(&self, ipa: Ipa) -> &'static [u8] {
        let page = ipa.raw().checked_sub(self.at).and_then(|offset| self.bytes.get(offset as usize..));
        page.map_or(&[], |rest| &rest[..rest.len().min(PAGE_BYTES as usize)])
    }

    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// A guest that is ready to run.
pub(crate) struct Guest {
    pub(crate) ram: IpaRange,
    pub(crate) contents: ArrayVec<Blob, 3>,
    /// Of vCPU 0; the guest turns on the others.
    pub(crate) start: Start,
}

/// Why there is no guest.
#[derive(Clone, Copy, Debug, defmt::Format)]
pub(crate) enum GuestError {
    /// There is no such RAM.
    Ram,
    /// A file is not where the arguments say, or does not fit between the others.
    File,
    /// The device tree cannot be built.
    DeviceTree,
}

impl Guest {
    /// The one that `arguments` ask for. What the host has loaded is taken off the top of `free`.
    pub(crate) fn new(arguments: &Arguments, free: &mut Region) -> Result<Self, GuestError> {
        let ram = IpaRange::new(Ipa::new(RAM), arguments.memory).ok_or(GuestError::Ram)?;
        let mut contents = ArrayVec::new();
        let Some(files) = &arguments.linux else {
            contents.push(Blob { at: KERNEL, bytes: builtin::image() });
            return Ok(Self { ram, contents, start: Start { entry: KERNEL, context: 0 } });
        };
        let loaded = free.split_off(files.kernel.start.min(files.initrd.start));
        let base = loaded.start();
        let loaded: &'static [u8] = loaded.into_bytes();
        let file = |file: &core::ops::Range<u64>| {
            let offset = |address: u64| address.checked_sub(base).map(|offset| offset as usize);
            loaded.get(offset(file.start)?..offset(file.end)?)
        };
        let kernel = Blob { at: KERNEL, bytes: file(&files.kernel).ok_or(GuestError::File)? };
        let initrd = Blob { at: INITRD, bytes: file(&files.initrd).ok_or(GuestError::File)? };
        if kernel.end() > INITRD || initrd.end() > DEVICE_TREE {
            return Err(GuestError::File);
        }
        let tree = GuestTree {
            memory: RAM..RAM + usable(arguments.memory),
            vcpus: arguments.vcpus,
            bootargs: BOOTARGS,
            initrd: Some(INITRD..initrd.end()),
            rtc: Some(devices::CLOCK),
        };
        let tree = tree.build().map_err(|_| GuestError::DeviceTree)?;
        contents.push(kernel);
        contents.push(initrd);
        contents.push(Blob { at: DEVICE_TREE, bytes: tree.leak() });
        // The boot protocol of arm64 Linux: the device tree's address in x0.
        Ok(Self { ram, contents, start: Start { entry: KERNEL, context: DEVICE_TREE } })
    }
}
