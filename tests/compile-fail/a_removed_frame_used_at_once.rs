//! Readers may still look at a frame that was unmapped: it is had back after a grace period.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{IpaRange, Pa, Reader, Stage2};

fn reuse(guest: &Stage2<ModelArch, ModelMemory<Granule4K>>, reader: &Reader, range: IpaRange, pool: &mut Vec<Pa>) {
    let _ = guest.unmap_with(reader, range, |removed| pool.push(removed.frame));
}

fn main() {}
