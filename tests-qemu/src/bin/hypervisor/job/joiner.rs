//! Blocks where there can be some: fills what is missing in a stretch that has a run of frames, and collapses its table. A
//! few stretches at a time, while nothing is logged.

use stage2::{
    Ipa, IpaRange, Level, Reader,
    dirty::Content,
    error::{ChangeCause, Stopped},
    fault::Backing,
    stage2::{CollapseError, MapCause, MapError},
};
use stage2_tests_qemu::{frames::RUN_BYTES, memory::PAGE_BYTES};

use super::shared::Shared;

/// Stretches that one step goes through.
const STRETCHES: u64 = 8;

/// Passes after which what is left is left.
const MAX_PASSES: u64 = 16;

/// Why something was not joined.
#[derive(Clone, Copy, Debug, defmt::Format)]
pub(crate) enum JoinError {
    Map(MapError),
    Collapse(CollapseError),
}

/// Goes through RAM, over and over.
#[derive(Default)]
pub(crate) struct Joiner {
    /// Bytes from the start of RAM to where it goes on.
    at: u64,
    /// How often it was through.
    passes: u64,
    /// Stretches that could be blocks and are not: in this pass, and in the one before.
    left: usize,
    left_before: usize,
}

impl Joiner {
    /// Whether a pass has left nothing that could be joined, or so many passes have that there is no end to it.
    pub(crate) fn is_done(&self) -> bool {
        self.passes != 0 && self.left_before == 0 || self.passes >= MAX_PASSES
    }

    /// The next few stretches; the same again, if the library has no room for their tables now.
    pub(crate) fn step(&mut self, shared: &Shared<'_>, reader: &Reader<'_>) -> Result<(), JoinError> {
        if !shared.memory.has_blocks() {
            self.passes += 1;
            return Ok(());
        }
        let ram = shared.memory.ram();
        let bytes = (STRETCHES * RUN_BYTES).min(ram.bytes() - self.at);
        let Some(piece) = IpaRange::new(ram.start().offset(self.at), bytes) else { return Ok(()) };
        let could_be_blocks = || {
            let has_run = |stretch: &IpaRange| shared.memory.run(stretch.start()).is_some();
            stretches(piece).filter(has_run).filter(|&stretch| is_in_pieces(shared, reader, stretch))
        };
        for stretch in could_be_blocks() {
            populate(shared, reader, stretch).map_err(JoinError::Map)?;
        }
        match shared.stage2.collapse(reader, piece) {
            Err(CollapseError::Stopped(Stopped { cause: ChangeCause::Retry, .. })) => return Ok(()),
            collapsed => collapsed.map_err(JoinError::Collapse)?,
        };
        // A table that was seen empty is not joined until the reclaimer has looked at it again.
        self.left += could_be_blocks().count();
        self.left += stretches(piece).filter(|stretch| shared.memory.is_torn(stretch.start())).count();
        self.at += bytes;
        if self.at == ram.bytes() {
            self.at = 0;
            self.passes += 1;
            self.left_before = core::mem::take(&mut self.left);
        }
        Ok(())
    }
}

/// Maps what is missing in a stretch. Where a vCPU is faster, or something is in the way, it stays as it is.
pub(crate) fn populate(shared: &Shared<'_>, reader: &Reader<'_>, stretch: IpaRange) -> Result<(), MapError> {
    let is_missing = |ipa: &Ipa| !shared.stage2.query(reader, *ipa).is_ok_and(|found| found.is_some());
    let mut missing = pages(stretch).filter(is_missing).peekable();
    while let Some(first) = missing.next() {
        let frame_of = |ipa: Ipa| shared.memory.page(ipa, false).ok().map(|page| page.frame);
        let Some(frame) = frame_of(first) else { continue };
        let mut bytes = PAGE_BYTES;
        let continues = |next: Ipa, bytes| next == first.offset(bytes) && frame_of(next) == frame.checked_add(bytes);
        while missing.next_if(|&next| continues(next, bytes)).is_some() {
            bytes += PAGE_BYTES;
        }
        let mut rest = IpaRange::new(first, bytes);
        while let Some(hole) = rest {
            let frame = frame.offset(hole.start().raw() - first.raw());
            let attributes = shared.memory.attributes();
            rest = match shared.stage2.map(reader, hole, frame, attributes, Content::Unchanged) {
                Err(MapError::Stopped(Stopped { at, cause: MapCause::Exists, .. })) => {
                    at.checked_add(PAGE_BYTES).and_then(|next| hole.starting_at(next))
                }
                Err(MapError::Stopped(Stopped { cause: MapCause::Retry | MapCause::OutOfTables, .. })) => None,
                mapped => mapped.map(|()| None)?,
            };
        }
    }
    Ok(())
}

/// Whether the stretch has a table in which something is mapped.
fn is_in_pieces(shared: &Shared<'_>, reader: &Reader<'_>, stretch: IpaRange) -> bool {
    let mut found = pages(stretch).filter_map(|ipa| shared.stage2.query(reader, ipa).ok().flatten());
    found.next().is_some_and(|mapping| mapping.level == Level::LEAF)
}

/// The pages of a range.
pub(super) fn pages(stretch: IpaRange) -> impl Iterator<Item = Ipa> {
    (0..stretch.bytes() / PAGE_BYTES).map(move |page| stretch.start().offset(page * PAGE_BYTES))
}

/// The stretches of a range that consists of some.
pub(super) fn stretches(range: IpaRange) -> impl Iterator<Item = IpaRange> {
    (0..range.bytes() / RUN_BYTES)
        .filter_map(move |nth| IpaRange::new(range.start().offset(nth * RUN_BYTES), RUN_BYTES))
}
