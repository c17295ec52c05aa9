//! Records: one thing that happened at EL2, 24 bytes on its way from the plugin to its reader.
//!
//! | bytes | content |
//! |---|---|
//! | 0 | what happened |
//! | 1 | the CPU |
//! | 2 | of an access, log2 of its bytes; of a mark, X0 |
//! | 3 | of a store, bit 0: release; bit 1: atomic |
//! | 4 to 7 | the instruction's address, its low half; little-endian, as all that follows |
//! | 8 to 15 | the physical address; the opcode; X1 of a mark |
//! | 16 to 23 | the value; the operand; X2 of a mark |
//!
//! The stream ends with [`Happening::End`], which says how many records came before it: one that was cut off is known by that.

use core::fmt;

use crate::instruction::{StoreKind, decode};
use crate::mark::Mark;

/// The bytes of a record.
pub const BYTES: usize = 24;

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// On which CPU.
    pub cpu: u8,
    /// Where: the instruction's address, its low half.
    pub pc: u32,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are what each variant's sentence names")]
pub enum Happening {
    /// A store of `1 << size` bytes, 8 at most, was made to table memory.
    Store { pa: u64, value: u64, size: u8, kind: StoreKind },
    /// An atomic access found this in table memory.
    Found { pa: u64, value: u64, size: u8 },
    /// One of the instructions that are told is about to be executed, with this in its register.
    Executed { opcode: u32, operand: u64 },
    /// The image said so.
    Mark(Mark),
    /// The machine stopped; this many records came before.
    End { records: u64 },
}

/// Bytes that are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRecord(pub [u8; BYTES]);

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?} is no record", self.0)
    }
}

impl core::error::Error for BadRecord {}

/// What byte 0 says.
mod tag {
    pub(super) const STORE: u8 = 1;
    pub(super) const FOUND: u8 = 2;
    pub(super) const EXECUTED: u8 = 3;
    pub(super) const MARK: u8 = 4;
    pub(super) const END: u8 = 5;
}

const RELEASE: u8 = 1 << 0;
const ATOMIC: u8 = 1 << 1;
/// log2 of the bytes of the largest access.
const MAX_SIZE: u8 = 3;

impl Record {
    /// As it travels.
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let (tag, size, flags, first, second) = match self.what {
            Happening::Store { pa, value, size, kind } => {
                let flags = if kind.release { RELEASE } else { 0 } | if kind.atomic { ATOMIC } else { 0 };
                (tag::STORE, size, flags, pa, value)
            }
            Happening::Found { pa, value, size } => (tag::FOUND, size, 0, pa, value),
            Happening::Executed { opcode, operand } => (tag::EXECUTED, 0, 0, u64::from(opcode), operand),
            Happening::Mark(mark) => {
                let [number, first, second] = mark.to_registers();
                (tag::MARK, number as u8, 0, first, second)
            }
            Happening::End { records } => (tag::END, 0, 0, 0, records),
        };
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&[tag, self.cpu, size, flags]);
        bytes[4..8].copy_from_slice(&self.pc.to_le_bytes());
        bytes[8..16].copy_from_slice(&first.to_le_bytes());
        bytes[16..].copy_from_slice(&second.to_le_bytes());
        bytes
    }

    /// As it was.
    ///
    /// # Errors
    /// [`BadRecord`] if the plugin sends no such bytes.
    pub fn from_bytes(bytes: [u8; BYTES]) -> Result<Self, BadRecord> {
        let [tag, cpu, size, flags, ..] = bytes;
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|index| bytes[at + index]));
        let (first, second) = (word(8), word(16));
        let pc = u32::from_le_bytes(core::array::from_fn(|index| bytes[4 + index]));
        let what = match tag {
            tag::STORE if size <= MAX_SIZE && flags & !(RELEASE | ATOMIC) == 0 => {
                let kind = StoreKind { release: flags & RELEASE != 0, atomic: flags & ATOMIC != 0 };
                Some(Happening::Store { pa: first, value: second, size, kind })
            }
            tag::FOUND if size <= MAX_SIZE => Some(Happening::Found { pa: first, value: second, size }),
            tag::EXECUTED => u32::try_from(first)
                .ok()
                .filter(|&opcode| decode(opcode).is_some())
                .map(|opcode| Happening::Executed { opcode, operand: second }),
            tag::MARK => Mark::from_registers([u64::from(size), first, second]).map(Happening::Mark),
            tag::END => Some(Happening::End { records: second }),
            _ => None,
        };
        what.map(|what| Self { cpu, pc, what }).ok_or(BadRecord(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_arrives_as_it_was_sent() {
        let release = StoreKind { release: true, atomic: false };
        for what in [
            Happening::Store { pa: 0x4100_0008, value: u64::MAX, size: 3, kind: release },
            Happening::Store { pa: 0x4100_0001, value: 1, size: 0, kind: StoreKind { release: false, atomic: true } },
            Happening::Found { pa: 0x4100_0001, value: 0, size: 0 },
            Happening::Executed { opcode: 0xd50c_8023, operand: 0x40203 },
            Happening::Mark(Mark::FrameFreed { frame: 0x5000_0000, bytes: 4096 }),
            Happening::End { records: 1 << 40 },
        ] {
            let record = Record { cpu: 3, pc: 0x4020_1000, what };
            assert_eq!(Record::from_bytes(record.to_bytes()), Ok(record));
        }
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let with = |tag, size, flags, first: u64| {
            let mut bytes = [0; BYTES];
            bytes[..4].copy_from_slice(&[tag, 0, size, flags]);
            bytes[8..16].copy_from_slice(&first.to_le_bytes());
            bytes
        };
        for bytes in [
            with(0, 0, 0, 0),
            with(tag::STORE, 4, 0, 0),
            with(tag::STORE, 3, 4, 0),
            with(tag::FOUND, 4, 0, 0),
            with(tag::EXECUTED, 0, 0, 0xd503_201f),
            with(tag::EXECUTED, 0, 0, 1 << 32 | 0xd69f_03e0),
            with(tag::MARK, 200, 0, 0),
            with(9, 0, 0, 0),
        ] {
            assert_eq!(Record::from_bytes(bytes), Err(BadRecord(bytes)));
        }
    }
}
