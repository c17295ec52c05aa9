//! Running the guest is a quiescent state: nobody waits for this CPU meanwhile.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::stage2::Loaded;
use stage2::{Ipa, Pa, Reader};

fn run(loaded: &mut Loaded<ModelArch, ModelMemory<Granule4K>>, reader: &mut Reader) -> Option<Pa> {
    let view = loaded.stage2().view(reader, Ipa::new(0)).ok()??;
    loaded.run(reader, || ()).ok()?;
    Some(view.pa())
}

fn main() {}
