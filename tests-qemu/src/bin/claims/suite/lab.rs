//! The memory that claims are made in, and a bench: one fresh `Mmu` on it.
//!
//! Claims come one after the other, and each run has a bench of its own: fresh slots, VMIDs and tables, over the same RAM. What
//! is not given back at the end fails the claim.

use alloc::{format, string::String, vec::Vec};
use core::{
    marker::PhantomData,
    mem,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use spin::Mutex;
use stage2::{
    Mmu, Pa, Stage2,
    dirty::Word,
    geometry::{Features, Granule, Granule4K},
    memory::PoolRegion,
};
use stage2_platform::ram::{self, Region};
use stage2_tests_qemu::{
    frames::Frames,
    machine,
    memory::{self, PAGE_BYTES},
    tables::TracedPool,
};

use super::{
    lessened::{Keeps, Less, Lessened},
    verdict::OrSay,
};

/// For tables.
const TABLE_BYTES: u64 = 8 << 20;
/// For the guest's pages of 4K.
const FRAME_BYTES: u64 = 64 << 20;
/// For its pages of other granules.
const LARGE_BYTES: u64 = 2 << 20;
/// The largest page.
const LARGE_PAGE: u64 = 64 << 10;
/// For the side log.
const LOG_BYTES: u64 = 4096;
const SEED: u64 = 1;

/// The services of a bench.
pub(crate) type BenchMmu<'h, G> = Mmu<'h, Lessened, TracedPool<G>>;
/// A tree on a bench.
pub(crate) type BenchStage2<'h, G> = Stage2<'h, Lessened, TracedPool<G>>;

/// What all claims share.
pub(crate) struct Lab {
    /// What all CPUs have.
    pub(crate) features: Features,
    /// Without which barriers every bench does.
    keeps: Option<Keeps>,
    tables: Mutex<Region>,
    frames: Frames,
    large: Large,
    log: &'static [Word],
}

/// Pages of 64 KiB.
struct Large {
    base: u64,
    words: &'static [AtomicU64],
}

impl Lab {
    /// Takes all RAM. Once. Of the library's barriers only those that `keeps` keeps are issued.
    pub(crate) fn new(keeps: Option<Keeps>) -> Option<Self> {
        let features = machine::features();
        let mut free = ram::take_free()?;
        let large = free.take(LARGE_BYTES, LARGE_PAGE)?;
        Some(Self {
            features,
            keeps,
            tables: Mutex::new(free.take(TABLE_BYTES, LARGE_PAGE)?),
            large: Large { base: large.start(), words: memory::words(large) },
            log: memory::log_words(free.take(LOG_BYTES, PAGE_BYTES)?),
            frames: Frames::new(free.take(FRAME_BYTES, PAGE_BYTES)?, SEED)?,
        })
    }

    /// Does `work` on a bench with 4K tables on these CPUs.
    pub(crate) fn bench<T>(
        &self,
        less: Less,
        features: Features,
        work: impl FnOnce(&Bench<'_, Granule4K>) -> Result<T, String>,
    ) -> Result<T, String> {
        self.bench_of(less, features, work)
    }

    /// Does `work` on a bench with tables of the granule `G`.
    pub(crate) fn bench_of<G: Granule, T>(
        &self,
        less: Less,
        features: Features,
        work: impl FnOnce(&Bench<'_, G>) -> Result<T, String>,
    ) -> Result<T, String> {
        let region = self.tables.lock();
        let less = self.keeps.map_or(less, |keeps| less.and_keeps(keeps));
        let arch = Lessened::new(&features, less);
        arch.forget_guests();
        let start = NonNull::new(region.pointer()).or_say("no memory for tables")?;
        let region = PoolRegion { pa: Pa::new(region.start()), start, bytes: region.size() as usize };
        // SAFETY: mapped RAM that is the lab's for good; `tables` stays locked until the pool is gone, so that it has no
        // other pool; no CPU has a tree of an earlier one (`forget_guests`).
        let pool = unsafe { TracedPool::new(Some(region), less.traced()) };
        let slots = machine::slots();
        let mmu = Mmu::new(arch, pool, features, &slots);
        let bench = Bench {
            mmu: &mmu,
            features,
            lab: self,
            taken: Mutex::new(Taken::default()),
            kept: AtomicU64::new(0),
            granule: PhantomData,
        };
        let result = work(&bench);
        bench.taken.into_inner().small.into_iter().for_each(|frame| self.frames.give_back(frame));
        let (live, kept) = (mmu.memory().usage().live, bench.kept.into_inner());
        match result {
            Ok(_) if live != kept => Err(format!("{live} tables are in use at the end, not {kept}")),
            result => result,
        }
    }
}

/// A place to make a claim: the library's services, and page frames.
pub(crate) struct Bench<'h, G> {
    pub(crate) mmu: &'h BenchMmu<'h, G>,
    /// What its CPUs are taken to have.
    pub(crate) features: Features,
    lab: &'h Lab,
    taken: Mutex<Taken>,
    /// Tables of trees that are kept.
    kept: AtomicU64,
    granule: PhantomData<G>,
}

/// The frames in use on a bench.
#[derive(Default)]
struct Taken {
    small: Vec<Pa>,
    large: usize,
}

impl<'h, G: Granule> Bench<'h, G> {
    /// The side log's memory.
    pub(crate) fn log(&self) -> &'h [Word] {
        self.lab.log
    }

    /// Leaves an empty tree as it is until the end of the bench, and with it its VMID.
    pub(crate) fn keep(&self, tree: BenchStage2<'h, G>) {
        self.kept.fetch_add(tree.geometry().root_tables() as u64, Ordering::Relaxed);
        mem::forget(tree);
    }

    /// A frame of one page, each word of it `value`.
    pub(crate) fn frame(&self, value: u64) -> Result<Pa, String> {
        let mut taken = self.taken.lock();
        let frame = if G::PAGE_SIZE == PAGE_BYTES {
            let frame = self.lab.frames.take().or_say("out of frames")?;
            taken.small.push(frame);
            frame
        } else {
            taken.large += 1;
            let offset = taken.large as u64 * LARGE_PAGE;
            Pa::new(self.lab.large.base + LARGE_BYTES.checked_sub(offset).or_say("out of large frames")?)
        };
        drop(taken);
        memory::fill(self.words(frame), value);
        Ok(frame)
    }

    /// The words of a frame.
    pub(crate) fn words(&self, frame: Pa) -> &'static [AtomicU64] {
        if G::PAGE_SIZE == PAGE_BYTES {
            return self.lab.frames.words(frame);
        }
        let first = frame.raw().wrapping_sub(self.lab.large.base) as usize / size_of::<u64>();
        &self.lab.large.words[first..][..G::PAGE_SIZE as usize / size_of::<u64>()]
    }
}
