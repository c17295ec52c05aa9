//! Tables a tree keeps for the splits that must not fail for want of one: an unmap of a part of a block.

use arrayvec::ArrayVec;

use super::{OutOfTables, OwnTables, SpareTable, TableMemory};
use crate::addr::Pa;
use crate::sync::Mutex;

/// A range cuts a block at each of its ends, and each cut takes a table for each level below the block.
const RESERVED: usize = 4;

/// Zeroed tables, seen by nobody.
pub(crate) struct Reserve(Mutex<ArrayVec<Pa, RESERVED>>);

impl Reserve {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(ArrayVec::new_const()))
    }

    /// Makes sure that `count` are there, at most [`RESERVED`].
    pub(crate) fn keep<M: TableMemory>(&self, memory: &M, count: usize) -> Result<(), OutOfTables> {
        while self.0.lock().len() < count.min(RESERVED) {
            let spare = SpareTable::alloc(memory)?;
            let mut kept = self.0.lock();
            // Another CPU may have been faster: then this one goes back.
            if !kept.is_full() {
                kept.push(spare.into_linked());
            }
        }
        Ok(())
    }

    pub(crate) fn take<'m, M: TableMemory>(&self, memory: &'m M) -> Option<SpareTable<'m, M>> {
        self.0.lock().pop().map(|table| SpareTable::of(memory, table))
    }

    /// Teardown: all of them.
    pub(crate) fn give_back<M: TableMemory>(&self, memory: &M) {
        let tables = core::mem::take(&mut *self.0.lock());
        tables.into_iter().for_each(|table| memory.give_back(table, 0));
    }
}
