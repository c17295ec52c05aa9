//! Table memory with cues: at its next allocation, or when a certain page is next looked up, another CPU does something. A
//! walk looks a table up after it has read the entry that leads there, and before it takes the lock.

use std::sync::Mutex;

use stage2::addr::Pa;
use stage2::geometry::Granule4K;
use stage2::memory::{OutOfTables, TableMemory, TablePage};
use stage2::mmu::Mmu;
use stage2::model::{ModelArch, ModelMemory};
use stage2::stage2::Stage2;

use crate::support::{cpus, features, geometry};

/// When it is time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
    /// Before an allocation.
    Allocation,
    /// When this page is looked up.
    Look(Pa),
    /// Before this page is free.
    Free(Pa),
}

type Cue = (At, Box<dyn FnOnce() + Send>);

/// See the [module](self).
pub(crate) struct StagedMemory {
    pub(crate) memory: ModelMemory<Granule4K>,
    cues: Mutex<Vec<Cue>>,
}

pub(crate) type StagedMmu = Mmu<'static, ModelArch, StagedMemory>;
pub(crate) type StagedGuest = Stage2<'static, ModelArch, StagedMemory>;

/// A machine of four CPUs, and a guest on it with 40 bits of IPA.
pub(crate) fn staged_guest(pages: usize) -> (&'static StagedMmu, &'static StagedGuest) {
    let memory = StagedMemory::new(pages);
    let mmu: &'static _ = Box::leak(Box::new(Mmu::new(ModelArch::new(), memory, features(), Box::leak(cpus(4)))));
    let guest = Stage2::new(mmu, geometry(40), None).unwrap();
    (mmu, Box::leak(Box::new(guest)))
}

impl StagedMemory {
    pub(crate) fn new(pages: usize) -> Self {
        Self { memory: ModelMemory::new(pages), cues: Mutex::default() }
    }

    /// Has `action` done `at` the next such time. Of several for one time each has its own turn.
    pub(crate) fn cue(&self, at: At, action: impl FnOnce() + Send + 'static) {
        self.cues.lock().unwrap().push((at, Box::new(action)));
    }

    /// Whether all that was to be done was.
    pub(crate) fn is_over(&self) -> bool {
        self.cues.lock().unwrap().is_empty()
    }

    fn reach(&self, at: At) {
        let due = {
            let mut cues = self.cues.lock().unwrap();
            cues.iter().position(|(when, _)| *when == at).map(|due| cues.remove(due).1)
        };
        if let Some(action) = due {
            action();
        }
    }
}

// SAFETY: it is the model's.
unsafe impl TableMemory for StagedMemory {
    type Granule = Granule4K;

    fn alloc(&self) -> Result<Pa, OutOfTables> {
        self.reach(At::Allocation);
        self.memory.alloc()
    }

    fn alloc_root(&self, order: u32) -> Result<Pa, OutOfTables> {
        self.memory.alloc_root(order)
    }

    unsafe fn free(&self, table: Pa, order: u32) {
        self.reach(At::Free(table));
        // SAFETY: as the caller says.
        unsafe { self.memory.free(table, order) }
    }

    unsafe fn table(&self, table: Pa) -> Option<TablePage<'_>> {
        self.reach(At::Look(table));
        // SAFETY: as the caller says.
        unsafe { self.memory.table(table) }
    }
}
