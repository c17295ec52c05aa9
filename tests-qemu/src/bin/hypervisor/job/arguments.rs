//! The run's arguments, checked.

use core::ops::Range;

use defmt::Display2Format;
use stage2::dirty::Tracking;
use stage2_platform::{
    args::{self, NotANumber},
    cpus,
};

const MIB: u64 = 1 << 20;

/// What the host asks for.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    /// The guest's CPUs: CPU 0 and those after it.
    pub(crate) vcpus: usize,
    /// The bytes of its memory.
    pub(crate) memory: u64,
    /// How long the built-in guest works. Linux is told by its initrd.
    pub(crate) seconds: u64,
    /// What everything random depends on.
    pub(crate) seed: u64,
    /// How stores are tracked; if this does not say, the library chooses.
    pub(crate) tracking: Option<Tracking>,
    /// Whether RAM may be mapped by blocks.
    pub(crate) blocks: bool,
    /// Linux; otherwise the built-in guest.
    pub(crate) linux: Option<LinuxFiles>,
}

/// Where the host has put Linux, as physical addresses.
#[derive(Clone, Debug)]
pub(crate) struct LinuxFiles {
    /// The kernel: an arm64 Image.
    pub(crate) kernel: Range<u64>,
    /// The initial RAM disk.
    pub(crate) initrd: Range<u64>,
}

/// What is wrong with the arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BadArguments {
    /// This text is no number.
    NotANumber(&'static str),
    /// There is no such guest.
    UnknownGuest(&'static str),
    /// There is no such way of tracking.
    UnknownTracking(&'static str),
    /// This way of tracking takes CPUs that keep dirty state, and these do not.
    NoHardwareState(Tracking),
    /// This argument, which names a file's place in memory, is missing or no `ADDRESS:LENGTH`.
    NoFile(&'static str),
    /// The guest needs this many CPUs, one more for housekeeping, and the machine has not so many.
    TooFewCpus { needed: u64 },
    /// The guest's memory is less than so many MiB, or more than can be.
    Memory { least: u64, most: u64 },
}

impl defmt::Format for BadArguments {
    fn format(&self, to: defmt::Formatter<'_>) {
        match *self {
            Self::NotANumber(text) => defmt::write!(to, "{=str} is no number", text),
            Self::UnknownGuest(name) => defmt::write!(to, "there is no guest {=str}", name),
            Self::UnknownTracking(name) => defmt::write!(to, "there is no way of tracking {=str}", name),
            Self::NoHardwareState(tracking) => {
                defmt::write!(
                    to,
                    "{} tracking takes CPUs that manage dirty state, and these do not",
                    Display2Format(&tracking)
                );
            }
            Self::NoFile(key) => defmt::write!(to, "{=str} has to be ADDRESS:LENGTH", key),
            Self::TooFewCpus { needed } => defmt::write!(to, "that takes {=u64} CPUs", needed),
            Self::Memory { least, most } => {
                defmt::write!(to, "this guest's memory is from {=u64} to {=u64} MiB", least, most);
            }
        }
    }
}

impl From<NotANumber> for BadArguments {
    fn from(error: NotANumber) -> Self {
        Self::NotANumber(error.0)
    }
}

impl Arguments {
    /// Those of this run.
    pub(crate) fn read() -> Result<Self, BadArguments> {
        let vcpus = args::number("vcpus", 3)?;
        let needed = vcpus.max(1).saturating_add(1);
        if vcpus == 0 || needed > cpus::count() as u64 {
            return Err(BadArguments::TooFewCpus { needed });
        }
        let linux = match args::get("guest").unwrap_or("builtin") {
            "builtin" => None,
            "linux" => Some(LinuxFiles { kernel: file("kernel")?, initrd: file("initrd")? }),
            other => return Err(BadArguments::UnknownGuest(other)),
        };
        // Linux's device tree lies 128 MiB above the start of RAM.
        let (default, least, most) = if linux.is_some() { (512, 256, 4096) } else { (64, 16, 4096) };
        let memory = args::number("memory", default)?;
        if !(least..=most).contains(&memory) {
            return Err(BadArguments::Memory { least, most });
        }
        Ok(Self {
            vcpus: vcpus as usize,
            // Whole level-3 tables.
            memory: (memory * MIB).next_multiple_of(2 * MIB),
            seconds: args::number("seconds", 5)?,
            seed: args::number("seed", 1)?,
            tracking: args::get("tracking").map(tracking).transpose()?,
            blocks: args::number("blocks", 0)? != 0,
            linux,
        })
    }
}

fn tracking(name: &'static str) -> Result<Tracking, BadArguments> {
    match name {
        "write-protect" => Ok(Tracking::WriteProtect),
        "hardware" => Ok(Tracking::Hardware),
        "adaptive" => Ok(Tracking::Adaptive),
        other => Err(BadArguments::UnknownTracking(other)),
    }
}

/// `ADDRESS:LENGTH`
fn file(key: &'static str) -> Result<Range<u64>, BadArguments> {
    let (address, length) = args::get(key).and_then(|text| text.split_once(':')).ok_or(BadArguments::NoFile(key))?;
    let start = args::parse(address)?;
    let end = start.checked_add(args::parse(length)?).ok_or(BadArguments::NoFile(key))?;
    Ok(start..end)
}
