//! How much of the guest's memory is mapped by blocks.

use stage2::{Level, Reader};
use stage2_tests_qemu::{frames::RUN_BYTES, memory::PAGE_BYTES};

use super::{
    joiner::{pages, stretches},
    shared::Shared,
};

/// How much of RAM is mapped, and how.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    mapped: u64,
    by_blocks: u64,
}

impl Share {
    /// As it is now, more or less: the guest goes on.
    pub(crate) fn measure(shared: &Shared<'_>, reader: &mut Reader<'_>) -> Self {
        let mut share = Self::default();
        for stretch in stretches(shared.memory.ram()) {
            reader.quiescent();
            let found = |ipa| shared.stage2.query(reader, ipa).ok().flatten();
            if found(stretch.start()).is_some_and(|mapping| mapping.level < Level::LEAF) {
                share.mapped += RUN_BYTES / PAGE_BYTES;
                share.by_blocks += RUN_BYTES / PAGE_BYTES;
            } else {
                share.mapped += pages(stretch).filter_map(found).count() as u64;
            }
        }
        share
    }

    /// What blocks map, of what is mapped.
    pub(crate) fn by_blocks(self) -> f32 {
        self.by_blocks as f32 / self.mapped.max(1) as f32
    }
}
