//! A tree that is being harvested cannot be torn down.

use stage2::dirty::Initial;
use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{Reader, Stage2};

fn end(guest: Stage2<ModelArch, ModelMemory<Granule4K>>, reader: &Reader) {
    let Ok(log) = guest.start_logging(reader, Initial::Dirty) else { return };
    let _ = guest.teardown(reader);
    log.stop();
}

fn main() {}
