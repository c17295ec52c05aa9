//! The guest's side of the machine for loom: a CPU that walks the tables, keeps what it found in a TLB, and stores.
//!
//! Table walk, TLB fill and access are one step, as a `TLBI; DSB` sees them: it is complete when no access goes through an
//! old entry any more. So they and the invalidations take turns by a lock. The CPUs that run guests share one TLB, with
//! stage-2 entries for pages and for tables (what stage 1 combines them to is not modelled); caches there are none.
//!
//! Where the guest's VTCR_EL2 asks for it the hardware sets access flags and, with DBM, dirty state, in one atomic step of the walk; an entry
//! without the access flag is in no TLB.
//!
//! An entry stays until it is invalidated, and is used as long as it is there: the worst that a TLB may do. What it must never
//! come to is asserted at every access: two trees under one VMID; a walk in a table that was freed; two tables, or two
//! frames, for one address, one cached and one in memory (break-before-make).

#![allow(dead_code, reason = "each test program uses a part")]

use std::sync::OnceLock;

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Mutex, MutexGuard};
use loom::thread::ThreadId;
use stage2::arch::{Arch, Dsb, SavedContext, Stage1Access, Stage2Registers, Tlbi};
use stage2::fault::{Backing, Outcome, Syndrome};
use stage2::memory::TableMemory;
use stage2::model::POISON;
use stage2::stage2::Loaded;
use stage2::{Ipa, Pa, Reader};

use crate::scene::{Machine, Memory, PAGE, frame};

const VALID: u64 = 1;
const WRITE: u64 = 1 << 7;
const AF: u64 = 1 << 10;
const DBM: u64 = 1 << 51;
const HA: u64 = 1 << 21;
const HD: u64 = 1 << 22;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const VMID_SHIFT: u32 = 48;

/// Frames that have content.
const FRAMES: u64 = 4;

/// Why an access of the guest did not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Translation,
    AccessFlag,
    Permission,
}

/// The CPU that runs guests, and the memory.
pub(crate) struct Hardware {
    mmu: Mutex<State>,
    frames: Vec<AtomicU64>,
    /// Where the CPUs look unasked.
    speculation: OnceLock<&'static Memory>,
}

#[derive(Default)]
struct State {
    tlb: Vec<Entry>,
    /// What must never be and was: said once the lock is given back, which a panic would poison.
    violation: Option<&'static str>,
    /// The registers that each hypervisor CPU has in use.
    registers: Vec<(ThreadId, Stage2Registers)>,
}

#[derive(Clone, Copy)]
struct Entry {
    vmid: u64,
    root: u64,
    what: Translation,
    /// The descriptor.
    to: u64,
}

/// What an entry translates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Translation {
    /// A page, by its number.
    Page(u64),
    /// The two pages of a leaf table, by its number.
    Table(u64),
}

impl State {
    fn registers(&mut self) -> &mut Stage2Registers {
        let this = loom::thread::current().id();
        let at = self.registers.iter().position(|(thread, _)| *thread == this).unwrap_or_else(|| {
            self.registers.push((this, Stage2Registers::default()));
            self.registers.len() - 1
        });
        &mut self.registers[at].1
    }

    /// What this CPU's registers translate `page` to: a walk of two levels, each through the TLB.
    fn translate(&mut self, memory: &Memory, page: u64) -> Option<u64> {
        let root = self.registers().vttbr & ADDRESS;
        let table = self.step(Translation::Table(page / 2), || read(memory, root, page / 2))? & ADDRESS;
        self.step(Translation::Page(page), || read(memory, table, page % 2))
    }

    /// One level: the cached descriptor if there is one, else the valid one in memory, which is then cached.
    fn step(&mut self, what: Translation, read: impl FnOnce() -> Result<Option<u64>, &'static str>) -> Option<u64> {
        let vttbr = self.registers().vttbr;
        let (vmid, root) = (vttbr >> VMID_SHIFT, vttbr & ADDRESS);
        let in_memory = read().unwrap_or_else(|violation| {
            self.violation = Some(violation);
            None
        });
        let cached = self.tlb.iter().find(|entry| entry.vmid == vmid && entry.what == what);
        if let Some(&Entry { root: of, to, .. }) = cached {
            if of != root {
                self.violation = Some("a VMID stands for two trees");
            }
            if in_memory.is_some_and(|in_memory| (to ^ in_memory) & ADDRESS != 0) {
                self.violation = Some("an address has two translations");
            }
            return Some(to);
        }
        let to = in_memory?;
        if to & AF != 0 || matches!(what, Translation::Table(_)) {
            self.tlb.push(Entry { vmid, root, what, to });
        }
        Some(to)
    }

