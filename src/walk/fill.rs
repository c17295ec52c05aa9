//! Leaves to entries that hold nothing, many at once.

use super::Locked;
use super::leaves::FOLD;
use crate::arch::Arch;
use crate::descriptor::Descriptor;
use crate::geometry::granule::Granule;
use crate::memory::{Groups, TableMemory};
use crate::sync::{Ordering, Word, fence, load_owned};

impl<A: Arch, M: TableMemory> Locked<'_, '_, A, M> {
    /// Stores leaves that continue `leaf` to the entries from `first` on: to `count`, or as many as there are before the first that
    /// holds something. How many. What holds nothing the hardware does not write to: plain stores.
    #[inline(always)]
    pub(crate) fn fill(&mut self, first: usize, count: usize, leaf: Descriptor) -> usize {
        if count == 1 {
            let is_hole = self.read(first).is_none();
            if is_hole {
                self.replace(first, leaf);
            }
            return usize::from(is_hole);
        }
        let Some(entries) = self.table.page.entries.get(first..first + count) else { return 0 };
        if leaf.is_dirty() || leaf.has_dbm() {
            let groups = Groups::covering::<M::Granule>(first, first + count - 1);
            self.table.page.meta.note_dirty(&mut self.guarded, groups);
        }
        // Who finds one of them finds its frame as it was prepared, and the groups noted.
        fence(Ordering::Release);
        let filled = fill_holes(entries, leaf, M::Granule::entry_size(self.level()));
        self.guarded.occupied += filled as u16;
        filled
    }
}

/// Not inlined: alone it has registers for all of a fold.
#[inline(never)]
fn fill_holes(entries: &[Word], leaf: Descriptor, bytes: u64) -> usize {
    let mut next = leaf.raw();
    let mut filled = 0;
    for some in entries.as_chunks::<FOLD>().0 {
        if some.iter().fold(0, |any, entry| any | load_owned(entry)) != 0 {
            break;
        }
        for entry in some {
            entry.store(next, Ordering::Relaxed);
            next = next.wrapping_add(bytes);
        }
        filled += FOLD;
    }
    let rest = entries.get(filled..).unwrap_or(&[]);
    let holes = rest.iter().take_while(|entry| load_owned(entry) == 0);
    filled
        + holes
            .map(|entry| {
                entry.store(next, Ordering::Relaxed);
                next = next.wrapping_add(bytes);
            })
            .count()
}
