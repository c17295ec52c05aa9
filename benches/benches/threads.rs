//! Two threads on one tree, by the library's own locks and, as the control, by one big lock around every call.
//!
//! Two noisy cores cannot show how something scales. So what is told first is contention: how many operations began while another that
//! needs the same lock was under way. A writer needs its table's lock, a scanner none; with one big lock all need that.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Instant;

use stage2::cpu::CpuIndex;
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, DirtyBitmap, Initial, Word};
use stage2::geometry::{Geometry, GeometryOptions};
use stage2::{Ipa, Pa, Stage2};
use stage2_benches::{PAGES, PAGES_PER_TABLE, address_of, frame_of, ipa_of, machine};

/// Times that each thread goes through its pages.
const ROUNDS: u64 = 200;

/// What the two threads do.
#[derive(Clone, Copy, Debug)]
enum Scene {
    TwoWritersOnTwoTables,
    TwoWritersOnOneTable,
    WriterAndScanner,
}

/// Those who need one lock.
#[derive(Default)]
struct Domain {
    inside: AtomicU32,
    contended: AtomicU64,
}

impl Domain {
    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.inside.fetch_add(1, Ordering::Relaxed) != 0 {
            self.contended.fetch_add(1, Ordering::Relaxed);
        }
        let result = work();
        self.inside.fetch_sub(1, Ordering::Relaxed);
        result
    }
}

/// By what the threads keep out of each other's way.
struct Locking {
    big: Option<Mutex<()>>,
    /// Of each table, if there is no big one.
    tables: [Domain; 2],
    whole: Domain,
}

impl Locking {
    fn new(big: bool) -> Self {
        Self { big: big.then(Mutex::default), tables: Default::default(), whole: Domain::default() }
    }

    fn write<T>(&self, page: u64, work: impl FnOnce() -> T) -> T {
        match &self.big {
            Some(big) => self.whole.within(|| {
                let _held = big.lock().expect("nobody panics");
                work()
            }),
            None => self.tables[(page / PAGES_PER_TABLE) as usize].within(work),
        }
    }

    fn scan<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.big {
            Some(_) => self.write(0, work),
            None => work(),
        }
    }

    fn contended(&self) -> u64 {
        let all = self.tables.iter().chain([&self.whole]);
        all.map(|domain| domain.contended.load(Ordering::Relaxed)).sum()
    }
}

/// What came of a run.
struct Told {
    operations: u64,
    contended: u64,
    nanoseconds: f64,
}

fn main() {
    println!(
        "{:<24} {:<10} {:>12} {:>11} {:>9} {:>9}",
        "two threads", "lock", "operations", "contended", "share", "ns each"
    );
    for scene in [Scene::TwoWritersOnTwoTables, Scene::TwoWritersOnOneTable, Scene::WriterAndScanner] {
        for (name, big) in [("a table's", false), ("one big", true)] {
            let Told { operations, contended, nanoseconds } = run(scene, big);
            let share = 100.0 * contended as f64 / operations as f64;
            let each = nanoseconds / operations as f64;
            println!(
                "{:<24} {name:<10} {operations:>12} {contended:>11} {share:>8.2}% {each:>9.1}",
                format!("{scene:?}")
            );
        }
    }
    let all = machine().statistics();
    println!(
        "walks that had to begin anew: {}, and that gave up optimism: {}",
        all.revalidation_retries, all.coupled_walks
    );
}

fn run(scene: Scene, big: bool) -> Told {
    static LOG: [Word; (PAGES / 64) as usize] = [const { Word::new(0) }; (PAGES / 64) as usize];
    let geometry = Geometry::new(39, &stage2_benches::features(), GeometryOptions::default()).expect("geometry");
    let log = DirtyBitmap { base: Ipa::new(address_of(0)), words: &LOG };
    let tree = Stage2::new(machine(), geometry, Some(log)).expect("tree");
    let locking = Locking::new(big);
    let start = Barrier::new(2);
    let done = AtomicBool::new(false);
    let operations = AtomicU64::new(0);
    let attributes = Attributes::normal(Permissions::RW);
    let write = |cpu: u16, first: u64, stride: u64| {
        let reader = machine().reader(CpuIndex(cpu)).expect("reader");
        start.wait();
        for _ in 0..ROUNDS {
            for page in (first..first + PAGES_PER_TABLE / 2 * stride).step_by(stride as usize) {
                let (ipa, frame) = (ipa_of(page, 1), Pa::new(frame_of(page)));
                locking.write(page, || tree.map(&reader, ipa, frame, attributes, Content::New)).expect("map");
                drop(locking.write(page, || tree.unmap(&reader, ipa)).expect("unmap"));
            }
        }
        operations.fetch_add(ROUNDS * PAGES_PER_TABLE, Ordering::Relaxed);
        done.store(true, Ordering::Release);
    };
    let scan = |cpu: u16| {
        let reader = machine().reader(CpuIndex(cpu)).expect("reader");
        let mut log = tree.start_logging(&reader, Initial::Clean).expect("start");
        let mut bitmap = [0; (PAGES / 64) as usize];
        start.wait();
        let mut scans = 0;
        while !done.load(Ordering::Acquire) {
            locking.scan(|| log.scan(&reader, ipa_of(0, PAGES), &mut bitmap)).expect("scan");
            scans += 1;
        }
        log.stop();
        operations.fetch_add(scans, Ordering::Relaxed);
    };
    let began = Instant::now();
    thread::scope(|scope| {
        // On one table they take every other page each, so that none is in the other's way but by the lock.
        match scene {
            Scene::TwoWritersOnTwoTables => {
                scope.spawn(|| write(1, 0, 1));
                scope.spawn(|| write(2, PAGES_PER_TABLE, 1));
            }
            Scene::TwoWritersOnOneTable => {
                scope.spawn(|| write(1, 0, 2));
                scope.spawn(|| write(2, 1, 2));
            }
            Scene::WriterAndScanner => {
                scope.spawn(|| write(1, 0, 1));
                scope.spawn(|| scan(2));
            }
        }
    });
    let nanoseconds = began.elapsed().as_nanos() as f64;
    let reader = machine().reader(CpuIndex(0)).expect("reader");
    assert!(tree.teardown(&reader).is_ok(), "nobody has it loaded");
    Told { operations: operations.into_inner(), contended: locking.contended(), nanoseconds }
}
