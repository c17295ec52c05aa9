//! Faults: from the syndrome to the entry that resolves it.
//!
//! # The path (one straight line)
//! decode → where (HPFAR_EL2, or AT) → which region → *read-only recheck*: was another CPU first? → the page from the backing,
//! tables, cache maintenance, no lock held → *read-write walk*: one table's lock, revalidate, compare the leaf → install → unlock,
//! `DSB ISHST`.
//!
//! The level the CPU reports is never used: the tree says what is there.

pub mod decode;
pub mod inject;
pub mod syndrome;

mod resolve;

pub use resolve::{FaultError, Outcome};
pub use syndrome::Syndrome;

use core::fmt;

use crate::addr::{Ipa, IpaRange, Pa};
use crate::descriptor::Attributes;
use crate::dirty::Content;

/// What an address of the guest is, according to the embedder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Region {
    /// Memory, or a device that is passed through: mapped on demand with these attributes.
    Memory(Attributes),
    /// A device that the embedder emulates.
    Emulated,
    /// Nothing: the guest gets an external abort.
    Nothing,
}

/// A frame for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Page {
    /// The frame.
    pub frame: Pa,
    /// Whether it holds what the page read before.
    pub content: Content,
}

/// Why there is no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Unavailable {
    /// Not now: the guest takes the fault again.
    Later,
    /// Never: the guest gets an external abort.
    Never,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later => f.write_str("the page is not to be had now"),
            Self::Never => f.write_str("the page is not to be had"),
        }
    }
}

impl core::error::Error for Unavailable {}

/// Where a guest's memory comes from. Called with no lock held, from the CPU that takes the fault; it may be called for
/// one page on several CPUs at once.
///
/// An answer may change at two moments: before [`Stage2::unmap`], [`Stage2::unmap_with`] or [`Stage2::protect`] is called for
/// the page, and within `unmap_with`'s callback. An older answer is then not used any more.
///
/// [`Stage2::unmap`]: crate::stage2::Stage2::unmap
/// [`Stage2::unmap_with`]: crate::stage2::Stage2::unmap_with
/// [`Stage2::protect`]: crate::stage2::Stage2::protect
pub trait Backing {
    /// What `ipa` is.
    fn region(&self, ipa: Ipa) -> Region;

    /// The frame for the page at `ipa` (aligned to the granule); `write` if the guest wants to store.
    ///
    /// # Errors
    /// [`Unavailable`].
    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable>;

    /// The frame for all of `block`, of the level above the pages', if there is one: aligned to its size, and with one region
    /// all over it. Asked before [`Self::page`], of trees that may have blocks and where no log is on. Its answer may change when
    /// that of a page of it may.
    fn block(&self, block: IpaRange, write: bool) -> Option<Page> {
        let _ = (block, write);
        None
    }

    /// Takes back what [`Self::block`] gave and was not used.
    fn unused_block(&self, block: IpaRange, page: Page) {
        let _ = (block, page);
    }

    /// Takes back a page that [`Self::page`] gave and that was not used, since another CPU was first or the guest has lost
    /// something meanwhile.
    fn unused(&self, ipa: Ipa, page: Page);
}
