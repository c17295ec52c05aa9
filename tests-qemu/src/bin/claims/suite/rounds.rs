//! A guest that stores the number of the round to pages of its memory, in random orders and on CPUs of its own, and this CPU that
//! harvests meanwhile and keeps a replica: KVM's dirty_log_test, by its invariants. Half of the pages come by faults.
//!
//! - A page whose bit is set holds a value of this round or of the last, or was left over from the last on purpose.
//! - A page whose bit is clear held, when the scan began, nothing newer than the last harvest has taken: it is what the replica has.
//!
//! Each vCPU says which round it has come to, and the harvest begins once all have come to this one; they go on storing beside it. In
//! the end, when nobody stores, the replica is what the guest has. Each store's value is another: the round, and the number of the store
//! above it.

use alloc::{format, string::String, vec, vec::Vec};
use core::{
    sync::atomic::{AtomicU64, Ordering, fence},
    time::Duration,
};

use stage2::{
    Ipa, IpaRange, Pa,
    dirty::{DirtyLog, Initial, Tracking},
    geometry::{Features, Granule4K, HardwareUpdate},
};
use stage2_platform::{
    cpus, timer,
    trace::{self, Mark},
};
use stage2_tests_qemu::{memory::PAGE_BYTES, tables::TracedPool};

use super::{
    guest::{Guest, Setup, pages},
    lab::Bench,
    lessened::Lessened,
    places::RAM,
    seat::Order,
    verdict::{OrSay, Saw, expect},
};

pub(crate) type Log<'s, 'h> = DirtyLog<'s, 'h, Lessened, TracedPool<Granule4K>>;

const VCPUS: usize = 2;
/// The page by which the first vCPU is told the round, and so on.
const CONTROL: u64 = RAM;
/// What is in it: the round, what was stored last, how often to store, the seed of the order, the number before the first store's.
const ROUND: usize = 0;
const LAST: usize = 1;
const COUNT: usize = 2;
const SEED: usize = 3;
const NUMBER: usize = 4;
/// Stores of a vCPU in a round: about as many as it has the time for beside a harvest.
const STORES: u64 = 1 << 14;
/// How long the guest may take to come to a round.
const PATIENCE: Duration = Duration::from_secs(30);

/// Memory of so many pages, the last of which is the last of so many bits of IPA.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) tracking: Tracking,
    pub(crate) pages: u64,
    pub(crate) ipa_bits: u8,
    pub(crate) rounds: u64,
}

/// The ways to track stores that a CPU has.
pub(crate) fn ways(features: &Features) -> impl Iterator<Item = Tracking> {
    let has_dirty_state = features.hardware_update() == HardwareUpdate::AccessFlagAndDirty;
    [Tracking::WriteProtect, Tracking::Hardware, Tracking::Adaptive]
        .into_iter()
        .filter(move |tracking| *tracking == Tracking::WriteProtect || has_dirty_state)
}

/// The hardware updates that it takes.
pub(crate) const fn updates(tracking: Tracking) -> HardwareUpdate {
    match tracking {
        Tracking::WriteProtect => HardwareUpdate::None,
        Tracking::Hardware | Tracking::Adaptive => HardwareUpdate::AccessFlagAndDirty,
    }
}

impl Plan {
    fn base(&self) -> u64 {
        (1 << self.ipa_bits) - self.pages * PAGE_BYTES
    }

    pub(crate) fn range(&self) -> IpaRange {
        pages::<Granule4K>(self.base(), self.pages)
    }

    pub(crate) fn page(&self, nth: u64) -> u64 {
        self.base() + nth * PAGE_BYTES
    }

    pub(crate) fn setup(&self) -> Setup {
        Setup::vcpus(VCPUS).logged_from(self.ipa_bits, self.base()).updating(updates(self.tracking))
    }

    /// Maps each other page, and begins a log that is clean.
    pub(crate) fn start<'s, 'h>(&self, guest: &Guest<'s, 'h>) -> Result<(Log<'s, 'h>, Replica), String> {
        (0..self.pages).step_by(2).try_for_each(|nth| guest.map(self.page(nth), 0).map(drop))?;
        let log = guest.stage2.start_logging_with(&guest.reader, Initial::Clean, self.tracking).or_say("start")?;
        Ok((log, Replica(vec![0; self.pages as usize])))
    }

