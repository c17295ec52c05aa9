//! Claims of rules 8 and 14: freezing a guest, and tables on their way back.

use alloc::{format, string::String};
use core::{
    hint,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use stage2_platform::timer;

use super::{
    blob::Piece,
    guest::{Guest, Setup},
    lab::Lab,
    lessened::Less,
    places::RAM,
    seat::{End, Order},
    verdict::{Claimed, OrSay, Saw, Verdict, expect, with_twins},
};

/// How long a vCPU may take to show that it goes on.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one is watched that should stand still: the host may keep it waiting for a while.
const STILL: Duration = Duration::from_millis(200);

/// Waits until `done`, but not for ever.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Result<(), String> {
    let start = timer::now();
    while !done() {
        if timer::now() - start > PATIENCE {
            return Err(format!("no sign of: {what}"));
        }
        hint::spin_loop();
    }
    Ok(())
}

/// Waits until each counter has gone on by a thousand.
fn all_count(what: &str, counters: &[&AtomicU64]) -> Result<(), String> {
    counters.iter().try_for_each(|counter| {
        let start = counter.load(Ordering::Relaxed);
        wait_until(what, || counter.load(Ordering::Relaxed) > start + 1000)
    })
}

pub(crate) fn a_frozen_guest_stops_at_its_next_access(lab: &Lab) -> Claimed {
    const STOP: u64 = RAM;
    const COUNTERS: [u64; 2] = [RAM + 0x1000, RAM + 0x2000];
    // Nothing is given back meanwhile: only the guest can tell.
    with_twins(lab, lab.features, &[("no VMALLS12E1IS", Less::without_vmalls12e1().and_unjudged())], |bench| {
        bench.guest(Setup::vcpus(2), |guest| {
            let stop = &guest.words(guest.map(STOP, 0)?)[0];
            let counters = [guest.map(COUNTERS[0], 0)?, guest.map(COUNTERS[1], 0)?];
            let counters = counters.map(|frame| &guest.words(frame)[0]);
            for (vcpu, counter) in guest.vcpus.iter().zip(COUNTERS) {
                vcpu.start(Order::new(Piece::Count, counter, STOP).resolving_always());
            }
            let saw = freeze_and_thaw(guest, &counters);
            stop.store(1, Ordering::Relaxed);
            guest.vcpus.iter().try_for_each(|vcpu| vcpu.finish().value().map(drop))?;
            saw
        })
    })
}

/// Watches the counters while the guest is frozen, and after.
fn freeze_and_thaw(guest: &Guest<'_, '_>, counters: &[&AtomicU64]) -> Result<Saw, String> {
    all_count("a running guest", counters)?;
    let frozen = guest.stage2.freeze(&guest.reader).or_say("freeze")?;
    let at = |counter: &&AtomicU64| counter.load(Ordering::Relaxed);
    let before: [u64; 2] = [at(&counters[0]), at(&counters[1])];
    let start = timer::now();
    let moves = || counters.iter().zip(before).any(|(counter, before)| at(counter) != before);
    wait_until("time", || moves() || timer::now() - start > STILL)?;
    let moved = moves();
    frozen.thaw(&guest.reader).map_err(|(_, error)| format!("thaw: {error:?}"))?;
    all_count("a thawed guest", counters)?;
    Ok(if moved { Saw::ThePast } else { Saw::TheTruth })
}

/// QEMU caches no table entries of stage 2: a twin that frees a table too early cannot be caught here.
pub(crate) fn a_reclaimed_table_serves_again_at_once(lab: &Lab) -> Claimed {
    const FIRST: u64 = RAM;
    const SECOND: u64 = RAM + (8 << 20);
    const PAGES: u64 = 8;
    lab.bench(Less::NOTHING, lab.features, |bench| {
        bench.guest(Setup::vcpus(2), |guest| {
            for page in 0..PAGES {
                guest.map(FIRST + page * 4096, page)?;
                guest.all_see(FIRST + page * 4096, page)?;
            }
            let live = bench.mmu.memory().usage().live;
            guest.unmap(FIRST, PAGES)?;
            wait_until("a freed table", || {
                guest.reader.quiescent();
                guest.stage2.reclaim(&guest.reader, 16).is_ok_and(|progress| progress.freed == 1)
            })?;
            expect("tables after reclaim", bench.mmu.memory().usage().live, live - 1)?;
            for page in 0..PAGES {
                guest.map(SECOND + page * 4096, 100 + page)?;
            }
            expect("tables after the new map", bench.mmu.memory().usage().live, live)?;
            for page in 0..PAGES {
                guest.all_see(SECOND + page * 4096, 100 + page)?;
                for vcpu in guest.vcpus {
                    let end = vcpu.execute(Order::load(FIRST + page * 4096)).end;
                    expect("a load where nothing is", end, End::Fault)?;
                }
            }
            Ok(Verdict::Holds("no twin: QEMU caches no table entries".into()))
        })
    })
}
