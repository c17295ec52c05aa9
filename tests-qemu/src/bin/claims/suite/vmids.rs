//! Claims about VMIDs: guests that follow each other on a CPU, and more guests than VMIDs.

use alloc::{format, string::String};
use core::{
    hint,
    sync::atomic::{AtomicU32, Ordering},
};

use arrayvec::ArrayVec;
use spin::Mutex;
use stage2::{
    Reader,
    descriptor::{Attributes, Permissions},
    dirty::Content,
    geometry::Granule4K,
};
use stage2_platform::{
    cpus::{self, CpuIndex},
    partition::{self, Controls},
};
use stage2_tests_qemu::machine;

use super::{
    guest::pages,
    lab::{Bench, BenchStage2, Lab},
    lessened::Less,
    places::{Places, RAM},
    seat::{Order, Seat},
    stage1::Regime,
    verdict::{Claimed, OrSay, Saw, Verdict, compare, expect, with_twins},
};

type Tree<'h> = BenchStage2<'h, Granule4K>;

/// One root table, two below.
const IPA_BITS: u8 = 39;
/// VMIDs of 8 bits, without 0.
const VMIDS: usize = 255;
const OLD: u64 = 0x01d;
const NEW: u64 = 0x4e3;

/// Makes a guest of its own, whose memory is one page of `value`.
fn guest_of<'h>(bench: &Bench<'h, Granule4K>, reader: &Reader<'_>, value: u64) -> Result<Tree<'h>, String> {
    let tree = bench.tree(IPA_BITS)?;
    bench.map_code(&tree, reader)?;
    let (page, frame) = (pages::<Granule4K>(RAM, 1), bench.frame(value)?);
    tree.map(reader, page, frame, Attributes::normal(Permissions::RW), Content::New).or_say("map")?;
    Ok(tree)
}

/// Loads the tree on this CPU, has its guest look at its page, and unloads it.
fn look<'h>(tree: &Tree<'h>, places: &Places<'_, 'h, Granule4K>, reader: &mut Reader<'_>) -> Result<u64, String> {
    let mut seat = Seat::new(tree, places, reader)?;
    seat.execute(reader, &Order::load(RAM)).value()
}

fn tear_down<'h>(trees: impl IntoIterator<Item = Tree<'h>>, reader: &Reader<'_>) -> Result<(), String> {
    trees.into_iter().try_for_each(|tree| tree.teardown(reader).map_err(|(_, in_use)| format!("teardown: {in_use:?}")))
}

pub(crate) fn two_guests_on_one_cpu_see_their_own_memory(lab: &Lab) -> Claimed {
    let twin = Less::NOTHING.and_stays_loaded().and_one_vmid();
    with_twins(lab, lab.features, &[("both under one VMID, no TLBI", twin)], |bench| {
        let mut reader = bench.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        partition::prepare(Controls::default());
        Regime::OFF.enter();
        let places = Places::new(bench);
        let trees = [guest_of(bench, &reader, OLD)?, guest_of(bench, &reader, NEW)?];
        expect("the first guest's memory", look(&trees[0], &places, &mut reader)?, OLD)?;
        let saw = Saw::of(look(&trees[1], &places, &mut reader)?, NEW, OLD)?;
        let again = look(&trees[0], &places, &mut reader)?;
        tear_down(trees, &reader)?;
        if saw == Saw::TheTruth {
            expect("the first guest's memory, after the second", again, OLD)?;
        }
        Ok(saw)
    })
}

pub(crate) fn more_guests_than_vmids_take_turns(lab: &Lab) -> Claimed {
    const ROUNDS: u64 = 3;
    lab.bench(Less::NOTHING, lab.features.without_vmid16(), |bench| {
        let mut reader = bench.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        partition::prepare(Controls::default());
        Regime::OFF.enter();
        let places = Places::new(bench);
        let mut trees: ArrayVec<Tree<'_>, 8> = ArrayVec::new();
        for value in 0..trees.capacity() as u64 {
            trees.push(guest_of(bench, &reader, value)?);
        }
        for round in 0..ROUNDS {
            for (value, tree) in trees.iter().enumerate() {
                expect(&format!("guest {value} in round {round}"), look(tree, &places, &mut reader)?, value as u64)?;
            }
            take_vmids(bench, &reader, VMIDS)?;
        }
        tear_down(trees, &reader)?;
        expect("rollovers", bench.mmu.vmids().rollovers(), ROUNDS)?;
        Ok(Verdict::Holds(String::new()))
    })
}

/// The last guest of a CPU had a VMID that after a rollover is the next one's: nothing but the rollover's ALLE1IS keeps them
/// apart. The CPU keeps its VTTBR_EL2 in between, since QEMU drops everything when the VMID there changes.
pub(crate) fn a_vmid_given_out_again_brings_nothing_along(lab: &Lab) -> Claimed {
    let good = Less::NOTHING.and_stays_loaded();
    let twin = Less::without_alle1().and_stays_loaded();
    compare(lab, lab.features.without_vmid16(), good, &[("rollover without ALLE1IS", twin)], |bench| {
        let boot = bench.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        let (last, next) = (guest_of(bench, &boot, OLD)?, guest_of(bench, &boot, NEW)?);
        drop(boot);
        let step = AtomicU32::new(0);
        let wait = |for_step| {
            while step.load(Ordering::Acquire) != for_step {
                hint::spin_loop();
            }
        };
        let result = Mutex::new(Ok(0));
        cpus::scope(2, |cpu| {
            let done = if cpu == CpuIndex::BOOT {
                wait(1);
                let boot = bench.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader");
                let taken = boot.and_then(|boot| take_vmids(bench, &boot, VMIDS - 1));
                step.store(2, Ordering::Release);
                taken.map(|()| None)
            } else {
                look_around_a_rollover(bench, &last, &next, || {
                    step.store(1, Ordering::Release);
                    wait(2);
                })
                .inspect_err(|_| step.store(1, Ordering::Release))
                .map(Some)
            };
            match done {
                Ok(None) => {}
                Ok(Some(value)) => *result.lock() = Ok(value),
                Err(reason) => *result.lock() = Err(reason),
            }
        });
        let boot = bench.mmu.reader(machine::index(CpuIndex::BOOT)).or_say("reader")?;
        tear_down([last, next], &boot)?;
        expect("rollovers", bench.mmu.vmids().rollovers(), 1)?;
        Saw::of(result.into_inner()?, NEW, OLD)
    })
}

/// Makes `count` guests that stay, each of which runs once and so has a VMID.
fn take_vmids(bench: &Bench<'_, Granule4K>, reader: &Reader<'_>, count: usize) -> Result<(), String> {
    (0..count).try_for_each(|_| {
        let tree = bench.tree(IPA_BITS)?;
        drop(tree.load(reader).or_say("load")?);
        bench.keep(tree);
        Ok(())
    })
}

/// On a second CPU: looks at the memory of `last`, and after `meanwhile` at that of `next`.
fn look_around_a_rollover<'h>(
    bench: &Bench<'h, Granule4K>,
    last: &Tree<'h>,
    next: &Tree<'h>,
    meanwhile: impl FnOnce(),
) -> Result<u64, String> {
    let mut reader = bench.mmu.reader(machine::index(cpus::current())).or_say("reader")?;
    partition::prepare(Controls::default());
    Regime::OFF.enter();
    let places = Places::new(bench);
    expect("the last guest's memory", look(last, &places, &mut reader)?, OLD)?;
    reader.offline(meanwhile);
    look(next, &places, &mut reader)
}