    /// Plays all rounds. Adds to `beside` the stores that were made beside a harvest.
    pub(crate) fn play(&self, bench: &Bench<'_, Granule4K>, beside: &AtomicU64) -> Result<Saw, String> {
        bench.guest(self.setup(), |guest| {
            let controls = (0..VCPUS as u64).map(|nth| Ok(guest.words(guest.map(CONTROL + nth * PAGE_BYTES, 0)?)));
            let controls: Vec<&[AtomicU64]> = controls.collect::<Result<_, String>>()?;
            let (mut log, mut replica) = self.start(guest)?;
            let played = (1..=self.rounds).try_fold((Saw::TheTruth, Vec::new()), |(saw, again), round| {
                for (nth, (vcpu, control)) in guest.vcpus.iter().zip(&controls).enumerate() {
                    let first = ((nth as u64) << 31) + (round - 1) * STORES;
                    let words = [(ROUND, round), (COUNT, STORES), (SEED, first | round), (NUMBER, first)];
                    words.into_iter().for_each(|(at, word)| control[at].store(word, Ordering::Relaxed));
                    let address = CONTROL + nth as u64 * PAGE_BYTES;
                    vcpu.start(Order::rounds(self.base(), address, self.pages).resolving_always());
                }
                let harvested = controls.iter().try_for_each(|control| self.wait_for(control, round)).and_then(|()| {
                    let before = stores(&controls);
                    let harvested = self.round(guest, &mut log, &mut replica, &again, round);
                    beside.fetch_add(stores(&controls) - before, Ordering::Relaxed);
                    harvested
                });
                guest.vcpus.iter().try_for_each(|vcpu| vcpu.finish().value().map(drop))?;
                harvested.map(|(seen, again)| (saw.and(seen), again))
            });
            let (saw, _) = played?;
            let (_, bitmap) = self.scan(guest, &mut log)?;
            let _rearmed = log.rearm(&guest.reader, self.range(), &bitmap).or_say("rearm")?;
            replica.copy(self, guest, self.of(&bitmap), true)?;
            let saw = saw.and(replica.compare(self, guest)?);
            expect("what is dirty when nobody stores", self.scan(guest, &mut log)?.0, 0)?;
            log.stop();
            Ok(saw)
        })
    }

    /// Until a vCPU stores in this round.
    fn wait_for(&self, control: &[AtomicU64], round: u64) -> Result<(), String> {
        let start = timer::now();
        while round_of(control[LAST].load(Ordering::Acquire)) != round {
            if timer::now() - start > PATIENCE {
                return Err(format!("the guest does not come to round {round}"));
            }
            cpus::yield_now();
        }
        Ok(())
    }

    /// A harvest, and the pages that it has left to the next. Each other one scans in pieces, and cleans two of three pages that it
    /// finds; of all but the first, one page comes to nothing.
    fn round(
        &self,
        guest: &Guest<'_, '_>,
        log: &mut Log<'_, '_>,
        replica: &mut Replica,
        again: &[u64],
        round: u64,
    ) -> Result<(Saw, Vec<u64>), String> {
        let is_whole = !round.is_multiple_of(2);
        let before = replica.look(self, guest)?;
        fence(Ordering::SeqCst);
        let found = if is_whole { self.scan(guest, log)?.1 } else { self.scan_in_pieces(guest, log)? };
        let is_cleaned = |nth: u64| is_whole || !nth.is_multiple_of(3);
        let cleaned = self.bitmap(self.of(&found).filter(|nth| is_cleaned(*nth)));
        let _rearmed = log.rearm(&guest.reader, self.range(), &cleaned).or_say("rearm")?;
        let failed: Vec<u64> = self.of(&cleaned).take(usize::from(round > 1)).collect();
        replica.copy(self, guest, self.of(&cleaned).filter(|nth| !failed.contains(nth)), true)?;
        log.merge(self.range(), &self.bitmap(failed.iter().copied())).or_say("merge")?;
        let is_right = (0..self.pages).all(|nth| {
            let (held, has) = (before[nth as usize], replica.0[nth as usize]);
            let is_copied = is_set(&cleaned, nth) && !failed.contains(&nth);
            match (is_set(&found, nth), again.contains(&nth)) {
                (true, is_due) => is_due || !is_copied || round_of(has) + 1 >= round,
                (false, is_due) => !is_due && held == has,
            }
        });
        let left = self.of(&found).filter(|nth| !is_cleaned(*nth)).chain(failed.iter().copied()).collect();
        Ok((if is_right { Saw::TheTruth } else { Saw::ThePast }, left))
    }

