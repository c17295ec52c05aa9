//! A guest is thawed before its tree goes, or its freeze is given up.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{Reader, Stage2};

fn end(guest: Stage2<ModelArch, ModelMemory<Granule4K>>, reader: &Reader) {
    let Ok(frozen) = guest.freeze(reader) else { return };
    let _ = guest.teardown(reader);
    let _ = frozen.thaw(reader);
}

fn main() {}
