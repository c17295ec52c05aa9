//! A sequence of operations, read from bytes: any bytes are one. The first four choose the machine, four more each are a
//! step. Small changes of the bytes are small changes of the sequence, which is what a fuzzer and what shrinking need.

use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, Initial};
use stage2::model::Access;

/// CPUs that take part, each with a reader.
pub(crate) const CPUS: u16 = 3;
/// Windows of addresses that are worked on.
pub(crate) const WINDOWS: usize = 5;
/// Pages of each.
pub(crate) const WINDOW: u64 = 12;

/// The machine and its guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) granule: u8,
    /// One of the sizes of IPA that the granule has.
    pub(crate) size: u8,
    pub(crate) features: u8,
    /// Table pages there are; too few now and then.
    pub(crate) tables: usize,
    /// What the hardware's choices depend on.
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    Map(Attributes, Content),
    Unmap,
    UnmapWith,
    Protect(Permissions),
    WriteProtect,
    /// The guest tries it on the first page, and its faults are resolved.
    Access(Access),
    /// An abort is reported that may have no cause any more.
    Abort {
        code: u64,
        write: bool,
        execute: bool,
    },
    /// Each page of the range is looked at.
    Look,
    /// Everything is.
    LookAtAll,
    StartLogging(Initial),
    StopLogging,
    Scan,
    /// Scan, rearm and copy, of the pages that the mask has.
    Harvest {
        mask: u64,
    },
    /// The hypervisor stores to the first page.
    Fill,
    Reclaim {
        budget: u32,
    },
    Quiescent,
    /// The guest runs, and does nothing.
    Run,
    Freeze,
    Thaw,
    Load,
    Unload,
    /// The allocation after so many fails.
    Starve {
        successes: u64,
    },
    /// And no more do.
    Feed,
    FlushMapped,
    MakeOld,
    /// The guest is torn down, and another one begins.
    Teardown,
}

/// An operation, who does it, and the pages of one window that it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) cpu: u16,
    pub(crate) window: usize,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) operation: Operation,
}

/// Reads them; `None` without a setting.
pub(crate) fn read(bytes: &[u8]) -> Option<(Setting, impl Iterator<Item = Step>)> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    let [sizes, features, tables, seed] = *first;
    let setting = Setting {
        // Mostly 4K: its tables are full sooner, and its walks longer.
        granule: (sizes >> 4).saturating_sub(13),
        size: sizes & 0xf,
        features,
        tables: 18 + usize::from(tables % 64),
        seed: u64::from(seed) << 8 | 1,
    };
    Some((setting, rest.as_chunks::<4>().0.iter().map(|bytes| step(*bytes))))
}

fn step([operation, place, range, argument]: [u8; 4]) -> Step {
    let first = u64::from(range) % WINDOW;
    // Mostly few pages: much is a matter of one, and some of tables that begin and end within the range.
    let count = if argument & 0x80 == 0 { 1 + u64::from(argument) % 4 } else { u64::from(argument) % WINDOW + 1 };
    Step {
        cpu: u16::from(place >> 6) % CPUS,
        // Mostly where the log is.
        window: [0, 0, 0, 1, 1, 2, 3, 4][usize::from(place & 7)],
        first,
        count: count.min(WINDOW - first),
        operation: self::operation(operation, argument),
    }
}

fn permissions(argument: u8) -> Permissions {
    [Permissions::R, Permissions::RW, Permissions::RX, Permissions::RWX][usize::from(argument >> 3 & 3)]
}

fn operation(code: u8, argument: u8) -> Operation {
    let flag = |bit: u8| argument >> bit & 1 == 1;
    match code % 48 {
        0..=5 => {
            let attributes = if argument >> 5 & 3 == 3 {
                Attributes::device(flag(3))
            } else {
                Attributes::normal(permissions(argument))
            };
            Operation::Map(attributes, if flag(2) { Content::Unchanged } else { Content::New })
        }
        6 | 7 => Operation::Unmap,
        8..=10 => Operation::UnmapWith,
        11 | 12 => Operation::Protect(permissions(argument)),
        13 => Operation::WriteProtect,
        14..=17 => Operation::Access(Access::Store),
        18 | 19 => Operation::Access(Access::Load),
        20 => Operation::Access(Access::Fetch),
        21 => Operation::Access(Access::Stage1Walk),
        22 => Operation::Access(Access::Stage1Update),
        23..=25 => {
            const CODES: [u64; 8] =
                [0b00_0111, 0b00_1111, 0b00_0101, 0b00_1101, 0b00_1011, 0b11_0000, 0b00_0000, 0b01_0000];
            Operation::Abort { code: CODES[usize::from(argument & 7)], write: flag(3), execute: flag(4) }
        }
        26 => Operation::Look,
        27 => Operation::LookAtAll,
        28 => Operation::StartLogging(if argument >> 3 & 3 == 3 { Initial::Dirty } else { Initial::Clean }),
        29 if argument > 0xc0 => Operation::StopLogging,
        29 | 30 => Operation::Scan,
        31..=33 => Operation::Harvest { mask: if flag(3) { u64::MAX } else { u64::from(argument) * 0x0101_0101_0101 } },
        34 | 35 => Operation::Fill,
        36 | 37 => Operation::Reclaim { budget: u32::from(argument % 8) },
        38 | 39 => Operation::Quiescent,
        40 => Operation::Run,
        // All of the root changes: it takes as long as hundreds of others.
        41 if argument > 0xe0 => Operation::Freeze,
        42 => Operation::Thaw,
        43 => Operation::Load,
        44 => Operation::Unload,
        45 if flag(3) => Operation::Starve { successes: u64::from(argument & 3) },
        46 if flag(3) => Operation::MakeOld,
        41 | 45 | 46 => Operation::Feed,
        _ if argument > 0xd0 => Operation::Teardown,
        _ => Operation::FlushMapped,
    }
}
