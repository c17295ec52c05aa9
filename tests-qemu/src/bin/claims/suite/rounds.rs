//! A guest that stores the number of the round to pages of its memory, in a random order and on a CPU of its own, and this CPU that
//! harvests meanwhile and keeps a replica: KVM's dirty_log_test, by its invariants.
//!
//! - A page whose bit is set holds a value of this round or of the last, or was left over from the last on purpose.
//! - A page whose bit is clear held, when the scan began, nothing newer than the last harvest has taken: it is what the replica has.
//!
//! The guest says which round it has come to: once it has come to this one, no store of the one before is under way. In the end,
//! when it stores no more, the replica is what it has. Each store's value is another: the round, and the number of the store above it.

use alloc::{format, string::String, vec, vec::Vec};
use core::{
    hint,
    sync::atomic::{AtomicU64, Ordering, fence},
    time::Duration,
};

use stage2::{
    Ipa, IpaRange, Pa,
    dirty::{DirtyLog, Initial, Tracking},
    geometry::{Features, Granule4K, HardwareUpdate},
};
use stage2_platform::{
    timer,
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

/// The page by which the guest is told the round.
const CONTROL: u64 = RAM;
/// What is in it: the round, what was stored last, and whether to stop.
const ROUND: usize = 0;
const LAST: usize = 1;
const STOP: usize = 2;
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
        Setup::vcpus(1).logged_from(self.ipa_bits, self.base()).tracked(self.tracking)
    }

    /// Maps all of it, and begins a log of it that is clean.
    pub(crate) fn start<'s, 'h>(&self, guest: &Guest<'s, 'h>) -> Result<(Log<'s, 'h>, Replica), String> {
        (0..self.pages).try_for_each(|nth| guest.map(self.page(nth), 0).map(drop))?;
        let log = guest.stage2.start_logging_with(&guest.reader, Initial::Clean, self.tracking).or_say("start")?;
        Ok((log, Replica(vec![0; self.pages as usize])))
    }

    /// Plays all rounds.
    pub(crate) fn play(&self, bench: &Bench<'_, Granule4K>) -> Result<Saw, String> {
        bench.guest(self.setup(), |guest| {
            let control = guest.words(guest.map(CONTROL, 0)?);
            let (mut log, mut replica) = self.start(guest)?;
            let mut again = Vec::new();
            guest.vcpus[0].start(Order::rounds(self.base(), CONTROL, self.pages).resolving_always());
            let mut saw: Result<Saw, String> = Ok(Saw::TheTruth);
            for round in 1..=self.rounds {
                control[ROUND].store(round, Ordering::Relaxed);
                saw = saw.and_then(|saw| {
                    self.wait_for(control, round)?;
                    Ok(saw.and(self.round(guest, &mut log, &mut replica, &mut again, round)?))
                });
            }
            control[STOP].store(1, Ordering::Relaxed);
            guest.vcpus[0].finish().value()?;
            let saw = saw?;
            let (_, bitmap) = self.scan(guest, &mut log)?;
            let _rearmed = log.rearm(&guest.reader, self.range(), &bitmap).or_say("rearm")?;
            replica.copy(self, guest, self.of(&bitmap), true)?;
            let saw = saw.and(replica.compare(self, guest)?);
            expect("what is dirty when nobody stores", self.scan(guest, &mut log)?.0, 0)?;
            log.stop();
            Ok(saw)
        })
    }

    /// Until the guest stores in this round.
    fn wait_for(&self, control: &[AtomicU64], round: u64) -> Result<(), String> {
        let start = timer::now();
        while round_of(control[LAST].load(Ordering::Acquire)) != round {
            if timer::now() - start > PATIENCE {
                return Err(format!("the guest does not come to round {round}"));
            }
            hint::spin_loop();
        }
        Ok(())
    }

    /// A harvest. Each other cleans only two of three pages that it finds; of all but the first, one comes to nothing.
    fn round(
        &self,
        guest: &Guest<'_, '_>,
        log: &mut Log<'_, '_>,
        replica: &mut Replica,
        again: &mut Vec<u64>,
        round: u64,
    ) -> Result<Saw, String> {
        let before = replica.look(self, guest)?;
        fence(Ordering::SeqCst);
        let (_, found) = self.scan(guest, log)?;
        let is_cleaned = |nth: u64| round % 2 == 1 || !nth.is_multiple_of(3);
        let mut cleaned = found.clone();
        (0..self.pages).filter(|nth| !is_cleaned(*nth)).for_each(|nth| clear(&mut cleaned, nth));
        let _rearmed = log.rearm(&guest.reader, self.range(), &cleaned).or_say("rearm")?;
        let failed: Vec<u64> = self.of(&cleaned).take(usize::from(round > 1)).collect();
        let copied = self.of(&cleaned).filter(|nth| !failed.contains(nth));
        replica.copy(self, guest, copied, true)?;
        let mut given_back = vec![0; found.len()];
        failed.iter().for_each(|&nth| set(&mut given_back, nth));
        log.merge(self.range(), &given_back).or_say("merge")?;
        let wrong = (0..self.pages).find(|&nth| {
            let (held, has) = (before[nth as usize], replica.0[nth as usize]);
            let (is_found, is_due) = (is_set(&found, nth), again.contains(&nth));
            let is_copied = is_set(&cleaned, nth) && !failed.contains(&nth);
            match is_found {
                true => !is_due && is_copied && round_of(has) + 1 < round,
                false => is_due || held != has,
            }
        });
        *again = self.of(&found).filter(|nth| !is_cleaned(*nth)).chain(failed).collect();
        Ok(if wrong.is_none() { Saw::TheTruth } else { Saw::ThePast })
    }

    /// What is dirty: how many pages, and which.
    pub(crate) fn scan(&self, guest: &Guest<'_, '_>, log: &mut Log<'_, '_>) -> Result<(u64, Vec<u64>), String> {
        let mut bitmap = vec![0; self.pages.div_ceil(64) as usize];
        let count = log.scan(&guest.reader, self.range(), &mut bitmap).or_say("scan")?;
        expect("pages found", self.of(&bitmap).count() as u64, count)?;
        Ok((count, bitmap))
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

fn content(plan: &Plan, guest: &Guest<'_, '_>, nth: u64) -> Result<u64, String> {
    Ok(guest.words(frame(plan, guest, nth)?)[0].load(Ordering::Relaxed))
}

/// Where a page is.
pub(crate) fn frame(plan: &Plan, guest: &Guest<'_, '_>, nth: u64) -> Result<Pa, String> {
    let view = guest.stage2.view(&guest.reader, Ipa::new(plan.page(nth))).or_say("view")?;
    Ok(view.or_say("a page is not mapped")?.pa())
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

fn clear(bitmap: &mut [u64], nth: u64) {
    bitmap[(nth / 64) as usize] &= !(1 << (nth % 64));
}
