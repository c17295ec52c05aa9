//! What an access of a guest may find, and what must not be found any more.

use std::format;
use std::vec::Vec;

use super::shape::{self, Access, Leaf, Meaning, Root, meaning};
use super::tlb::owned;
use super::walks::Context;
use super::{Checker, Kind, of_table};
use crate::addr::Level;
use crate::descriptor::Descriptor;

/// A translation that an access may use.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Translation {
    /// `None`: the walk finds nothing.
    pub(in crate::model) leaf: Option<Leaf>,
    /// Where the leaf was read.
    pub(in crate::model) table: u64,
    pub(in crate::model) index: usize,
    /// log2 of the bytes it translates.
    pub(in crate::model) shift: u32,
    /// HA and HD.
    pub(in crate::model) updates: (bool, bool),
}

impl Checker {
    pub(super) fn frame_freed(&mut self, frame: u64, bytes: u64) {
        let cached = owned(self.tlb.leading_to_frame(frame, bytes));
        self.must_not_be_cached(Kind::FrameFreedWhileCached, || format!("frame {frame:#x} is given back"), cached);
    }

    /// No CPU may store to the page at `ipa` unseen: where one may, the tables say that it is dirty.
    pub(super) fn copied(&mut self, ipa: u64) {
        let shape = self.options.shape;
        let vmids = self.tlb.vmids();
        for (vmid, level) in vmids.into_iter().flat_map(|vmid| (1..=shape::LEAF).map(move |level| (vmid, level))) {
            let found = self.tlb.over(vmid, level, ipa, ipa);
            let leaves = found.filter(|(_, cached)| matches!(meaning(cached.value, level, shape), Meaning::Leaf(_)));
            let writable = leaves
                .map(|(place, cached)| (place, *cached))
                .find(|(_, cached)| Leaf::new(cached.value).permits(Access::Store));
            let Some((place, cached)) = writable else { continue };
            let is_dirty = self.current_leaf(place.root, ipa).is_some_and(Descriptor::is_dirty);
            if !is_dirty {
                let what = format!("{ipa:#x} is copied, clean, while {place:x?} may be cached writable");
                self.violation(Kind::WriteLost, what, of_table(cached.table));
            }
        }
    }

    /// The translations that an access of `cpu` to `ipa` may use.
    pub(in crate::model) fn translations(&self, cpu: u16, ipa: u64) -> Vec<Translation> {
        let shape = self.options.shape;
        let mut possible = Vec::new();
        let Some(root) = self.cpus.get(usize::from(cpu)).and_then(|state| state.root) else { return possible };
        for level in root.level..=shape::LEAF {
            let cached = self.tlb.over(root.vmid, level, ipa, ipa).map(|(_, cached)| cached);
            let mine = cached.filter(|cached| (cached.stage2 | cached.combined) & 1 << cpu != 0);
            let leaves = mine.filter(|cached| matches!(meaning(cached.value, level, shape), Meaning::Leaf(_)));
            // What has no access flag is in no TLB: a walk finds it, as long as one may.
            let leaves = leaves.filter(|cached| {
                let mut visible = self.memory.visible(cached.table, cached.index, &cached.seen);
                Leaf::new(cached.value).is_accessed() || visible.any(|version| version.value == cached.value)
            });
            possible.extend(leaves.map(|cached| Translation {
                leaf: Some(Leaf::new(cached.value)),
                table: cached.table,
                index: cached.index,
                shift: shape.shift(level),
                updates: root.updates,
            }));
        }
        if self.may_end_nowhere(cpu, root, ipa) {
            possible.push(Translation { leaf: None, table: 0, index: 0, shift: 0, updates: root.updates });
        }
        possible
    }

    /// Whether a walk of `ipa` may find no valid leaf: from the root, or from a table entry it has kept.
    pub(super) fn may_end_nowhere(&self, cpu: u16, root: Root, ipa: u64) -> bool {
        let shape = self.options.shape;
        let nth = ipa >> (shape.shift(root.level) + shape.index_bits);
        if nth >= root.tables(shape) || self.ends_nowhere(self.root_context(cpu, root, nth), ipa) {
            return true;
        }
        (root.level..shape::LEAF).any(|level| {
            let kept = self.tlb.over(root.vmid, level, ipa, ipa).filter(|(_, cached)| cached.stage2 & 1 << cpu != 0);
            let mut below = kept.filter_map(|(place, cached)| match meaning(cached.value, level, shape) {
                Meaning::Table(table) => {
                    Some(Context { place, level: level + 1, table, base: place.ipa, seen: cached.seen })
                }
                _ => None,
            });
            below.any(|at| self.ends_nowhere(at, ipa))
        })
    }

    pub(super) fn ends_nowhere(&self, at: Context, ipa: u64) -> bool {
        let shape = self.options.shape;
        let index = (ipa >> shape.shift(at.level)) as usize & (shape.entries() - 1);
        let mut versions = self.memory.visible(at.table, index, &at.seen).peekable();
        if versions.peek().is_none() {
            return true;
        }
        versions.any(|version| match meaning(version.value, at.level, shape) {
            Meaning::Invalid => true,
            Meaning::Leaf(_) => false,
            Meaning::Table(table) => {
                let Some(place) = at.place(index, shape) else { return true };
                let seen = at.seen.joined(&version.brings);
                self.ends_nowhere(Context { place, level: at.level + 1, table, base: place.ipa, seen }, ipa)
            }
        })
    }

    /// Whether the tables, as software sees them, permit this access to who has loaded them.
    pub(in crate::model) fn is_permitted(&self, cpu: u16, ipa: u64, access: Access) -> bool {
        let Some(root) = self.cpus.get(usize::from(cpu)).and_then(|state| state.root) else { return false };
        self.current_leaf(root.pa, ipa).is_some_and(|leaf| leaf.is_valid() && Leaf::new(leaf.raw()).permits(access))
    }

    /// What software sees at the end of the walk of `ipa` from a root that some CPU has, or had.
    pub(super) fn current_leaf(&self, root: u64, ipa: u64) -> Option<Descriptor> {
        let shape = self.options.shape;
        let found = self.roots.get(&root)?;
        let nth = ipa >> (shape.shift(found.level) + shape.index_bits);
        let mut table = root + (nth << shape.page_shift);
        for level in found.level..=shape::LEAF {
            let index = (ipa >> shape.shift(level)) as usize & (shape.entries() - 1);
            let value = self.memory.current(table, index)?;
            match Descriptor::from_raw(value).next_table(level_of(level)) {
                Some(child) => table = child.raw(),
                None => return Some(Descriptor::from_raw(value)),
            }
        }
        None
    }
}

fn level_of(level: u8) -> Level {
    match level {
        0 => Level::L0,
        1 => Level::L1,
        2 => Level::L2,
        _ => Level::L3,
    }
}