    /// What is dirty: how many pages, and which.
    pub(crate) fn scan(&self, guest: &Guest<'_, '_>, log: &mut Log<'_, '_>) -> Result<(u64, Vec<u64>), String> {
        let mut bitmap = vec![0; self.pages.div_ceil(64) as usize];
        let count = log.scan(&guest.reader, self.range(), &mut bitmap).or_say("scan")?;
        expect("pages found", self.of(&bitmap).count() as u64, count)?;
        Ok((count, bitmap))
    }

    /// Table by table.
    fn scan_in_pieces(&self, guest: &Guest<'_, '_>, log: &mut Log<'_, '_>) -> Result<Vec<u64>, String> {
        let (mut found, mut rest) = (self.bitmap([]), Some(self.range()));
        while let Some(left) = rest {
            let nth = |ipa: Ipa| (ipa.raw() - self.base()) / PAGE_BYTES;
            let run = |run: IpaRange| (nth(run.start())..=nth(run.last())).for_each(|nth| set(&mut found, nth));
            let next = log.scan_runs(&guest.reader, left, 0, run).or_say("scan")?.next;
            rest = next.and_then(|next| IpaRange::inclusive(next, left.last()));
        }
        Ok(found)
    }

    fn bitmap(&self, pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut bitmap = vec![0; self.pages.div_ceil(64) as usize];
        pages.into_iter().for_each(|nth| set(&mut bitmap, nth));
        bitmap
    }

    /// The pages of a bitmap.
    pub(crate) fn of(&self, bitmap: &[u64]) -> impl Iterator<Item = u64> {
        (0..self.pages).filter(|&nth| is_set(bitmap, nth))
    }
}

/// What the harvester has of each page: its first doubleword, which is what the guest stores to.
pub(crate) struct Replica(Vec<u64>);

impl Replica {
    /// Takes these pages; `is_clean` if a rearm has cleaned them, and no store may pass unseen from here on.
    pub(crate) fn copy(
        &mut self,
        plan: &Plan,
        guest: &Guest<'_, '_>,
        pages: impl Iterator<Item = u64>,
        is_clean: bool,
    ) -> Result<(), String> {
        for nth in pages {
            if is_clean {
                trace::mark(Mark::Copied { ipa: plan.page(nth) });
            }
            self.0[nth as usize] = content(plan, guest, nth)?;
        }
        Ok(())
    }

    /// What all pages hold.
    fn look(&self, plan: &Plan, guest: &Guest<'_, '_>) -> Result<Vec<u64>, String> {
        (0..plan.pages).map(|nth| content(plan, guest, nth)).collect()
    }

    /// Whether it is what the guest has.
    pub(crate) fn compare(&self, plan: &Plan, guest: &Guest<'_, '_>) -> Result<Saw, String> {
        Ok(if self.look(plan, guest)? == self.0 { Saw::TheTruth } else { Saw::ThePast })
    }
}

/// Where nothing has come yet, there is nothing to be seen by the guest either.
fn content(plan: &Plan, guest: &Guest<'_, '_>, nth: u64) -> Result<u64, String> {
    let frame = frame(plan, guest, nth)?;
    Ok(frame.map_or(0, |frame| guest.words(frame)[0].load(Ordering::Relaxed)))
}

/// Where a page is.
pub(crate) fn frame(plan: &Plan, guest: &Guest<'_, '_>, nth: u64) -> Result<Option<Pa>, String> {
    let view = guest.stage2.view(&guest.reader, Ipa::new(plan.page(nth))).or_say("view")?;
    Ok(view.map(|view| view.pa()))
}

/// How many all vCPUs have made.
fn stores(controls: &[&[AtomicU64]]) -> u64 {
    controls.iter().map(|control| control[LAST].load(Ordering::Relaxed) >> 32).sum()
}

fn round_of(value: u64) -> u64 {
    value & u64::from(u32::MAX)
}

fn is_set(bitmap: &[u64], nth: u64) -> bool {
    bitmap[(nth / 64) as usize] >> (nth % 64) & 1 == 1
}

pub(crate) fn set(bitmap: &mut [u64], nth: u64) {
    bitmap[(nth / 64) as usize] |= 1 << (nth % 64);
}
