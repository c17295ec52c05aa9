//! What the scenes are set on: memory for tables and for a guest, and trees over them.

use alloc::{format, string::String};

use spin::Mutex;

use stage2::{
    Ipa, IpaRange, Level, Mmu, Pa, Reader, Stage2,
    arch::Aarch64,
    cpu::CpuSlot,
    descriptor::{Attributes, Permissions},
    dirty::{Content, DirtyBitmap, Word},
    geometry::{Features, Geometry, GeometryOptions, Granule4K},
    memory::TableMemory,
};
use stage2_platform::{
    cpus::MAX_CPUS,
    ram::{self, Region},
};
use stage2_tests_qemu::{
    machine::{self, Tables},
    memory::{self, PAGE_BYTES},
    say::OrSay,
};

use super::guest_code::{self, CODE};

/// Where the guest's memory is, as IPA.
pub(crate) const RAM: u64 = 0x1_0000_0000;
/// Its bytes, as far as frames stand behind it.
pub(crate) const RAM_BYTES: u64 = 64 << 20;
/// The bytes of a block of level 2.
pub(crate) const BLOCK_BYTES: u64 = 2 << 20;

/// The guest's IPA space.
const IPA_BITS: u8 = 36;
/// That of a large one.
const LARGE_IPA_BITS: u8 = 40;
/// The most memory that a guest has.
pub(crate) const MOST_BYTES: u64 = 64 << 30;
/// For tables.
const TABLE_BYTES: u64 = 8 << 20;
/// For the side log: a bit for each page of the largest memory here.
const LOG_BYTES: u64 = MOST_BYTES / PAGE_BYTES / 8;

pub(crate) static SLOTS: [CpuSlot; MAX_CPUS] = machine::slots();

/// Services over the table memory `M`.
pub(crate) type LabMmu<'h, M> = Mmu<'h, Aarch64, M>;
/// A tree on them.
pub(crate) type LabStage2<'h, M> = Stage2<'h, Aarch64, M>;

/// RAM, cut up.
pub(crate) struct Memory {
    pub(crate) tables: Tables,
    pub(crate) guest: GuestMemory,
}

/// What guests have: one after the other.
pub(crate) struct GuestMemory {
    /// Behind the memory, from its start on.
    frames: Region,
    /// Where the page with the guest's code is.
    code: Pa,
    log: &'static [Word],
    /// A bit for each page of the largest memory, for harvests.
    bitmap: Mutex<Option<&'static mut [u64]>>,
}

impl Memory {
    /// All of it. Once.
    pub(crate) fn take() -> Result<Self, String> {
        let mut free = ram::take_free().or_say("no RAM")?;
        let mut take = |bytes: u64, align: u64| free.take(bytes, align).or_say("too little RAM");
        let tables = machine::tables(take(TABLE_BYTES, PAGE_BYTES)?);
        let log = memory::log_words(take(LOG_BYTES, PAGE_BYTES)?);
        let code = take(PAGE_BYTES, PAGE_BYTES)?;
        let bitmap = Mutex::new(Some(memory::plain_words(take(LOG_BYTES, PAGE_BYTES)?)));
        let guest = GuestMemory { code: Pa::new(code.start()), frames: take(RAM_BYTES, BLOCK_BYTES)?, log, bitmap };
        guest_code::copy(memory::words(code));
        Ok(Self { tables, guest })
    }
}

impl GuestMemory {
    /// An empty tree that may have blocks, the first `bytes` of its memory logged.
    pub(crate) fn tree<'h, M: TableMemory<Granule = Granule4K>>(
        &self,
        mmu: &'h LabMmu<'h, M>,
        features: &Features,
        options: GeometryOptions,
        bytes: u64,
    ) -> Result<LabStage2<'h, M>, String> {
        let bits = if RAM + bytes > 1 << IPA_BITS { LARGE_IPA_BITS } else { IPA_BITS };
        let geometry = Geometry::new(bits, features, options).or_say("geometry")?;
        let words = (bytes / PAGE_BYTES).div_ceil(u64::from(u64::BITS)) as usize;
        let log = DirtyBitmap { base: Ipa::new(RAM), words: self.log.get(..words).or_say("the log is too small")? };
        Ok(LabStage2::new(mmu, geometry, Some(log)).or_say("new tree")?.with_largest_leaf(Level::L2))
    }

    /// Maps the first `bytes` of the memory, page by page, so that there are no blocks; all of it is dirty.
    pub(crate) fn map_pages<M: TableMemory<Granule = Granule4K>>(
        &self,
        tree: &LabStage2<'_, M>,
        reader: &Reader<'_>,
        bytes: u64,
    ) -> Result<(), String> {
        (0..bytes).step_by(PAGE_BYTES as usize).try_for_each(|offset| self.map_page(tree, reader, offset))
    }

    /// Maps the page at `offset` of the memory; it is dirty.
    pub(crate) fn map_page<M: TableMemory<Granule = Granule4K>>(
        &self,
        tree: &LabStage2<'_, M>,
        reader: &Reader<'_>,
        offset: u64,
    ) -> Result<(), String> {
        let (page, frame) = (range(RAM + offset, PAGE_BYTES)?, self.first_frame().offset(offset));
        tree.map(reader, page, frame, Attributes::normal(Permissions::RW), Content::New).or_say("map")
    }

    /// The frame behind the first page of the memory.
    pub(crate) fn first_frame(&self) -> Pa {
        Pa::new(self.frames.start())
    }

    /// The bitmap for harvests, the first time.
    pub(crate) fn take_bitmap(&self) -> Result<&'static mut [u64], String> {
        self.bitmap.lock().take().or_say("the bitmap is taken")
    }

    /// Maps the guest's code.
    pub(crate) fn map_code<M: TableMemory<Granule = Granule4K>>(
        &self,
        tree: &LabStage2<'_, M>,
        reader: &Reader<'_>,
    ) -> Result<(), String> {
        let (page, frame) = (range(CODE, PAGE_BYTES)?, self.code);
        tree.map(reader, page, frame, Attributes::normal(Permissions::RX), Content::New).or_say("map the code")
    }
}

/// The `bytes` of a guest's addresses from `ipa` on.
pub(crate) fn range(ipa: u64, bytes: u64) -> Result<IpaRange, String> {
    IpaRange::new(Ipa::new(ipa), bytes).or_say("no such range")
}

/// Gives a tree's tables back.
pub(crate) fn tear_down<M: TableMemory>(tree: LabStage2<'_, M>, reader: &Reader<'_>) -> Result<(), String> {
    tree.teardown(reader).map_err(|(_, in_use)| format!("teardown: {in_use:?}"))
}
