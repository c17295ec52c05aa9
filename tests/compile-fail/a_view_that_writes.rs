//! Who looks at a page without a lock cannot change what it maps.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{Ipa, Pa, Reader, Stage2};

fn change(guest: &Stage2<ModelArch, ModelMemory<Granule4K>>, reader: &Reader) {
    let Ok(Some(mut view)) = guest.view(reader, Ipa::new(0)) else { return };
    view.replace(Pa::new(0));
}

fn main() {}
