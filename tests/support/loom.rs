//! A scene for loom: a machine of a few CPUs and table pages with one guest, made anew for every interleaving.
//!
//! The guest's tree has two levels of two-entry tables: a root, and one leaf table for each pair of its four pages.
//! Loom's threads want what they share to live for ever, so the scene is lent to them as `'static`; [`explore`] takes it
//! back when the test's body has joined them, and then checks what is true after every test: the reclaimer comes to
//! rest, the tree can be torn down, and every table page is back in table memory.
//!
//! A test that fails wants `RUST_BACKTRACE=0`: the stacks of loom's threads have no room for a backtrace.
//!
//! # Longer runs
//! `STAGE2_LOOM_PREEMPTIONS=n` raises the bound of every test that has a lower one. Each more multiplies the time by ten or so;
//! loom's own `LOOM_MAX_DURATION=seconds` ends a test that has found nothing until then.

#![allow(dead_code, reason = "each test program uses a part")]

use core::sync::atomic::{AtomicU64, Ordering};

use loom::model::Builder;
use loom::thread::JoinHandle;
use stage2::arch::Arch;
use stage2::cpu::{CpuIndex, CpuSlot};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, DirtyBitmap, Word};
use stage2::geometry::{Features, Geometry, GranuleTiny, HardwareUpdate, IdRegisters};
use stage2::model::ModelMemory;
use stage2::stage2::MapError;
use stage2::{Ipa, IpaRange, Mmu, Pa, Reader, Stage2};

pub(crate) type Memory = ModelMemory<GranuleTiny>;
pub(crate) type Machine<A> = Mmu<'static, A, Memory>;
pub(crate) type Guest<A> = Stage2<'static, A, Memory>;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 0x1000;
/// More steps than any interleaving takes; loom gives up past it.
const MAX_BRANCHES: usize = 50_000;
/// More calls of the reclaimer than it needs to come to rest.
const MAX_RECLAIMS: usize = 16;

/// What a scene is made of.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    /// Involuntary switches between threads that loom explores, per interleaving.
    pub(crate) preemptions: usize,
    pub(crate) cpus: usize,
    /// Table pages, the roots among them.
    pub(crate) tables: usize,
    pub(crate) guests: usize,
    /// Table pages that a test leaves in use, since it has shown that they must be.
    pub(crate) kept: usize,
    /// What the CPUs update of leaves by themselves.
    pub(crate) updates: HardwareUpdate,
}

impl Setting {
    pub(crate) const fn new(preemptions: usize, cpus: usize) -> Self {
        Self { preemptions, cpus, tables: 3, guests: 1, kept: 0, updates: HardwareUpdate::None }
    }

    /// With CPUs that update access flags and dirty state.
    pub(crate) const fn updating(self) -> Self {
        Self { updates: HardwareUpdate::AccessFlagAndDirty, ..self }
    }
}

/// A machine with its guests.
pub(crate) struct Scene<A: Arch + 'static> {
    pub(crate) mmu: &'static Machine<A>,
    pub(crate) guests: Vec<&'static Guest<A>>,
}

/// Runs `body` on a new scene in every interleaving of its threads within the bound. It must join all of them.
pub(crate) fn explore<A: Arch + Default + Sync + 'static>(
    setting: Setting,
    body: impl Fn(&'static Scene<A>) + Send + Sync + 'static,
) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(setting.preemptions.max(raised_bound()));
    builder.max_branches = MAX_BRANCHES;
    let interleavings = std::sync::Arc::new(AtomicU64::new(0));
    let counted = interleavings.clone();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let cpus: &'static mut [CpuSlot] = Box::leak((0..setting.cpus).map(|_| CpuSlot::new()).collect());
        let cpus: *mut [CpuSlot] = cpus;
        let log = Box::into_raw(Box::new([Word::new(0)]));
        let id_aa64mmfr1_el1 = setting.updates as u64;
        let features = Features::from_id_registers(&IdRegisters { id_aa64mmfr1_el1, ..IdRegisters::default() });
        // SAFETY: just made; freed below, after the last use.
        let slots: &'static [CpuSlot] = unsafe { &*cpus };
        let mmu = Box::into_raw(Box::new(Mmu::new(A::default(), Memory::new(setting.tables), features, slots)));
        // SAFETY: as above.
        let machine: &'static Machine<A> = unsafe { &*mmu };
        // SAFETY: as above.
        let words: &'static [Word; 1] = unsafe { &*log };
        let guests: Vec<*mut Guest<A>> = (0..setting.guests)
            .map(|_| {
                let log = DirtyBitmap { base: Ipa::new(0), words };
                let geometry = Geometry::tiny_with(2, 0, setting.updates).expect("two levels are a geometry");
                Box::into_raw(Box::new(Stage2::new(machine, geometry, Some(log)).expect("there is a root")))
            })
            .collect();
        let scene = Scene {
            mmu: machine,
            // SAFETY: as above.
            guests: guests.iter().map(|&guest| unsafe { &*guest }).collect(),
        };
        let scene = Box::into_raw(Box::new(scene));
        // SAFETY: as above.
        body(unsafe { &*scene });
        // SAFETY: the body has joined its threads, and nothing it lent them outlives it.
        drop(unsafe { Box::from_raw(scene) });
        {
            let mut reader = machine.reader(CpuIndex(0)).expect("the body's readers are gone");
            for guest in guests {
                // SAFETY: likewise.
                let guest = unsafe { Box::from_raw(guest) };
                come_to_rest(&guest, &mut reader);
                assert!(guest.teardown(&reader).is_ok(), "a tree that nobody has loaded can be torn down");
            }
            assert_eq!(machine.memory().live(), setting.kept, "every table page is back");
        }
        // SAFETY: likewise.
        drop(unsafe { Box::from_raw(mmu) });
        // SAFETY: likewise.
        drop(unsafe { Box::from_raw(cpus) });
        // SAFETY: likewise.
        drop(unsafe { Box::from_raw(log) });
    });
    println!("{} interleavings", interleavings.load(Ordering::Relaxed));
}

