//! Claims about geometry: trees of every size and granule are what the hardware walks.

use alloc::{format, string::String};

use stage2::{
    Reader,
    descriptor::{Attributes, Permissions},
    dirty::Content,
    geometry::{Granule, Granule4K, Granule16K, Granule64K, GranuleSupport, MAX_IPA_BITS, MIN_IPA_BITS},
};
use stage2_platform::{
    cpus::CpuIndex,
    partition::{self, Controls},
};
use stage2_tests_qemu::machine;

use super::{
    guest::pages,
    lab::{Bench, BenchStage2, Lab},
    lessened::Less,
    places::Places,
    seat::{Order, Seat},
    stage1::Regime,
    verdict::{Claimed, OrSay, Verdict, expect},
};

pub(crate) fn every_ipa_size_is_walked_from_each_of_its_root_tables(lab: &Lab) -> Claimed {
    all_sizes::<Granule4K>(lab)
}

pub(crate) fn trees_of_16k_pages_are_walked(lab: &Lab) -> Claimed {
    all_sizes::<Granule16K>(lab)
}

pub(crate) fn trees_of_64k_pages_are_walked(lab: &Lab) -> Claimed {
    all_sizes::<Granule64K>(lab)
}

/// A guest of each IPA size that the CPU has.
fn all_sizes<G: Granule>(lab: &Lab) -> Claimed {
    if lab.features.granule::<G>() == GranuleSupport::Unsupported {
        return Ok(Verdict::NotHere("the CPU has no such granule at stage 2".into()));
    }
    let largest = lab.features.pa_range().bits().min(MAX_IPA_BITS);
    let mut most_tables = 0;
    for ipa_bits in MIN_IPA_BITS..=largest {
        let tables = lab
            .bench_of(Less::NOTHING, lab.features, |bench: &Bench<'_, G>| one_size(bench, ipa_bits, largest))
            .map_err(|reason| format!("{ipa_bits} bits: {reason}"))?;
        most_tables = most_tables.max(tables);
    }
    Ok(Verdict::Holds(format!("{MIN_IPA_BITS} to {largest} bits, up to {most_tables} root tables")))
}

/// A page at the bottom of each root table, and the last one there is. How many root tables there are.
fn one_size<G: Granule>(bench: &Bench<'_, G>, ipa_bits: u8, largest: u8) -> Result<usize, String> {
    let mut reader = bench.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
    partition::prepare(Controls::default());
    Regime::OFF.enter();
    let stage2 = bench.tree(ipa_bits)?;
    let places = Places::new(bench);
    bench.map_code(&stage2, &reader)?;
    let (size, tables) = (stage2.geometry().ipa_size(), stage2.geometry().root_tables());
    let bottoms = (0..tables as u64).map(|table| table * (size / tables as u64) + G::PAGE_SIZE);
    let addresses = bottoms.chain([size - G::PAGE_SIZE]);
    for (value, address) in addresses.clone().enumerate() {
        map(bench, &stage2, &reader, address, value as u64)?;
    }
    let mut seat = Seat::new(&stage2, &places, &reader)?;
    for (value, address) in addresses.enumerate() {
        let seen = seat.execute(&mut reader, &Order::load(address)).value()?;
        expect(&format!("what is at {address:#x}"), seen, value as u64)?;
    }
    if ipa_bits < largest {
        beyond(&mut seat, &mut reader, size)?;
    }
    drop(seat);
    stage2.teardown(&reader).map_err(|(_, in_use)| format!("teardown: {in_use:?}"))?;
    Ok(tables)
}

fn map<G: Granule>(
    bench: &Bench<'_, G>,
    stage2: &BenchStage2<'_, G>,
    reader: &Reader<'_>,
    ipa: u64,
    value: u64,
) -> Result<(), String> {
    let attributes = Attributes::normal(Permissions::RW);
    stage2.map(reader, pages::<G>(ipa, 1), bench.frame(value)?, attributes, Content::New).or_say("map")
}

/// The first address behind the guest's is an address size fault of its own.
fn beyond<G: Granule>(seat: &mut Seat<'_, '_, G>, reader: &mut Reader<'_>, size: u64) -> Result<(), String> {
    const DATA_ABORT_ADDRESS_SIZE: u64 = 0x25 << 26 | 1 << 25;
    let exception = seat.execute(reader, &Order::load(size).resolving()).exception()?;
    expect("ESR_EL1 beyond the IPA size", exception.esr, DATA_ABORT_ADDRESS_SIZE)?;
    expect("FAR_EL1 beyond the IPA size", exception.far, size)
}
