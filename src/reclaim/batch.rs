//! A batch of tables on their way back: the steps of rule 8 as types.

use core::marker::PhantomData;

use super::list::List;
use crate::addr::Pa;
use crate::memory::{OwnTables, TableMemory, TableMeta, TableState};
use crate::tlb::Flushed;
use crate::walk::UnlinkedTable;

/// No longer linked; walks of the hardware and of readers may be in it.
pub(crate) struct Unlinked;
/// In no TLB and no walk cache any more; readers may be in it.
pub(super) struct Invalidated;
/// Nobody is in it.
pub(super) struct Quiesced;

/// Tables that are in the same state.
#[must_use = "the tables are lost if this is dropped"]
pub(crate) struct Batch<State> {
    tables: List,
    state: PhantomData<State>,
}

impl<State> Batch<State> {
    pub(super) fn len(&self) -> u32 {
        self.tables.len()
    }

    fn into_state<Next>(self) -> Batch<Next> {
        Batch { tables: self.tables, state: PhantomData }
    }
}

impl Batch<Unlinked> {
    pub(super) fn new() -> Self {
        Self { tables: List::new(), state: PhantomData }
    }

    pub(crate) fn push(&mut self, table: UnlinkedTable, meta: &TableMeta) {
        self.tables.push(table.0, meta);
    }

    /// Shows each table to `look`.
    pub(super) fn for_each<M: TableMemory>(&self, memory: &M, look: impl FnMut(Pa, &TableMeta)) {
        self.tables.for_each(memory, look);
    }

    /// Hardware quiet.
    pub(super) fn invalidated(self, _after: Flushed) -> Batch<Invalidated> {
        self.into_state()
    }
}

impl Batch<Invalidated> {
    /// Software quiet: it has come out of its [`Quiescing`](crate::quiescence::Quiescing).
    pub(super) fn quiesced(self) -> Batch<Quiesced> {
        self.into_state()
    }
}

impl Batch<Quiesced> {
    /// Back to table memory; how many.
    pub(super) fn free<M: TableMemory>(mut self, memory: &M) -> u32 {
        let mut freed = 0;
        while let Some((table, meta)) = self.tables.pop(memory) {
            meta.set_state(TableState::Free);
            memory.give_back(table, 0);
            freed += 1;
        }
        freed
    }
}
