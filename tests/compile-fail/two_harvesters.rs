//! One log has one harvester at a time.

use stage2::dirty::DirtyLog;
use stage2::geometry::Granule4K;
use stage2::model::{ModelArch, ModelMemory};
use stage2::{IpaRange, Reader};

fn scan(log: &mut DirtyLog<ModelArch, ModelMemory<Granule4K>>, reader: &Reader, range: IpaRange) {
    let mut first = || log.scan(reader, range, &mut [0]).is_ok();
    let mut second = || log.scan(reader, range, &mut [0]).is_ok();
    first();
    second();
}

fn main() {}
