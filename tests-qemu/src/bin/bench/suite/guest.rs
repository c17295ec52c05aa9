//! A guest that stores: real writes, by EL1, through the tree that is loaded on this CPU.

use alloc::{format, string::String};
use core::{
    arch::global_asm,
    sync::atomic::{AtomicU64, Ordering},
};

use stage2::{
    Ipa, Reader,
    descriptor::{Attributes, Permissions},
    fault::{Backing, Outcome, Page, Region, Syndrome, Unavailable},
};
use stage2_platform::vcpu::{self, Exit, Vcpu};
use stage2_tests_qemu::{
    machine::{GuestLoaded, GuestStage2},
    say::OrSay,
};

/// Where its code is, as IPA.
pub(crate) const CODE: u64 = 0x8000_0000;

/// The instructions of the code, two a doubleword.
const CODE_WORDS: usize = 3;

// Stores x1 to x3 doublewords from x0 on, x2 bytes apart.
global_asm!(
    ".pushsection .rodata.guest, \"a\"",
    ".balign 8",
    "bench_guest:",
    "1: str x1, [x0]",
    "add x0, x0, x2",
    "subs x3, x3, #1",
    "b.ne 1b",
    "hvc #0",
    "nop",
    ".popsection",
);

unsafe extern "C" {
    static bench_guest: [u64; CODE_WORDS];
}

/// Copies the code to the front of a page, which is to be mapped at [`CODE`].
pub(crate) fn copy_code(page: &[AtomicU64]) {
    // SAFETY: a constant of the image, of this length.
    let code = unsafe { &bench_guest };
    for (from, to) in code.iter().zip(page) {
        to.store(*from, Ordering::Relaxed);
    }
}

/// A guest on this CPU.
pub(crate) struct Guest<'s, 'h> {
    loaded: GuestLoaded<'s, 'h>,
}

/// A backing: all of the memory is there from the start.
pub(crate) struct Mapped;

impl Backing for Mapped {
    fn region(&self, _: Ipa) -> Region {
        Region::Memory(Attributes::normal(Permissions::RW))
    }

    fn page(&self, _: Ipa, _: bool) -> Result<Page, Unavailable> {
        Err(Unavailable::Never)
    }

    fn unused(&self, _: Ipa, _: Page) {}
}

impl<'s, 'h> Guest<'s, 'h> {
    /// Loads the tree on this CPU, which is prepared; it has the code mapped.
    pub(crate) fn new(tree: &'s GuestStage2<'h>, reader: &Reader<'_>) -> Result<Self, String> {
        Ok(Self { loaded: tree.load(reader).or_say("load")? })
    }

    /// Stores to `count` doublewords from `ipa` on, `stride` bytes apart, and says how many faults it took.
    pub(crate) fn store(&mut self, reader: &mut Reader<'_>, ipa: u64, stride: u64, count: u64) -> Result<u64, String> {
        let mut vcpu = Vcpu::new(CODE, ipa);
        vcpu.x[1..4].copy_from_slice(&[ipa, stride, count]);
        let mut faults = 0;
        loop {
            // SAFETY: the CPU is prepared, and the tree is loaded; it maps nothing but frames that EL2 leaves alone.
            let exit = self.loaded.run(reader, || unsafe { vcpu.enter() }).or_say("run")?;
            let Exit::Sync(syndrome) = exit else { return Err(format!("{exit:?}")) };
            if syndrome.class() == vcpu::Syndrome::HVC {
                return Ok(faults);
            }
            let syndrome = Syndrome { esr: syndrome.esr, far: syndrome.far, hpfar: syndrome.hpfar };
            match self.loaded.resolve(reader, &Mapped, syndrome).or_say("resolve")? {
                Outcome::Resumed => faults += 1,
                other => return Err(format!("{other:?} at {:#x}: {syndrome:x?}", vcpu.elr)),
            }
        }
    }
}
