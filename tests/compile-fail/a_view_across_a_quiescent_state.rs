//! What was found in a table is not to be used after a quiescent state.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{Ipa, Pa, Reader, Stage2};

fn look(guest: &Stage2<ModelArch, ModelMemory<Granule4K>>, reader: &mut Reader) -> Option<Pa> {
    let view = guest.view(reader, Ipa::new(0)).ok()??;
    reader.quiescent();
    Some(view.pa())
}

fn main() {}
