//! What is where in a guest's memory: the backing of its faults.

use core::sync::atomic::{AtomicU64, Ordering};

use stage2::{
    Ipa, IpaRange, Pa,
    descriptor::{Attributes, Permissions},
    dirty::Content,
    fault::{Backing, Page, Region, Unavailable},
    geometry::Granule,
};

use super::lab::Bench;

/// Memory that is there from the start, or comes with the first access, its words then [`FRESH`].
pub(crate) const RAM: u64 = 0x4000_0000;
/// The same, but not to be written.
pub(crate) const ROM: u64 = 0x6000_0000;
/// The same, but not to be executed.
pub(crate) const DATA_ONLY: u64 = 0x6800_0000;
/// A device.
pub(crate) const DEVICE: u64 = 0x7000_0000;
/// Nothing.
pub(crate) const NOTHING: u64 = 0x7800_0000;
/// How long each is, at least.
const LENGTH: u64 = 0x800_0000;

/// What each word of a page is that comes with the first access.
pub(crate) const FRESH: u64 = 0xf5e5;

/// The backing of every guest here.
pub(crate) struct Places<'b, 'h, G> {
    bench: &'b Bench<'h, G>,
    given: AtomicU64,
}

impl<'b, 'h, G: Granule> Places<'b, 'h, G> {
    pub(crate) fn new(bench: &'b Bench<'h, G>) -> Self {
        Self { bench, given: AtomicU64::new(0) }
    }

    /// How many pages came with the first access.
    pub(crate) fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

impl<G: Granule> Backing for Places<'_, '_, G> {
    fn region(&self, ipa: Ipa) -> Region {
        let within = |start: u64| IpaRange::new(Ipa::new(start), LENGTH).is_some_and(|range| range.contains(ipa));
        let memory = |permissions| Region::Memory(Attributes::normal(permissions));
        match () {
            () if within(ROM) => memory(Permissions::RX),
            () if within(DATA_ONLY) => memory(Permissions::RW),
            () if within(DEVICE) => Region::Emulated,
            () if within(NOTHING) => Region::Nothing,
            () => memory(Permissions::RWX),
        }
    }

    fn page(&self, _: Ipa, _: bool) -> Result<Page, Unavailable> {
        let frame: Pa = self.bench.frame(FRESH).map_err(|_| Unavailable::Never)?;
        self.given.fetch_add(1, Ordering::Relaxed);
        Ok(Page { frame, content: Content::Unchanged })
    }

    fn unused(&self, _: Ipa, _: Page) {
        // The bench takes all frames back at its end.
        self.given.fetch_sub(1, Ordering::Relaxed);
    }
}