    /// An access to `page`: the leaf that it passes through.
    fn access(&mut self, memory: &Memory, page: u64, write: bool) -> Result<u64, Fault> {
        let vtcr = self.registers().vtcr;
        loop {
            let leaf = self.translate(memory, page).ok_or(Fault::Translation)?;
            let mut updated = leaf;
            if leaf & AF == 0 {
                if vtcr & HA == 0 {
                    return Err(Fault::AccessFlag);
                }
                updated |= AF;
            }
            if write && leaf & WRITE == 0 {
                if vtcr & HD == 0 || leaf & DBM == 0 {
                    return Err(Fault::Permission);
                }
                updated |= WRITE;
            }
            if updated == leaf || self.update(memory, page, leaf, updated) {
                return Ok(leaf);
            }
        }
    }

    /// The hardware's own store: if the entry still says what `leaf` does, but for what it updates. If not, the walk starts over.
    fn update(&mut self, memory: &Memory, page: u64, leaf: u64, updated: u64) -> bool {
        let root = self.registers().vttbr & ADDRESS;
        let table = self.step(Translation::Table(page / 2), || read(memory, root, page / 2)).unwrap_or(0) & ADDRESS;
        let vmid = self.registers().vttbr >> VMID_SHIFT;
        self.tlb.retain(|entry| (entry.vmid, entry.what) != (vmid, Translation::Page(page)));
        // SAFETY: the hardware's stores are atomic, and of a descriptor alone.
        let Some(tables) = (unsafe { memory.table(Pa::new(table)) }) else { return false };
        let word = &tables.entries[(page % 2) as usize];
        let mut old = word.load(Ordering::Acquire);
        while (old ^ leaf) & !(AF | WRITE) == 0 {
            match word.compare_exchange(old, old | updated, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.tlb.push(Entry { vmid, root, what: Translation::Page(page), to: old | updated });
                    return true;
                }
                Err(now) => old = now,
            }
        }
        false
    }
}

/// The valid descriptor that a table holds in memory.
fn read(memory: &Memory, table: u64, index: u64) -> Result<Option<u64>, &'static str> {
    // SAFETY: the walk stores nothing.
    let entries = unsafe { memory.table(Pa::new(table)) }.ok_or("a walk leaves table memory")?.entries;
    // Acquire: the next level's load depends on this one by its address.
    match entries[index as usize].load(Ordering::Acquire) {
        POISON => Err("a walk is in a table that was freed"),
        entry => Ok((entry & VALID != 0).then_some(entry)),
    }
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            mmu: Mutex::new(State::default()),
            frames: (0..FRAMES).map(|_| AtomicU64::new(0)).collect(),
            speculation: OnceLock::new(),
        }
    }
}

impl Hardware {
    /// The MMU's state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.mmu.lock().expect("nothing panics while it is held")
    }

    /// The content of a frame.
    pub(crate) fn content(&self, frame: Pa) -> &AtomicU64 {
        &self.frames[frame_number(frame)]
    }

    /// Runs `step` with the MMU's state, and fails if that has come to what must never be.
    fn turn<T>(&self, step: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = step(&mut state);
        let violation = state.violation.take();
        drop(state);
        assert_eq!(violation, None);
        result
    }

    /// The guest that this CPU has loaded stores `value` to page `ipa`.
    pub(crate) fn store(&self, memory: &Memory, ipa: Ipa, value: u64) -> Result<(), Fault> {
        self.turn(|state| {
            let leaf = state.access(memory, ipa.raw() / PAGE, true)?;
            match self.frames.get(frame_number(Pa::new(leaf & ADDRESS))) {
                Some(content) => content.store(value, Ordering::Relaxed),
                None => state.violation = Some("a page is mapped to no frame"),
            }
            Ok(())
        })
    }

    /// It loads from page `ipa`, of which only the translation matters.
    pub(crate) fn load_from(&self, memory: &Memory, ipa: Ipa) -> Result<(), Fault> {
        self.turn(|state| state.access(memory, ipa.raw() / PAGE, false).map(drop))
    }

    /// From now on a CPU that invalidates under a VMID looks at page 1 of its tree unasked, as it may while it has
    /// the two in its registers.
    pub(crate) fn speculates(&self, memory: &'static Memory) {
        assert!(self.speculation.set(memory).is_ok(), "once");
    }

    /// What this CPU has loaded.
    pub(crate) fn registers(&self) -> Stage2Registers {
        *self.state().registers()
    }

    /// Whether some TLB entry leads to `frame`.
    pub(crate) fn reaches(&self, frame: Pa) -> bool {
        self.state().tlb.iter().any(|entry| entry.to & ADDRESS == frame.raw())
    }

    /// Whether some TLB entry lets a store to `frame` pass.
    pub(crate) fn writes(&self, frame: Pa) -> bool {
        self.state().tlb.iter().any(|entry| entry.to & ADDRESS == frame.raw() && entry.to & WRITE != 0)
    }
}

