//! What the tests share: machines that live as long as the test program, guests on them, a backing to fault pages in
//! from, and the syndromes of faults.
//!
//! [`Staged`] is the modelled machine with a cue at every instruction: a test has another CPU do something exactly
//! there. Cues are per thread, so a thread stands for a CPU.

use std::cell::RefCell;
use std::sync::mpsc::{Receiver, Sender, channel};

use stage2::addr::{Ipa, IpaRange, Pa};
use stage2::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};
use stage2::cpu::{CpuIndex, CpuSlot};
use stage2::descriptor::{Attributes, Permissions};
use stage2::dirty::{Content, DirtyBitmap, Word};
use stage2::fault::{Backing, Outcome, Page, Region, Syndrome, Unavailable};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule, Granule4K, IdRegisters};
use stage2::memory::TableMemory;
use stage2::mmu::Mmu;
use stage2::model::{Event, ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::{Loaded, Stage2, Unmapped};

use crate::features::RICH;

pub(crate) const PAGE: u64 = 4096;
/// What a leaf table of the 4K granule covers.
pub(crate) const TABLE: u64 = 512 * PAGE;
pub(crate) const RW: Attributes = Attributes::normal(Permissions::RW);

pub(crate) type Machine<A = ModelArch, G = Granule4K> = Mmu<'static, A, ModelMemory<G>>;
pub(crate) type Guest<A = ModelArch, G = Granule4K> = Stage2<'static, A, ModelMemory<G>>;

/// CPUs with every feature the library knows but hardware updates: 48-bit addresses, all granules, 16-bit VMIDs, XNX,
/// FWB, TTL, range TLBI, DIC and IDC.
pub(crate) fn features() -> Features {
    Features::from_id_registers(&RICH)
}

/// The oldest CPUs there are, but for their 48-bit addresses: nothing optional.
pub(crate) fn plain_features() -> Features {
    Features::from_id_registers(&IdRegisters { id_aa64mmfr0_el1: 5, ..IdRegisters::default() })
}

pub(crate) fn cpus(count: usize) -> Box<[CpuSlot]> {
    (0..count).map(|_| CpuSlot::new()).collect()
}

/// A machine of `count` CPUs and `tables` table pages.
pub(crate) fn machine_of<A: Arch, G: Granule>(
    arch: A,
    count: usize,
    tables: usize,
    features: Features,
) -> &'static Machine<A, G> {
    Box::leak(Box::new(Mmu::new(arch, ModelMemory::new(tables), features, Box::leak(cpus(count)))))
}

/// A machine of four CPUs with every feature.
pub(crate) fn machine(tables: usize) -> &'static Machine {
    machine_of(ModelArch::new(), 4, tables, features())
}

/// The same, whose instructions are cues.
pub(crate) fn staged_machine(tables: usize) -> &'static Machine<Staged> {
    machine_of(Staged(ModelArch::new()), 4, tables, features())
}

pub(crate) fn geometry<G: Granule>(ipa_bits: u8) -> Geometry<G> {
    Geometry::new(ipa_bits, &features(), GeometryOptions::default()).unwrap()
}

/// A guest with 40 bits of IPA: three levels, two root tables.
pub(crate) fn guest<A: Arch, G: Granule>(mmu: &'static Machine<A, G>) -> Guest<A, G> {
    Stage2::new(mmu, geometry(40), None).unwrap()
}

/// The same with a side log for `pages` pages from `base` on.
pub(crate) fn logged_guest<A: Arch, M: TableMemory>(
    mmu: &'static Mmu<'static, A, M>,
    base: u64,
    pages: u64,
) -> Stage2<'static, A, M> {
    let words: Box<[Word]> = (0..pages.div_ceil(64)).map(|_| Word::new(0)).collect();
    let log = DirtyBitmap { base: Ipa::new(base), words: Box::leak(words) };
    Stage2::new(mmu, geometry(40), Some(log)).unwrap()
}

pub(crate) fn reader<A: Arch, M: TableMemory>(mmu: &'static Mmu<'static, A, M>, cpu: u16) -> Reader<'static> {
    mmu.reader(CpuIndex(cpu)).unwrap()
}

pub(crate) fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

/// Loads the guest once, so that it has a VMID: before that no TLB holds anything of it, and nothing is invalidated.
pub(crate) fn give_vmid<A: Arch, G: Granule>(guest: &Guest<A, G>, reader: &Reader<'_>) {
    drop(guest.load(reader).unwrap());
}

/// The word at `index` of the table page at `table`.
pub(crate) fn word<G: Granule>(memory: &ModelMemory<G>, table: Pa, index: usize) -> &Word {
    // SAFETY: a modelled guest has no memory to lose; a test that stores a wrong descriptor is about just that.
    &unsafe { memory.table(table) }.unwrap().entries[index]
}

