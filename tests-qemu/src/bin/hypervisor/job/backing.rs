//! Where the guest's memory comes from: frames on demand, filled at the first touch with what the guest finds there.
//!
//! One word per page says which frame it has. Who may store it:
//!
//! | from        | to          | who, and what keeps others away                                                  |
//! |-------------|-------------|----------------------------------------------------------------------------------|
//! | none        | fresh frame | any vCPU at the page's first fault, by compare-exchange; the loser's frame goes back |
//! | fresh, kept | kept frame  | [`relocate`](GuestMemory::relocate), while the library makes faults on the page wait  |
//! | any         | none        | [`take`](GuestMemory::take) and [`take_all`](GuestMemory::take_all), at the guest's end |
//!
//! *Fresh* means that the page has not been unmapped since its first touch. To map a fresh page is a write, whichever of
//! several vCPUs does it: so a log that is kept from the start has every page that exists. A page that was unmapped has
//! told the log what there was to tell, and comes back as it was.

use core::sync::atomic::{AtomicU64, Ordering};

use stage2::{
    Ipa, IpaRange, Pa,
    descriptor::{Attributes, Permissions},
    dirty::Content,
    fault::{Backing, Page, Region, Unavailable},
};
use stage2_platform::{gic, guest_tree::UART};
use stage2_tests_qemu::{
    frames::Frames,
    memory::{self, PAGE_BYTES},
};

use super::{devices, guest::Blob};

const NONE: u64 = 0;
/// A bit of the page's word that is no bit of an address.
const FRESH: u64 = 1;

/// A guest's RAM.
pub(crate) struct GuestMemory<'m> {
    ram: IpaRange,
    frames: &'m Frames,
    /// A word for each page of `ram`.
    pages: &'static [AtomicU64],
    /// What the guest finds at the start; zeroes elsewhere.
    contents: &'m [Blob],
}

impl<'m> GuestMemory<'m> {
    /// RAM of which nothing has a frame. `pages` has a zero for each of its pages.
    pub(crate) fn new(ram: IpaRange, frames: &'m Frames, pages: &'static [AtomicU64], contents: &'m [Blob]) -> Self {
        Self { ram, frames, pages, contents }
    }

    /// All of it.
    pub(crate) fn ram(&self) -> IpaRange {
        self.ram
    }

    /// The frame of a page, if it was ever touched.
    pub(crate) fn frame(&self, ipa: Ipa) -> Option<Pa> {
        frame_of(self.word(ipa)?.load(Ordering::Acquire))
    }

    /// The words of a frame.
    pub(crate) fn words(&self, frame: Pa) -> &'static [AtomicU64] {
        self.frames.words(frame)
    }

    /// Moves a page's content to another frame, while the library makes all faults on it wait: within the callback of
    /// `unmap_with`. The old frame is then nobody's; without a free frame the page keeps it, and this is false.
    pub(crate) fn relocate(&self, ipa: Ipa) -> bool {
        let Some(word) = self.word(ipa) else { return false };
        let Some(old) = frame_of(word.load(Ordering::Acquire)) else { return false };
        let new = self.frames.take();
        if let Some(new) = new {
            memory::copy(self.frames.words(old), self.frames.words(new));
        }
        word.store(new.unwrap_or(old).raw(), Ordering::Release);
        new.is_some()
    }

    /// The hypervisor's own store, to the first word of a page. It is seen by the dirty log only once that is told, and
    /// must not meet a [`relocate`](Self::relocate).
    pub(crate) fn store(&self, ipa: Ipa, value: u64) -> Result<(), Unavailable> {
        let page = self.page(ipa, true)?;
        self.frames.words(page.frame)[0].store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the page's frame away, at the guest's end.
    pub(crate) fn take(&self, ipa: Ipa) -> Option<Pa> {
        frame_of(self.word(ipa)?.swap(NONE, Ordering::AcqRel))
    }

    /// Takes all frames away that are left: of pages that are mapped no more.
    pub(crate) fn take_all(&self, mut give_back: impl FnMut(Pa)) {
        for word in self.pages {
            if let Some(frame) = frame_of(word.swap(NONE, Ordering::AcqRel)) {
                give_back(frame);
            }
        }
    }

    fn word(&self, ipa: Ipa) -> Option<&AtomicU64> {
        let offset = ipa.raw().checked_sub(self.ram.start().raw())?;
        self.pages.get((offset / PAGE_BYTES) as usize)
    }

    /// Gives the page its first frame; what its word is then.
    fn touch(&self, ipa: Ipa, word: &AtomicU64) -> Result<u64, Unavailable> {
        let frame = self.frames.take().ok_or(Unavailable::Later)?;
        let words = self.frames.words(frame);
        memory::fill(words, 0);
        for blob in self.contents {
            memory::copy_bytes(blob.page(ipa), words);
        }
        let fresh = frame.raw() | FRESH;
        match word.compare_exchange(NONE, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(fresh),
            Err(theirs) => {
                self.frames.give_back(frame);
                Ok(theirs)
            }
        }
    }
}

fn frame_of(word: u64) -> Option<Pa> {
    (word != NONE).then(|| Pa::new(word & !FRESH))
}

impl Backing for GuestMemory<'_> {
    fn region(&self, ipa: Ipa) -> Region {
        let passed_through = [gic::DISTRIBUTOR, gic::redistributors(), UART];
        if self.ram.contains(ipa) {
            Region::Memory(Attributes::normal(Permissions::RWX))
        } else if passed_through.iter().any(|device| device.contains(&ipa.raw())) {
            Region::Memory(Attributes::device(true))
        } else if devices::is_one(ipa) {
            Region::Emulated
        } else {
            Region::Nothing
        }
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        let Some(word) = self.word(ipa) else {
            // A device that is passed through: one to one.
            return Ok(Page { frame: Pa::new(ipa.raw()), content: Content::New });
        };
        let word = match word.load(Ordering::Acquire) {
            NONE => self.touch(ipa, word)?,
            known => known,
        };
        let frame = frame_of(word).ok_or(Unavailable::Never)?;
        Ok(Page { frame, content: if word & FRESH != 0 { Content::New } else { Content::Unchanged } })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {
        // The page keeps its frame.
    }
}