fn frame_number(frame: Pa) -> usize {
    (frame.raw().wrapping_sub(self::frame(0).raw()) / PAGE) as usize
}

impl Arch for Hardware {
    fn dsb(&self, _barrier: Dsb) {
        fence(Ordering::SeqCst);
    }

    fn isb(&self) {}

    fn tlbi(&self, operation: Tlbi) {
        let mut state = self.state();
        let current = state.registers().vttbr >> VMID_SHIFT;
        state.tlb.retain(|entry| match operation {
            // With a hint of the leaf's level, for leaves alone.
            Tlbi::Ipa { ipa, ttl, .. } => {
                let page = ipa.raw() / PAGE;
                let covered = match entry.what {
                    Translation::Page(of) => of == page,
                    Translation::Table(of) => of == page / 2 && ttl == 0,
                };
                entry.vmid != current || !covered
            }
            Tlbi::IpaRange { .. } => unreachable!("the features have no range operations"),
            Tlbi::Vmalle1 { .. } => true,
            Tlbi::Vmalls12e1 { .. } => entry.vmid != current,
            Tlbi::Alle1 { .. } => false,
        });
    }

    fn enter_vmid(&self, registers: Stage2Registers) -> SavedContext {
        self.turn(|state| {
            let old = core::mem::replace(state.registers(), registers);
            if let Some(memory) = self.speculation.get() {
                state.translate(memory, 1);
            }
            SavedContext { registers: old, ..SavedContext::default() }
        })
    }

    fn leave_vmid(&self, saved: SavedContext) {
        self.load_registers(saved.registers);
    }

    fn in_guest_regime<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }

    fn is_loaded(&self, registers: Stage2Registers) -> bool {
        self.registers() == registers
    }

    fn load(&self, registers: Stage2Registers) {
        self.load_registers(registers);
    }

    fn unload(&self) {
        self.load_registers(Stage2Registers::default());
    }

    /// The guest's stage 1 is off.
    fn translate_stage1(&self, address: u64, _access: Stage1Access) -> u64 {
        address & ADDRESS
    }

    fn clean_invalidate_to_poc(&self, _start: Pa, _bytes: u64) {}

    fn synchronize_instructions(&self, _start: Pa, _bytes: u64, _clean: bool, _invalidate: bool) {}
}

impl Hardware {
    fn load_registers(&self, registers: Stage2Registers) {
        *self.state().registers() = registers;
    }
}

/// What the CPU reports of a store to `ipa` that ended in `fault`.
pub(crate) fn syndrome(ipa: Ipa, fault: Fault) -> Syndrome {
    const DATA_ABORT: u64 = 0x24 << 26;
    const WRITE_NOT_READ: u64 = 1 << 6;
    let code = match fault {
        Fault::Translation => 0b00_0111,
        Fault::AccessFlag => 0b00_1011,
        Fault::Permission => 0b00_1111,
    };
    Syndrome { esr: DATA_ABORT | WRITE_NOT_READ | code, far: ipa.raw(), hpfar: ipa.raw() >> 12 << 4 }
}

/// The guest stores `value` to `ipa`, taking faults as they come; `false` if it may not, or is told to retry too often.
pub(crate) fn guest_stores(
    machine: &'static Machine<Hardware>,
    loaded: &Loaded<'_, 'static, Hardware, Memory>,
    reader: &Reader<'_>,
    backing: &impl Backing,
    ipa: Ipa,
    value: u64,
) -> bool {
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        let Err(fault) = machine.arch().store(machine.memory(), ipa, value) else { return true };
        match loaded.resolve(reader, backing, syndrome(ipa, fault)).expect("the tree is sound") {
            Outcome::Resumed => {}
            Outcome::Retry => loom::thread::yield_now(),
            Outcome::Reflect(_) => return false,
            Outcome::Mmio(access) => panic!("memory is not {access:?}"),
        }
    }
    false
}