/// Maps `bytes` from `start` on, writable, to the frames of the same address.
pub(crate) fn map<A: Arch, G: Granule>(guest: &Guest<A, G>, reader: &Reader<'_>, start: u64, bytes: u64) {
    guest.map(reader, range(start, bytes), Pa::new(start), RW, Content::New).unwrap();
}

/// Unmaps `bytes` from `start` on, all of it.
pub(crate) fn unmap<A: Arch, G: Granule>(guest: &Guest<A, G>, reader: &Reader<'_>, start: u64, bytes: u64) -> Unmapped {
    *guest.unmap(reader, range(start, bytes)).unwrap().peek()
}

/// Where `ipa` is mapped to.
pub(crate) fn target<A: Arch, M: TableMemory>(
    guest: &Stage2<'static, A, M>,
    reader: &Reader<'_>,
    ipa: u64,
) -> Option<u64> {
    guest.query(reader, Ipa::new(ipa)).unwrap().map(|mapping| mapping.pa.raw())
}

/// Tears the guest down; no table page may be left.
pub(crate) fn tear_down<A: Arch, G: Granule>(guest: Guest<A, G>, reader: &Reader<'_>) {
    let mmu = guest.mmu();
    guest.teardown(reader).map_err(|(_, why)| why).unwrap();
    assert_eq!(mmu.memory().live(), 0, "tables leaked");
}

/// Lets all readers quiesce and the reclaimer work, until it has nothing left to do.
pub(crate) fn reclaim_all<A: Arch, M: TableMemory>(guest: &Stage2<'static, A, M>, reader: &mut Reader<'_>) -> u32 {
    let mut freed = 0;
    for _ in 0..100 {
        reader.quiescent();
        let progress = guest.reclaim(reader, u32::MAX).unwrap();
        freed += progress.freed;
        if progress.hinted == 0 && progress.waiting == 0 {
            return freed;
        }
    }
    panic!("the reclaimer does not come to an end");
}

/// Memory at `frame_of(ipa)`: anywhere, or as the fields say.
pub(crate) struct Memory {
    pub(crate) region: Region,
    pub(crate) page: Result<Page, Unavailable>,
    /// What was asked for: the page and whether to write.
    pub(crate) asked: RefCell<Vec<(Ipa, bool)>>,
    /// What was given back.
    pub(crate) unused: RefCell<Vec<Page>>,
}

impl Memory {
    /// Everything is memory with these attributes, and its one page is at `frame`.
    pub(crate) fn at(frame: u64, attributes: Attributes) -> Self {
        Self {
            region: Region::Memory(attributes),
            page: Ok(Page { frame: Pa::new(frame), content: Content::New }),
            asked: RefCell::default(),
            unused: RefCell::default(),
        }
    }

    pub(crate) fn with_content(mut self, content: Content) -> Self {
        self.page = self.page.map(|page| Page { content, ..page });
        self
    }

    /// There is no page, for this reason.
    pub(crate) fn unavailable(why: Unavailable) -> Self {
        Self { page: Err(why), ..Self::at(0, RW) }
    }

    /// Everything is this.
    pub(crate) fn region(region: Region) -> Self {
        Self { region, ..Self::at(0, RW) }
    }
}

impl Backing for Memory {
    fn region(&self, _ipa: Ipa) -> Region {
        self.region
    }

    fn page(&self, ipa: Ipa, write: bool) -> Result<Page, Unavailable> {
        self.asked.borrow_mut().push((ipa, write));
        self.page
    }

    fn unused(&self, _ipa: Ipa, page: Page) {
        self.unused.borrow_mut().push(page);
    }
}

/// Fault status codes at level 3.
pub(crate) mod code {
    pub(crate) const ADDRESS_SIZE: u64 = 0b00_0000;
    pub(crate) const TRANSLATION: u64 = 0b00_0111;
    pub(crate) const ACCESS_FLAG: u64 = 0b00_1011;
    pub(crate) const PERMISSION: u64 = 0b00_1111;
    pub(crate) const TLB_CONFLICT: u64 = 0b11_0000;
}

pub(crate) const WRITE: u64 = 1 << 6;
pub(crate) const STAGE1_WALK: u64 = 1 << 7;
const DATA_ABORT: u64 = 0x24 << 26;
const INSTRUCTION_ABORT: u64 = 0x20 << 26;

/// A data abort at `ipa`, of an access at the same virtual address; `iss` is the code, [`WRITE`] and so on.
pub(crate) fn data_abort(ipa: u64, iss: u64) -> Syndrome {
    Syndrome { esr: DATA_ABORT | iss, far: ipa, hpfar: ipa >> 12 << 4 }
}

/// An instruction abort at `ipa`.
pub(crate) fn instruction_abort(ipa: u64, iss: u64) -> Syndrome {
    Syndrome { esr: INSTRUCTION_ABORT | iss, far: ipa, hpfar: ipa >> 12 << 4 }
}

