//! What the image itself tells a tracer: where its table memory is, and what is given out and taken back.
//!
//! A mark is the hint [`MARK_HINT`](crate::instruction::MARK_HINT), a NOP on every CPU, with a number in X0 and two values in X1
//! and X2. It is always in the image: what is traced is what runs elsewhere.

/// Something the image told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are what each variant's sentence names")]
pub enum Mark {
    /// A pool of tables begins its life, with nothing given out: what was said of its memory before is over.
    Pool(Pool),
    /// `1 << order` tables were given out, zeroed.
    TableGiven { table: u64, order: u32 },
    /// They are about to be taken back.
    TableFreed { table: u64, order: u32 },
    /// A page frame is about to be taken back: it may hold something else from now on.
    FrameFreed { frame: u64, bytes: u64 },
    /// The page at this address of the guest is about to be copied, clean.
    Copied { ipa: u64 },
    /// What EL2 executes from here on belongs to the operation with this number: it is being counted.
    WindowOpens { operation: u64 },
    /// And up to here.
    WindowCloses,
    /// Memory that no CPU but the one that says so writes or reads while it works.
    Private { start: u64, bytes: u64 },
}

/// Memory for tables: metadata in front, then the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Its physical address.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// log2 of the bytes of a table.
    pub page_shift: u32,
    /// What was taken from the library that uses it.
    pub lessened: Lessened,
}

/// Whether something was taken from the library, to show that it is missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lessened {
    /// Nothing.
    No,
    /// Something that a trace shows.
    Visibly,
    /// Something that a trace need not show, nor hide.
    Unjudged,
}

/// X2 of a pool's mark has the page's size below the pool's.
const PAGE_SHIFT_BITS: u32 = 8;

/// The number in X0 of [`Mark::WindowOpens`], for who makes it in assembly.
pub const WINDOW_OPENS: u64 = 7;
/// And that of [`Mark::WindowCloses`].
pub const WINDOW_CLOSES: u64 = 8;

/// The number in X0 that begins each mark.
mod number {
    pub(super) const POOL: u64 = 0;
    pub(super) const LESSENED_POOL: u64 = 1;
    pub(super) const UNJUDGED_POOL: u64 = 2;
    pub(super) const TABLE_GIVEN: u64 = 3;
    pub(super) const TABLE_FREED: u64 = 4;
    pub(super) const FRAME_FREED: u64 = 5;
    pub(super) const COPIED: u64 = 6;
    pub(super) const WINDOW_OPENS: u64 = super::WINDOW_OPENS;
    pub(super) const WINDOW_CLOSES: u64 = super::WINDOW_CLOSES;
    pub(super) const PRIVATE: u64 = 9;
}

impl Mark {
    /// X0 to X2.
    pub const fn to_registers(self) -> [u64; 3] {
        match self {
            Self::Pool(Pool { start, bytes, page_shift, lessened }) => {
                let number = match lessened {
                    Lessened::No => number::POOL,
                    Lessened::Visibly => number::LESSENED_POOL,
                    Lessened::Unjudged => number::UNJUDGED_POOL,
                };
                [number, start, bytes << PAGE_SHIFT_BITS | page_shift as u64]
            }
            Self::TableGiven { table, order } => [number::TABLE_GIVEN, table, order as u64],
            Self::TableFreed { table, order } => [number::TABLE_FREED, table, order as u64],
            Self::FrameFreed { frame, bytes } => [number::FRAME_FREED, frame, bytes],
            Self::Copied { ipa } => [number::COPIED, ipa, 0],
            Self::WindowOpens { operation } => [number::WINDOW_OPENS, operation, 0],
            Self::WindowCloses => [number::WINDOW_CLOSES, 0, 0],
            Self::Private { start, bytes } => [number::PRIVATE, start, bytes],
        }
    }

    /// From X0 to X2; `None` if it is none that is known.
    pub fn from_registers([number, a, b]: [u64; 3]) -> Option<Self> {
        let page_shift = (b & ((1 << PAGE_SHIFT_BITS) - 1)) as u32;
        let pool = |lessened| Some(Self::Pool(Pool { start: a, bytes: b >> PAGE_SHIFT_BITS, page_shift, lessened }));
        let order = u32::try_from(b).ok();
        match number {
            number::POOL => pool(Lessened::No),
            number::LESSENED_POOL => pool(Lessened::Visibly),
            number::UNJUDGED_POOL => pool(Lessened::Unjudged),
            number::TABLE_GIVEN => order.map(|order| Self::TableGiven { table: a, order }),
            number::TABLE_FREED => order.map(|order| Self::TableFreed { table: a, order }),
            number::FRAME_FREED => Some(Self::FrameFreed { frame: a, bytes: b }),
            number::COPIED => Some(Self::Copied { ipa: a }),
            number::WINDOW_OPENS => Some(Self::WindowOpens { operation: a }),
            number::WINDOW_CLOSES => Some(Self::WindowCloses),
            number::PRIVATE => Some(Self::Private { start: a, bytes: b }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_made() {
        let pool = |lessened| Mark::Pool(Pool { start: 0x4100_0000, bytes: 8 << 20, page_shift: 14, lessened });
        for mark in [
            pool(Lessened::No),
            pool(Lessened::Visibly),
            pool(Lessened::Unjudged),
            Mark::TableGiven { table: 0x4100_1000, order: 4 },
            Mark::TableFreed { table: 0x4100_1000, order: 0 },
            Mark::FrameFreed { frame: 0x5000_0000, bytes: 65536 },
            Mark::Copied { ipa: 0x8000_1000 },
            Mark::WindowOpens { operation: 3 },
            Mark::WindowCloses,
            Mark::Private { start: 0x4060_0000, bytes: 0x4_0000 },
        ] {
            assert_eq!(Mark::from_registers(mark.to_registers()), Some(mark));
        }
        assert_eq!(Mark::from_registers([10, 0, 0]), None);
        assert_eq!(Mark::from_registers([3, 0x4100_1000, 1 << 32]), None);
    }
}
