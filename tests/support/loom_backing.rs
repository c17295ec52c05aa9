//! Where a guest's pages come from under loom: backings that answer the same for ever, or change their mind.

#![allow(dead_code, reason = "each test program uses a part")]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::Content;
use stage2::fault::{Backing, Page, Region, Unavailable};
use stage2::stage2::Removed;
use stage2::{Ipa, Pa};

use crate::hardware::Hardware;
use crate::scene::{PAGE, READ_WRITE, frame};

fn unchanged(frame: Pa) -> Result<Page, Unavailable> {
    Ok(Page { frame, content: Content::Unchanged })
}

/// A backing that has frame `n` for page `n`.
pub(crate) struct SameFrame;

impl Backing for SameFrame {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(READ_WRITE)
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        unchanged(frame(ipa.raw() / PAGE))
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

/// A backing that moves the content of page 0 from frame to frame.
#[derive(Clone)]
pub(crate) struct Moving {
    home: Arc<AtomicU64>,
}

impl Moving {
    /// The content is in frame 0.
    pub(crate) fn new() -> Self {
        Self { home: Arc::new(AtomicU64::new(0)) }
    }

    /// The frame that holds the content.
    pub(crate) fn home(&self) -> Pa {
        frame(self.home.load(Ordering::Acquire))
    }

    /// From now on it is in frame `to`.
    pub(crate) fn settle(&self, to: u64) {
        self.home.store(to, Ordering::Release);
    }

    /// The content goes from a frame that was removed to frame `to`.
    pub(crate) fn carry(&self, hardware: &Hardware, removed: &Removed<'_>, to: u64) {
        let content = hardware.content(*removed.frame.peek()).load(Ordering::Relaxed);
        hardware.content(frame(to)).store(content, Ordering::Relaxed);
        self.settle(to);
    }
}

impl Backing for Moving {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(READ_WRITE)
    }

    fn page(&self, _ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        unchanged(self.home())
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

/// A backing whose memory becomes read-only.
#[derive(Clone)]
pub(crate) struct Revoked {
    read_only: Arc<AtomicBool>,
}

impl Revoked {
    /// It is writable as yet.
    pub(crate) fn not_yet() -> Self {
        Self { read_only: Arc::new(AtomicBool::new(false)) }
    }

    /// From now on it is read-only.
    pub(crate) fn revoke(&self) {
        self.read_only.store(true, Ordering::Release);
    }
}

impl Backing for Revoked {
    fn region(&self, _ipa: Ipa) -> Region {
        let read_only = self.read_only.load(Ordering::Acquire);
        Region::Memory(Attributes::normal(if read_only { Permissions::R } else { Permissions::RW }))
    }

    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
        SameFrame.page(ipa, write)
    }

    fn unused(&self, _ipa: Ipa, _page: Page) {}
}

/// A backing that gives each CPU a frame of its own for whatever page, and knows which it has given and not got back.
#[derive(Clone)]
pub(crate) struct OwnFrame {
    number: u64,
    given: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl OwnFrame {
    pub(crate) fn new(number: u64) -> Self {
        Self { number, given: Default::default() }
    }

    /// How many pages were given and not taken back.
    pub(crate) fn in_use(&self) -> u64 {
        self.given.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Backing for OwnFrame {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(READ_WRITE)
    }

    fn page(&self, _ipa: Ipa, _write: bool) -> Result<Page, Unavailable> {
        self.given.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        unchanged(frame(self.number))
    }

    fn unused(&self, _ipa: Ipa, page: Page) {
        assert_eq!(page.frame, frame(self.number), "a page goes back to where it came from");
        self.given.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}
