//! Where the guest's memory comes from: frames on demand, filled at the first touch with what the guest finds there.
//!
//! Memory is given by *stretches* of 2 MiB, as much as a block maps. The first fault in one decides: it gets a whole run of
//! frames, which a block can map; or, if there is none or blocks are not wanted, it is scattered, and each page gets a frame
//! of its own at its first fault. A page has the frame that its word says, or else its place in its stretch's run.
//!
//! | word of     | from      | to               | who, and what keeps others away                                       |
//! |-------------|-----------|------------------|-----------------------------------------------------------------------|
//! | a stretch   | none      | a run, scattered | any vCPU at the first fault in it, by compare-exchange; the loser's run goes back |
//! | a stretch   | any       | a run            | [`adopt`](GuestMemory::adopt), when all its pages are there already    |
//! | a page      | none      | a frame          | any vCPU at the first fault on it where it is scattered, the same way  |
//! | a page      | any       | another frame    | [`relocate`](GuestMemory::relocate), while the library makes faults on the page wait |
//! | any         | any       | none             | [`take_all`](GuestMemory::take_all), at the guest's end                |
//!
//! A page that nobody touched reads as it did before it had a frame: a copy of the memory is a copy of that, too.

use core::sync::atomic::{AtomicU64, Ordering};

use stage2::{
    Ipa, IpaRange, Pa,
    descriptor::{Attributes, Permissions},
    dirty::Content,
    fault::{Backing, Page, Region, Unavailable},
};
use stage2_platform::{gic, guest_tree::UART};
use stage2_tests_qemu::{
    frames::{Frames, RUN_BYTES, RUN_PAGES},
    memory::{self, PAGE_BYTES, PAGE_WORDS},
};

use super::{devices, guest::Blob};

const NONE: u64 = 0;
/// A stretch that has no run. No frame begins there.
const SCATTERED: u64 = 1;

/// A guest's RAM.
pub(crate) struct GuestMemory<'m> {
    ram: IpaRange,
    frames: &'m Frames,
    words: Words,
    /// What the guest finds at the start; zeroes elsewhere.
    contents: &'m [Blob],
    /// Whether stretches get runs.
    blocks: bool,
}

/// The memory for a [`GuestMemory`]'s account, all zero.
pub(crate) struct Words {
    /// A word for each page.
    pub(crate) pages: &'static [AtomicU64],
    /// A word for each stretch.
    pub(crate) stretches: &'static [AtomicU64],
}

impl<'m> GuestMemory<'m> {
    /// RAM, a whole number of stretches, of which nothing has a frame.
    pub(crate) fn new(ram: IpaRange, frames: &'m Frames, words: Words, contents: &'m [Blob], blocks: bool) -> Self {
        Self { ram, frames, words, contents, blocks }
    }

    /// All of it.
    pub(crate) fn ram(&self) -> IpaRange {
        self.ram
    }

    /// Whether stretches get runs.
    pub(crate) fn has_blocks(&self) -> bool {
        self.blocks
    }

    /// What the guest may do with it.
    pub(crate) fn attributes(&self) -> Attributes {
        Attributes::normal(Permissions::RWX)
    }

    /// The frame of a page, if it has one.
    pub(crate) fn frame(&self, ipa: Ipa) -> Option<Pa> {
        match self.page_word(ipa)?.load(Ordering::Acquire) {
            NONE => Some(run_of(self.stretch_word(ipa)?.load(Ordering::Acquire))?.offset(ipa.raw() % RUN_BYTES)),
            frame => Some(Pa::new(frame)),
        }
    }

    /// The run of the stretch of `ipa`, if all of its pages are there.
    pub(crate) fn run(&self, ipa: Ipa) -> Option<Pa> {
        let run = run_of(self.stretch_word(ipa)?.load(Ordering::Acquire))?;
        self.is_all_in(ipa, run, |word| word == NONE).then_some(run)
    }

    /// Whether the stretch of `ipa` has frames and no whole run, though it may have one.
    pub(crate) fn is_torn(&self, ipa: Ipa) -> bool {
        self.blocks && self.is_begun(ipa) && self.run(ipa).is_none()
    }

    /// Whether anything of the stretch of `ipa` was touched.
    pub(crate) fn is_begun(&self, ipa: Ipa) -> bool {
        self.stretch_word(ipa).is_some_and(|word| word.load(Ordering::Acquire) != NONE)
    }