/// A translation fault of a load.
pub(crate) fn read_fault(ipa: u64) -> Syndrome {
    data_abort(ipa, code::TRANSLATION)
}

/// A translation fault of a store.
pub(crate) fn write_fault(ipa: u64) -> Syndrome {
    data_abort(ipa, code::TRANSLATION | WRITE)
}

/// A permission fault of a store, on a CPU whose guest maps `ipa` at the same virtual address.
pub(crate) fn store_denied<G: Granule>(mmu: &Machine<ModelArch, G>, ipa: u64) -> Syndrome {
    mmu.arch().map_stage1(ipa, Ipa::new(ipa));
    Syndrome { hpfar: u64::MAX, ..data_abort(ipa, code::PERMISSION | WRITE) }
}

/// The store that `syndrome` is of resolves.
pub(crate) fn resolve<A: Arch, G: Granule>(
    loaded: &Loaded<'_, 'static, A, ModelMemory<G>>,
    reader: &Reader<'_>,
    backing: &impl Backing,
    syndrome: Syndrome,
) -> Outcome {
    loaded.resolve(reader, backing, syndrome).unwrap()
}

/// Only the barriers, invalidations and synchronizations among what the machine was told since the last time.
pub(crate) fn barriers_and_tlbis(arch: &ModelArch) -> Vec<Event> {
    let mut events = arch.take_events();
    events.retain(|event| matches!(event, Event::Dsb(_) | Event::Isb | Event::Tlbi(_)));
    events
}

/// The invalidations among them.
pub(crate) fn tlbis(arch: &ModelArch) -> Vec<Tlbi> {
    let only = |event: &Event| if let Event::Tlbi(tlbi) = event { Some(*tlbi) } else { None };
    arch.take_events().iter().filter_map(only).collect()
}

/// A thread's side of a conversation with another.
pub(crate) struct Line {
    tell: Sender<()>,
    hear: Receiver<()>,
}

pub(crate) fn line() -> (Line, Line) {
    let ((tell, heard), (told, hear)) = (channel(), channel());
    (Line { tell, hear }, Line { tell: told, hear: heard })
}

impl Line {
    pub(crate) fn say(&self) {
        self.tell.send(()).unwrap();
    }

    pub(crate) fn wait(&self) {
        self.hear.recv().unwrap();
    }
}

type Cue = (fn(&Event) -> bool, Box<dyn FnOnce()>);

thread_local! {
    static CUES: RefCell<Vec<Cue>> = const { RefCell::new(Vec::new()) };
}

/// When this thread's CPU next issues an instruction that `matches`, `action` runs, once, right before it.
pub(crate) fn cue(matches: fn(&Event) -> bool, action: impl FnOnce() + 'static) {
    CUES.with_borrow_mut(|cues| cues.push((matches, Box::new(action))));
}

/// See the [module](self).
pub(crate) struct Staged(pub(crate) ModelArch);

impl Staged {
    fn reach(&self, event: Event) {
        let due = CUES.with_borrow_mut(|cues| {
            let due = cues.iter().position(|(matches, _)| matches(&event))?;
            Some(cues.remove(due).1)
        });
        if let Some(action) = due {
            action();
        }
    }
}

impl Arch for Staged {
    fn dsb(&self, barrier: Dsb) {
        self.reach(Event::Dsb(barrier));
        self.0.dsb(barrier);
    }

    fn isb(&self) {
        self.reach(Event::Isb);
        self.0.isb();
    }

    fn tlbi(&self, operation: Tlbi) {
        self.reach(Event::Tlbi(operation));
        self.0.tlbi(operation);
    }

    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext {
        self.reach(Event::EnterVmid(registers));
        self.0.enter_vmid(registers)
    }

    fn leave_vmid(&self, saved: SavedContext) {
        self.reach(Event::LeaveVmid);
        self.0.leave_vmid(saved);
    }

    fn load(&self, registers: Stage2Registers) {
        self.reach(Event::Load(registers));
        self.0.load(registers);
    }

    fn unload(&self) {
        self.reach(Event::Unload);
        self.0.unload();
    }

    fn translate_stage1(&self, address: u64, access: Stage1Access) -> u64 {
        self.0.translate_stage1(address, access)
    }

    fn clean_invalidate_to_poc(&self, start: Pa, bytes: u64) {
        self.reach(Event::CleanInvalidate(start, bytes));
        self.0.clean_invalidate_to_poc(start, bytes);
    }

    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        self.0.in_guest_regime(f)
    }

    fn is_loaded(&self, registers: Stage2Registers) -> bool {
        self.0.is_loaded(registers)
    }

    fn synchronize_instructions(&self, start: Pa, bytes: u64, clean: bool, invalidate: bool) {
        self.reach(Event::Instructions(start, bytes));
        self.0.synchronize_instructions(start, bytes, clean, invalidate);
    }
}
