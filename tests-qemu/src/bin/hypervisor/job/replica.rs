//! A copy of the guest's memory: taken once, when a log begins, and kept from the log alone.
//!
//! A harvest scans, rearms, and then copies exactly the pages it scanned. A page that is mapped is copied through a view,
//! which its frame outlives. Of a page that is mapped no more the backing knows the frame; only the CPU that harvests moves
//! frames, so it stays where it is.
//!
//! A vCPU may store to a page while it is copied. Then the page is dirty again, and the next harvest has it.

use alloc::{vec, vec::Vec};
use core::sync::atomic::AtomicU64;

use stage2::{
    Ipa, Pa, Reader,
    arch::Aarch64,
    dirty::{DirtyLog, RearmError, ScanError},
    stage2::QueryError,
};
use stage2_platform::trace::{self, Mark};
use stage2_tests_qemu::{
    machine::Tables,
    memory::{self, PAGE_BYTES, PAGE_WORDS},
};

use super::{backing::GuestMemory, shared::Shared};

/// Pages copied between two quiescent states.
const SECTION: usize = 64;

/// The copy, and the harvester's bitmap.
pub(crate) struct Replica {
    /// Page after page.
    words: &'static [AtomicU64],
    /// A bit for each page: this harvest's.
    bitmap: Vec<u64>,
    /// Harvests so far.
    pub(crate) rounds: u64,
    /// Pages copied so far.
    pub(crate) copied: u64,
}

/// Why there was no harvest.
#[derive(Clone, Copy, Debug, defmt::Format)]
pub(crate) enum HarvestError {
    Scan(ScanError),
    Rearm(RearmError),
    View(QueryError),
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, defmt::Format)]
pub(crate) struct Comparison {
    /// Pages that have a frame.
    pub(crate) pages: u64,
    /// Pages that differ.
    pub(crate) different: u64,
}

impl Replica {
    /// The copy of a memory that is as long as `words`.
    pub(crate) fn new(words: &'static [AtomicU64]) -> Self {
        let pages = words.len() / PAGE_WORDS;
        Self { words, bitmap: vec![0; pages.div_ceil(64)], rounds: 0, copied: 0 }
    }

    /// Copies all RAM: once a log has begun with everything clean.
    pub(crate) fn copy_all(&mut self, shared: &Shared<'_>, reader: &mut Reader<'_>) -> Result<(), HarvestError> {
        self.bitmap.fill(u64::MAX);
        self.copy_marked(shared, reader)
    }

    /// One harvest of all RAM.
    pub(crate) fn harvest(
        &mut self,
        shared: &Shared<'_>,
        log: &mut DirtyLog<'_, '_, Aarch64, Tables>,
        reader: &mut Reader<'_>,
    ) -> Result<(), HarvestError> {
        let ram = shared.memory.ram();
        self.rounds += 1;
        if log.scan(reader, ram, &mut self.bitmap).map_err(HarvestError::Scan)? == 0 {
            return Ok(());
        }
        let _rearmed = log.rearm(reader, ram, &self.bitmap).map_err(HarvestError::Rearm)?;
        self.copy_marked(shared, reader)
    }

    /// Copies the pages of the bitmap, and clears it.
    fn copy_marked(&mut self, shared: &Shared<'_>, reader: &mut Reader<'_>) -> Result<(), HarvestError> {
        for index in 0..self.bitmap.len() {
            let mut bits = core::mem::take(&mut self.bitmap[index]);
            while bits != 0 {
                let page = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.copy(shared, reader, page)?;
                self.copied += 1;
                if self.copied.is_multiple_of(SECTION as u64) {
                    reader.quiescent();
                }
            }
        }
        reader.quiescent();
        Ok(())
    }

    fn copy(&self, shared: &Shared<'_>, reader: &Reader<'_>, page: usize) -> Result<(), HarvestError> {
        let ipa = ipa_of(&shared.memory, page);
        trace::mark(Mark::Copied { ipa: ipa.raw() });
        let view = shared.stage2.view(reader, ipa).map_err(HarvestError::View)?;
        let frame = view.as_ref().map(|view| view.pa()).or_else(|| shared.memory.frame(ipa));
        match frame {
            Some(frame) => memory::copy(shared.memory.words(frame), self.page(page)),
            None => shared.memory.fill_untouched(ipa, self.page(page)),
        }
        Ok(())
    }

    /// Compares with the guest's memory, which nobody changes meanwhile. What has no frame has to be here what the guest would find.
    pub(crate) fn compare(&self, memory: &GuestMemory<'_>) -> Comparison {
        let mut comparison = Comparison::default();
        for page in 0..self.words.len() / PAGE_WORDS {
            let ipa = ipa_of(memory, page);
            let frame = memory.frame(ipa);
            comparison.pages += u64::from(frame.is_some());
            let equal = match frame {
                Some(frame) => memory::equal(memory.words(frame), self.page(page)),
                None => memory.is_untouched(ipa, self.page(page)),
            };
            if !equal {
                if comparison.different == 0 {
                    defmt::error!("the replica of {} differs, its frame {}", ipa, frame.map(Pa::raw));
                }
                comparison.different += 1;
            }
        }
        comparison
    }

    fn page(&self, page: usize) -> &[AtomicU64] {
        &self.words[page * PAGE_WORDS..][..PAGE_WORDS]
    }
}

fn ipa_of(memory: &GuestMemory<'_>, page: usize) -> Ipa {
    memory.ram().start().offset(page as u64 * PAGE_BYTES)
}
