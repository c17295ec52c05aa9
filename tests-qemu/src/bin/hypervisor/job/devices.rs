//! The emulated devices: a PL031 clock, which Linux has a driver for, and the built-in guest's mailbox.
//!
//! A register is read and written as a whole, at its own address; other accesses read as zero and write nothing.

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use stage2::{Ipa, fault::decode::MmioAccess};
use stage2_platform::timer;

use super::{arguments::Arguments, guest};

/// The PL031's registers.
pub(crate) const CLOCK: Range<u64> = 0x0901_0000..0x0901_1000;
/// The mailbox's registers.
const MAILBOX: Range<u64> = 0x0902_0000..0x0902_1000;

/// RTCDR: the time in seconds.
const CLOCK_DATA: u64 = 0x000;
/// PeriphID0 to 3 and PCellID0 to 3: by these Linux knows a PL031.
const CLOCK_IDENTITY: Range<u64> = 0xfe0..0x1000;
const PL031: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The mailbox's registers, by their offset. Each has 8 bytes.
pub(crate) mod mailbox {
    /// Where it is.
    pub(crate) const BASE: u64 = super::MAILBOX.start;
    /// Read: how many vCPUs there are.
    pub(crate) const VCPUS: u64 = 0x00;
    /// Read: the bytes of RAM; behind them is the heartbeat.
    pub(crate) const MEMORY: u64 = 0x08;
    /// Read: how long to work, in seconds.
    pub(crate) const SECONDS: u64 = 0x10;
    /// Read: what everything random depends on.
    pub(crate) const SEED: u64 = 0x18;
    /// Write: that many checks were made.
    pub(crate) const CHECKS: u64 = 0x20;
    /// Write: that many checks failed.
    pub(crate) const FAILED: u64 = 0x28;
}

/// Whether an emulated device is at this address.
pub(crate) fn is_one(ipa: Ipa) -> bool {
    CLOCK.contains(&ipa.raw()) || MAILBOX.contains(&ipa.raw())
}

/// What the built-in guest has reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checks {
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

/// The devices of one guest.
pub(crate) struct Devices {
    arguments: Arguments,
    done: AtomicU64,
    failed: AtomicU64,
    /// How often the clock was read.
    clock_read: AtomicU64,
}

impl Devices {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let zero = || AtomicU64::new(0);
        Self { arguments: arguments.clone(), done: zero(), failed: zero(), clock_read: zero() }
    }

    /// What was reported so far.
    pub(crate) fn checks(&self) -> Checks {
        Checks { done: self.done.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }

    /// What the guest has done so far, by its own count: the built-in guest its checks, and Linux's workload reads the clock with
    /// each piece of work.
    pub(crate) fn work(&self) -> u64 {
        self.done.load(Ordering::Relaxed) + self.clock_read.load(Ordering::Relaxed)
    }

    /// Carries out an access by a vCPU with these registers.
    pub(crate) fn access(&self, access: &MmioAccess, registers: &mut [u64; 31]) {
        let register = access.register.and_then(|number| registers.get_mut(usize::from(number)));
        if access.write {
            // The zero register's value is 0.
            self.write(access.ipa, access.stored(register.map_or(0, |register| *register)));
        } else {
            let data = self.read(access.ipa);
            if let Some(register) = register {
                *register = access.loaded(data);
            }
        }
    }

    fn read(&self, ipa: Ipa) -> u64 {
        if CLOCK.contains(&ipa.raw()) {
            let offset = ipa.raw() - CLOCK.start;
            self.clock_read.fetch_add(u64::from(offset == CLOCK_DATA), Ordering::Relaxed);
            return clock(offset);
        }
        match ipa.raw() - MAILBOX.start {
            mailbox::VCPUS => self.arguments.vcpus as u64,
            mailbox::MEMORY => guest::usable(self.arguments.memory),
            mailbox::SECONDS => self.arguments.seconds,
            mailbox::SEED => self.arguments.seed,
            _ => 0,
        }
    }

    fn write(&self, ipa: Ipa, value: u64) {
        let counter = match ipa.raw().wrapping_sub(MAILBOX.start) {
            mailbox::CHECKS => &self.done,
            mailbox::FAILED => &self.failed,
            _ => return,
        };
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

/// What the PL031 answers.
fn clock(offset: u64) -> u64 {
    match offset {
        CLOCK_DATA => timer::now().as_secs(),
        // One byte in each word.
        _ if CLOCK_IDENTITY.contains(&offset) => u64::from(PL031[(offset - CLOCK_IDENTITY.start) as usize / 4]),
        _ => 0,
    }
}
