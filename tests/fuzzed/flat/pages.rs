//! What the guest's memory should be, page by page: a map without levels, and what a harvester must be told of it.

use std::collections::{BTreeMap, BTreeSet};

use stage2::addr::{IpaRange, Pa};
use stage2::descriptor::{MemoryType, Permissions};

/// A page that is mapped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Page {
    pub(crate) pa: Pa,
    pub(crate) permissions: Permissions,
    pub(crate) memory: MemoryType,
    pub(crate) dirty: bool,
    /// It was accessed since it was last made old.
    pub(crate) young: bool,
}

/// All of it, by address.
#[derive(Default)]
pub(crate) struct Pages {
    mapped: BTreeMap<u64, Page>,
    /// What each address reads, or read when it was last mapped; 0 before.
    contents: BTreeMap<u64, u64>,
    /// Pages a harvest has to report though no entry says so.
    noted: BTreeSet<u64>,
    /// What a harvester has copied.
    replica: BTreeMap<u64, u64>,
    /// What the dirty log covers; nothing is noted elsewhere.
    logged: Option<IpaRange>,
    logging: bool,
}

impl Pages {
    pub(crate) fn new(logged: IpaRange) -> Self {
        Self { logged: Some(logged), ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.mapped.len()
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        self.mapped.keys().copied()
    }

    pub(crate) fn get(&self, ipa: u64) -> Option<Page> {
        self.mapped.get(&ipa).copied()
    }

    pub(crate) fn get_mut(&mut self, ipa: u64) -> Option<&mut Page> {
        self.mapped.get_mut(&ipa)
    }

    pub(crate) fn of(&mut self, range: IpaRange) -> impl Iterator<Item = (u64, &mut Page)> {
        self.mapped.range_mut(range.start().raw()..=range.last().raw()).map(|(ipa, page)| (*ipa, page))
    }

    pub(crate) fn content(&self, ipa: u64) -> u64 {
        self.contents.get(&ipa).copied().unwrap_or_default()
    }

    /// The address reads this from now on, and whoever made it so tells the log.
    pub(crate) fn write(&mut self, ipa: u64, value: u64) {
        self.contents.insert(ipa, value);
    }

    /// A page is mapped. It begins dirty unless it is clean to somebody who harvests.
    pub(crate) fn insert(&mut self, ipa: u64, page: Page) {
        let page = Page { dirty: page.dirty || !self.logging, ..page };
        assert_eq!(self.mapped.insert(ipa, page), None, "{ipa:#x}");
    }

    /// The pages of the range are no more; dirty ones are noted.
    pub(crate) fn remove(&mut self, range: IpaRange) -> Vec<(u64, Page)> {
        let removed: Vec<_> = self.of(range).map(|(ipa, page)| (ipa, *page)).collect();
        for (ipa, page) in &removed {
            self.mapped.remove(ipa);
            if page.dirty {
                self.note(*ipa);
            }
        }
        removed
    }

    /// A harvest has to report the page.
    pub(crate) fn note(&mut self, ipa: u64) {
        if self.logging && self.is_logged(ipa) {
            self.noted.insert(ipa);
        }
    }

    pub(crate) fn is_logged(&self, ipa: u64) -> bool {
        self.logged.is_some_and(|logged| logged.contains(stage2::addr::Ipa::new(ipa)))
    }

    /// Logging starts, with `all` that is worked on noted, or everything clean and copied.
    pub(crate) fn start_logging(&mut self, noted: Option<impl Iterator<Item = u64>>) {
        self.logging = true;
        self.noted.clear();
        match noted {
            Some(all) => {
                all.for_each(|ipa| self.note(ipa));
                self.replica.clear();
            }
            None => {
                let logged = self.logged;
                let is_logged = |ipa| logged.is_some_and(|logged| logged.contains(stage2::addr::Ipa::new(ipa)));
                self.mapped.iter_mut().filter(|(ipa, _)| is_logged(**ipa)).for_each(|(_, page)| page.dirty = false);
                self.replica.clone_from(&self.contents);
            }
        }
    }

    pub(crate) fn stop_logging(&mut self) {
        self.logging = false;
    }

    /// Whether a scan has to report the page.
    pub(crate) fn is_reported(&self, ipa: u64) -> bool {
        self.noted.contains(&ipa) || self.mapped.get(&ipa).is_some_and(|page| page.dirty)
    }

    /// The page was rearmed: whether it was dirty by its entry.
    pub(crate) fn rearm(&mut self, ipa: u64) -> bool {
        self.noted.remove(&ipa);
        self.mapped.get_mut(&ipa).is_some_and(|page| std::mem::replace(&mut page.dirty, false))
    }

    pub(crate) fn copy(&mut self, ipa: u64) {
        self.replica.insert(ipa, self.content(ipa));
    }

    /// What the harvester has of a page.
    pub(crate) fn copied(&self, ipa: u64) -> u64 {
        self.replica.get(&ipa).copied().unwrap_or_default()
    }
}
