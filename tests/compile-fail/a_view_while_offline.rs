//! An offline CPU holds nothing it found in a table.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{Ipa, Reader, Stage2};

fn wait(guest: &Stage2<ModelArch, ModelMemory<Granule4K>>, reader: &mut Reader) {
    let Ok(Some(view)) = guest.view(reader, Ipa::new(0)) else { return };
    reader.offline(|| view.pa());
}

fn main() {}
