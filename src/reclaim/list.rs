//! Lists of tables, threaded through their metadata.

use crate::addr::Pa;
use crate::memory::{OwnTables, TableMemory, TableMeta};
use crate::sync::{AtomicU64, Ordering};

const EMPTY: u64 = u64::MAX;

/// A list that one CPU works on.
pub(super) struct List {
    head: Option<Pa>,
    len: u32,
}

impl List {
    pub(super) const fn new() -> Self {
        Self { head: None, len: 0 }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    pub(super) fn push(&mut self, table: Pa, meta: &TableMeta) {
        meta.set_link(self.head);
        self.head = Some(table);
        self.len += 1;
    }

    pub(super) fn pop<'m, M: TableMemory>(&mut self, memory: &'m M) -> Option<(Pa, &'m TableMeta)> {
        let table = self.head?;
        let meta = memory.page(table)?.meta;
        self.head = meta.link();
        self.len = self.len.saturating_sub(1);
        Some((table, meta))
    }

    pub(super) fn for_each<M: TableMemory>(&self, memory: &M, mut look: impl FnMut(Pa, &TableMeta)) {
        let mut at = self.head;
        while let Some((table, page)) = at.and_then(|table| Some((table, memory.page(table)?))) {
            look(table, page.meta);
            at = page.meta.link();
        }
    }

    /// Moves all of `other` to this list.
    pub(super) fn append<M: TableMemory>(&mut self, mut other: Self, memory: &M) {
        while let Some((table, meta)) = other.pop(memory) {
            self.push(table, meta);
        }
    }
}

/// A list that anybody pushes to and the reclaimer takes whole. Taking one at a time would have the ABA problem;
/// taking all has not.
pub(super) struct HintList {
    head: AtomicU64,
}

impl HintList {
    pub(super) fn new() -> Self {
        Self { head: AtomicU64::new(EMPTY) }
    }

    pub(super) fn push(&self, table: Pa, meta: &TableMeta) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            meta.set_link((head != EMPTY).then(|| Pa::new(head)));
            // Release: the reclaimer sees the link. Partner: the acquire in `take_all`.
            match self.head.compare_exchange(head, table.raw(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    pub(super) fn take_all(&self) -> List {
        let head = self.head.load(Ordering::Relaxed);
        if head == EMPTY {
            return List::new();
        }
        let head = self.head.swap(EMPTY, Ordering::Acquire);
        List { head: (head != EMPTY).then(|| Pa::new(head)), len: 0 }
    }
}
