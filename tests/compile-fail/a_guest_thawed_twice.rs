//! A thaw undoes one freeze.

use stage2::Reader;
use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::stage2::Frozen;

fn thaw(frozen: Frozen<ModelArch, ModelMemory<Granule4K>>, reader: &Reader) {
    let _ = frozen.thaw(reader);
    let _ = frozen.is_settled();
}

fn main() {}
