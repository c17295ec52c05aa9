//! A tree that a CPU has loaded cannot be torn down.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{Reader, Stage2};

fn end(guest: Stage2<ModelArch, ModelMemory<Granule4K>>, reader: &mut Reader) {
    let Ok(mut loaded) = guest.load(reader) else { return };
    let _ = guest.teardown(reader);
    let _ = loaded.run(reader, || ());
}

fn main() {}