/// The bound that the environment asks for; 0 if it does not.
fn raised_bound() -> usize {
    std::env::var("STAGE2_LOOM_PREEMPTIONS").map_or(0, |bound| bound.parse().expect("a number of preemptions"))
}

/// Reclaims until nothing is hinted and nothing waits. The reader must be the only one online.
pub(crate) fn come_to_rest<A: Arch>(guest: &Stage2<'_, A, Memory>, reader: &mut Reader<'_>) {
    for _ in 0..MAX_RECLAIMS {
        let progress = guest.reclaim(reader, u32::MAX).expect("the reader is of this machine");
        if progress.hinted == 0 && progress.waiting == 0 {
            return;
        }
        reader.quiescent();
    }
    panic!("the reclaimer does not come to rest");
}

impl<A: Arch + Sync + 'static> Scene<A> {
    /// The first guest, of most tests the only one.
    pub(crate) fn guest(&self) -> &'static Guest<A> {
        self.guests[0]
    }

    /// One guest more, to be torn down by the test.
    pub(crate) fn another_guest(&self) -> Box<Guest<A>> {
        let geometry = Geometry::tiny(2, 0).expect("two levels are a geometry");
        Box::new(Stage2::new(self.mmu, geometry, None).expect("there is a root"))
    }

    /// Runs `work` on a thread that is the CPU `cpu`.
    pub(crate) fn on_cpu<T: Send + 'static>(
        &self,
        cpu: u16,
        work: impl FnOnce(&mut Reader<'static>) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let mmu = self.mmu;
        loom::thread::spawn(move || work(&mut mmu.reader(CpuIndex(cpu)).expect("a CPU runs one thread")))
    }

    /// Runs `work` here, as CPU 0, while there is no other thread.
    pub(crate) fn alone<T>(&self, work: impl FnOnce(&mut Reader<'static>) -> T) -> T {
        work(&mut self.mmu.reader(CpuIndex(0)).expect("the threads are joined"))
    }

    /// Leaves page 0's leaf table linked, empty, and with its idle period over: the next [`Stage2::reclaim`] unlinks it.
    pub(crate) fn empty_table_about_to_be_unlinked(&self) {
        self.alone(|reader| {
            map(self.guest(), reader, 0, 0).expect("nothing is mapped");
            let _frames = self.guest().unmap(reader, pages(0, 1)).expect("it is whole pages");
            let progress = self.guest().reclaim(reader, u32::MAX).expect("the reader is of this machine");
            assert_eq!((progress.hinted, progress.unlinked), (1, 0), "its idle period has begun");
            reader.quiescent();
        });
    }
}

/// The pages from `first` on.
pub(crate) fn pages(first: u64, count: u64) -> IpaRange {
    IpaRange::new(page(first), count * PAGE).expect("not empty")
}

/// The address of page `n`.
pub(crate) fn page(n: u64) -> Ipa {
    Ipa::new(n * PAGE)
}

/// The address of frame `n`: no table's.
pub(crate) fn frame(n: u64) -> Pa {
    Pa::new(0x10_0000 + n * PAGE)
}

pub(crate) const READ_WRITE: Attributes = Attributes::normal(Permissions::RW);

/// Maps page `n` to frame `to`, read-write, with new content.
pub(crate) fn map<A: Arch>(
    guest: &Stage2<'_, A, Memory>,
    reader: &Reader<'_>,
    n: u64,
    to: u64,
) -> Result<(), MapError> {
    guest.map(reader, pages(n, 1), frame(to), READ_WRITE, Content::New)
}

/// The frame page `n` is mapped to.
pub(crate) fn mapped<A: Arch>(guest: &Stage2<'_, A, Memory>, reader: &Reader<'_>, n: u64) -> Option<Pa> {
    guest.query(reader, page(n)).expect("no walk meets a freed table").map(|mapping| mapping.pa)
}