    /// The words of a frame.
    pub(crate) fn words(&self, frame: Pa) -> &'static [AtomicU64] {
        self.frames.words(frame)
    }

    /// Moves a page's content to `frame`, while the library makes all faults on it wait: within the callback of
    /// `unmap_with`. The old frame is then nobody's. `false`, with nothing done, if the page has none.
    pub(crate) fn relocate(&self, ipa: Ipa, frame: Pa) -> bool {
        let (Some(word), Some(old)) = (self.page_word(ipa), self.frame(ipa)) else { return false };
        memory::copy(self.frames.words(old), self.frames.words(frame));
        word.store(frame.raw(), Ordering::Release);
        true
    }

    /// Makes `run` the stretch's of `ipa`, if all its pages have been moved there.
    pub(crate) fn adopt(&self, ipa: Ipa, run: Pa) -> bool {
        let is_there = self.is_all_in(ipa, run, |_| false);
        if is_there && let Some(word) = self.stretch_word(ipa) {
            word.store(run.raw(), Ordering::Release);
        }
        is_there
    }

    /// The hypervisor's own store, to the first word of a page. It is seen by the dirty log only once that is told, and
    /// must not meet a [`relocate`](Self::relocate).
    pub(crate) fn store(&self, ipa: Ipa, value: u64) -> Result<(), Unavailable> {
        let page = self.page(ipa, true)?;
        self.frames.words(page.frame)[0].store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Takes all frames away from what is mapped no more.
    pub(crate) fn take_all(&self, mut give_back: impl FnMut(Pa)) {
        for (stretch, pages) in self.words.stretches.iter().zip(self.words.pages.chunks(RUN_PAGES)) {
            let run = run_of(stretch.swap(NONE, Ordering::AcqRel));
            for (index, page) in pages.iter().enumerate() {
                let own = match page.swap(NONE, Ordering::AcqRel) {
                    NONE => run.map(|run| run.offset(index as u64 * PAGE_BYTES)),
                    frame => Some(Pa::new(frame)),
                };
                own.into_iter().for_each(&mut give_back);
            }
        }
    }

    /// Fills `words` with what the guest finds in the page at the start.
    pub(crate) fn fill_untouched(&self, ipa: Ipa, words: &[AtomicU64]) {
        memory::fill(words, 0);
        self.contents.iter().for_each(|blob| memory::copy_bytes(blob.page(ipa), words));
    }

    /// Whether `words` hold what the guest finds in the page at the start.
    pub(crate) fn is_untouched(&self, ipa: Ipa, words: &[AtomicU64]) -> bool {
        let in_blob = self.contents.iter().map(|blob| blob.page(ipa)).find(|bytes| !bytes.is_empty()).unwrap_or(&[]);
        memory::starts_with(words, in_blob) && memory::is_zero(&words[in_blob.len().div_ceil(size_of::<u64>())..])
    }

    fn page_word(&self, ipa: Ipa) -> Option<&AtomicU64> {
        self.words.pages.get((self.offset(ipa)? / PAGE_BYTES) as usize)
    }

    fn stretch_word(&self, ipa: Ipa) -> Option<&AtomicU64> {
        self.words.stretches.get((self.offset(ipa)? / RUN_BYTES) as usize)
    }

    fn offset(&self, ipa: Ipa) -> Option<u64> {
        ipa.raw().checked_sub(self.ram.start().raw())
    }

    /// Whether each page of the stretch of `ipa` has its place in `run` in its word, or a word that is as good.
    fn is_all_in(&self, ipa: Ipa, run: Pa, is_as_good: impl Fn(u64) -> bool) -> bool {
        let first = self.offset(ipa).map_or(0, |offset| (offset / RUN_BYTES) as usize * RUN_PAGES);
        let pages = self.words.pages.iter().skip(first).take(RUN_PAGES).map(|word| word.load(Ordering::Acquire));
        let places = (0..RUN_PAGES as u64).map(|page| run.raw() + page * PAGE_BYTES);
        pages.zip(places).all(|(word, place)| word == place || is_as_good(word))
    }

    /// Decides how the stretch of `ipa` gets its frames, unless that is decided; the stretch's word then.
    fn begin(&self, ipa: Ipa, word: &AtomicU64) -> u64 {
        let run = if self.blocks { self.frames.take_run() } else { None };
        if let Some(run) = run {
            let first = ipa.align_down(RUN_BYTES.trailing_zeros());
            for (page, words) in self.frames.run_words(run).chunks(PAGE_WORDS).enumerate() {
                self.fill_untouched(first.offset(page as u64 * PAGE_BYTES), words);
            }
        }
        let begun = run.map_or(SCATTERED, Pa::raw);
        match word.compare_exchange(NONE, begun, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => begun,
            Err(theirs) => {
                run.into_iter().for_each(|run| self.frames.give_back_run(run));
                theirs
            }
        }
    }

    /// Gives a page of a scattered stretch its first frame; which one that is.
    fn touch(&self, ipa: Ipa, word: &AtomicU64) -> Result<Pa, Unavailable> {
        let frame = self.frames.take().ok_or(Unavailable::Later)?;
        self.fill_untouched(ipa, self.frames.words(frame));
        match word.compare_exchange(NONE, frame.raw(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(frame),
            Err(theirs) => {
                self.frames.give_back(frame);
                Ok(Pa::new(theirs))
            }
        }
    }
}

/// The run that a stretch's word names.
fn run_of(word: u64) -> Option<Pa> {
    (word != NONE && word != SCATTERED).then(|| Pa::new(word))
}

impl Backing for GuestMemory<'_> {
    fn region(&self, ipa: Ipa) -> Region {
        let passed_through = [gic::DISTRIBUTOR, gic::redistributors(), UART];
        if self.ram.contains(ipa) {
            Region::Memory(self.attributes())
        } else if passed_through.iter().any(|device| device.contains(&ipa.raw())) {
            Region::Memory(Attributes::device(true))
        } else if devices::is_one(ipa) {
            Region::Emulated
        } else {
            Region::Nothing
        }
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        let (Some(page), Some(stretch)) = (self.page_word(ipa), self.stretch_word(ipa)) else {
            // A device that is passed through: one to one.
            return Ok(Page { frame: Pa::new(ipa.raw()), content: Content::New });
        };
        if let Some(frame) = self.frame(ipa) {
            return Ok(Page { frame, content: Content::Unchanged });
        }
        if stretch.load(Ordering::Acquire) == NONE {
            self.begin(ipa, stretch);
        }
        // Now it has one, if it has a run.
        let frame = self.frame(ipa).map_or_else(|| self.touch(ipa, page), Ok)?;
        Ok(Page { frame, content: Content::New })
    }

    fn block(&self, block: IpaRange, _write: bool) -> Option<Page> {
        let (first, stretch) = (block.start(), self.stretch_word(block.start())?);
        if stretch.load(Ordering::Acquire) == NONE {
            self.begin(first, stretch);
        }
        Some(Page { frame: self.run(first)?, content: Content::Unchanged })
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {
        // The page keeps its frame.
    }
}
