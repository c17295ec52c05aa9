//! The two ends of a collapse: a table's leaves are joined to one block in its parent.

use super::rw::{Locked, UnlinkedTable};
use crate::addr::Pa;
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Folded, Marker, Run};
use crate::geometry::granule::Granule;
use crate::memory::{OwnTables, TableMemory, TableState};
use crate::sync::{Word, load_owned};
use crate::tlb::Flushed;

/// Leaves between two looks whether the run is broken.
const STEP: usize = 8;

impl<A: Arch, M: TableMemory> Locked<'_, '_, A, M> {
    /// Breaks the entry at `index`, if it points to `child` and the leaves there make a block. Both locks are held; `child`
    /// stays what it is to software until [`Self::finish_collapse`].
    pub(crate) fn begin_collapse(&mut self, index: usize, child: Pa) -> bool {
        let entry = self.read(index);
        let Some(page) = self.tree.mmu.memory.page(child) else { return false };
        if !entry.is_valid() || entry.next_table(self.level()) != Some(child) {
            return false;
        }
        let _below = page.meta.lock();
        // One that was seen empty is in a list until the reclaimer has looked at it.
        if page.meta.state() != TableState::Live || self.joined(child).is_none() {
            return false;
        }
        self.replace(index, entry.into_marker(Marker::Collapsing));
        true
    }

    /// After the flush: puts the block into the place of `child`, with what the hardware has left there; or, if its leaves make none
    /// any more, `child` itself.
    pub(crate) fn finish_collapse(&mut self, index: usize, child: Pa, _after: &Flushed) -> Option<UnlinkedTable> {
        let entry = self.read(index);
        let page = self.tree.mmu.memory.page(child)?;
        if entry.marker() != Some(Marker::Collapsing) || entry.address() != child {
            return None;
        }
        let _below = page.meta.lock();
        let make = |new: Descriptor| if self.is_frozen_root() { new.into_marker(Marker::Frozen) } else { new };
        match self.joined(child).filter(|_| page.meta.transition(TableState::Live, TableState::Unlinked)) {
            Some(block) => {
                self.replace(index, make(block));
                // Not before, as when a table is detached.
                page.meta.disown();
                Some(UnlinkedTable(child))
            }
            None => {
                self.replace(index, make(Descriptor::table(child)));
                None
            }
        }
    }

    /// The block that the leaves of `child` make, dirty and accessed if any of them is; its lock is held.
    fn joined(&self, child: Pa) -> Option<Descriptor> {
        let level = self.level().child()?;
        let entries = self.tree.mmu.memory.page(child)?.entries;
        let read = |entry: &Word| Descriptor::from_raw(load_owned(entry));
        let first = read(entries.first()?);
        let is_first =
            self.tree.leaf_form(level).is_of(first) && first.address().is_aligned(M::Granule::shift(self.level()));
        if !is_first {
            return None;
        }
        let mut all = Folded::NONE;
        let (steps, rest) = entries.as_chunks::<STEP>();
        let steps = steps.iter().map(|step| step.as_slice()).chain([rest]);
        for (nth, some) in steps.enumerate() {
            let mut run = Run::from(first, M::Granule::shift(level), nth * STEP);
            for entry in some {
                let leaf = read(entry);
                run.add(leaf);
                all = all.and(leaf);
            }
            if !run.is_unbroken() {
                return None;
            }
        }
        all.whole(first)
    }
}
