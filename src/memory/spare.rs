//! Table pages that are allocated and not linked: they go back to their memory when dropped.
//!
//! Nothing is allocated while a table's lock is held, so an operation that may have to link tables brings spares along.

use arrayvec::ArrayVec;

use super::{OutOfTables, OwnTables, TableMemory};
use crate::addr::Pa;

/// One zeroed table page, seen by nobody.
pub(crate) struct SpareTable<'m, M: TableMemory> {
    memory: &'m M,
    table: Pa,
}

impl<'m, M: TableMemory> SpareTable<'m, M> {
    pub(crate) fn alloc(memory: &'m M) -> Result<Self, OutOfTables> {
        Ok(Self { memory, table: memory.alloc()? })
    }

    /// One that was kept: zeroed, and nobody else's.
    pub(super) fn of(memory: &'m M, table: Pa) -> Self {
        Self { memory, table }
    }

    pub(crate) fn table(&self) -> Pa {
        self.table
    }

    /// Gives up the page: a tree owns it now.
    pub(crate) fn into_linked(self) -> Pa {
        let table = self.table;
        core::mem::forget(self);
        table
    }
}

impl<M: TableMemory> Drop for SpareTable<'_, M> {
    fn drop(&mut self) {
        self.memory.give_back(self.table, 0);
    }
}

/// Enough spares for the longest path: one per level below the root.
pub(crate) struct Spares<'m, M: TableMemory> {
    memory: &'m M,
    tables: ArrayVec<SpareTable<'m, M>, 3>,
}

impl<'m, M: TableMemory> Spares<'m, M> {
    pub(crate) fn new(memory: &'m M) -> Self {
        Self { memory, tables: ArrayVec::new_const() }
    }

    /// Makes sure that `count` (at most 3) are there. Outside of any lock.
    pub(crate) fn prepare(&mut self, count: usize) -> Result<(), OutOfTables> {
        while !self.has(count) && !self.tables.is_full() {
            self.tables.push(SpareTable::alloc(self.memory)?);
        }
        Ok(())
    }

    /// Whether `count` are there.
    pub(crate) fn has(&self, count: usize) -> bool {
        self.tables.len() >= count
    }

    pub(crate) fn take(&mut self) -> Option<SpareTable<'m, M>> {
        self.tables.pop()
    }
}
