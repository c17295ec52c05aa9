//! What one CPU has in VTTBR_EL2 another has not.

use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::stage2::Loaded;

fn send<T: Send>(_: T) {}

fn away(loaded: Loaded<ModelArch, ModelMemory<Granule4K>>) {
    send(loaded);
}

fn main() {}
