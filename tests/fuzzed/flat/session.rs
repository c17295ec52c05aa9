//! One guest's life: the operations of its CPUs and its harvester, each checked against the map.

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::aging::{Flush, MadeOld};
use stage2::cpu::CpuIndex;
use stage2::descriptor::Attributes;
use stage2::dirty::{Content, DirtyLog, Initial, RearmError, ScanError, StartError};
use stage2::error::ArgumentError;
use stage2::geometry::Granule;
use stage2::model::{ModelMemory, ModelMmu};
use stage2::quiescence::Reader;
use stage2::stage2::{Frozen, Loaded, MapCause, MapError, Stage2};

use super::guest::Frames;
use super::pages::{Page, Pages};
use super::steps::{CPUS, Operation, Step, WINDOW, WINDOWS};

type Memory<G> = ModelMemory<G>;

pub(super) struct Session<'s, 'h, G: Granule> {
    pub(super) guest: &'s Stage2<'h, ModelMmu, Memory<G>>,
    pub(super) model: &'s ModelMmu,
    pub(super) frames: Frames<'s>,
    pub(super) pages: Pages,
    pub(super) readers: Vec<Reader<'h>>,
    pub(super) loaded: Vec<Option<Loaded<'s, 'h, ModelMmu, Memory<G>>>>,
    pub(super) frozen: Option<Frozen<'s, 'h, ModelMmu, Memory<G>>>,
    log: Option<DirtyLog<'s, 'h, ModelMmu, Memory<G>>>,
    windows: [u64; WINDOWS],
    /// Table pages there are.
    tables: usize,
    /// An allocation may have been ordered to fail.
    starves: bool,
}

impl<'s, 'h, G: Granule> Session<'s, 'h, G> {
    pub(super) fn new(guest: &'s Stage2<'h, ModelMmu, Memory<G>>, model: &'s ModelMmu, tables: usize) -> Self {
        let geometry = guest.geometry();
        let half = WINDOW / 2 * G::PAGE_SIZE;
        let table = G::entry_size(Level::L2);
        let root_table = G::entry_size(geometry.start_level()) * G::ENTRIES as u64;
        let size = geometry.ipa_size();
        let logged = IpaRange::new(Ipa::new(0), 4 * table).expect("some");
        Self {
            guest,
            model,
            frames: Frames::new(model, G::PAGE_SIZE),
            pages: Pages::new(logged),
            readers: (0..CPUS).map(|cpu| guest.mmu().reader(CpuIndex(cpu)).expect("a slot for each")).collect(),
            loaded: (0..CPUS).map(|_| None).collect(),
            frozen: None,
            log: None,
            // The start, between two tables, between two root tables, between two tables far up, and the end.
            windows: [
                0,
                3 * table - half,
                root_table.min(size / 2) - half,
                size / 2 + 2 * table - half,
                size - 2 * half,
            ],
            tables,
            starves: false,
        }
    }

    /// Takes steps until there are no more, or this guest is to go; whether another one is to come.
    pub(super) fn run(&mut self, steps: &mut impl Iterator<Item = Step>, done: &mut u64) -> bool {
        for step in steps {
            *done += 1;
            if matches!(step.operation, Operation::Teardown) {
                return true;
            }
            let _seat = self.model.cpu(step.cpu);
            let start = self.windows[step.window] + step.first * G::PAGE_SIZE;
            let range = IpaRange::new(Ipa::new(start), step.count * G::PAGE_SIZE).expect("a page at least");
            self.apply(step.cpu, range, step.operation);
        }
        false
    }

    /// Nothing is left but the root.
    pub(super) fn end(mut self) {
        self.guest.mmu().memory().fail_after(u64::MAX);
        self.starves = false;
        for cpu in 0..CPUS {
            let _seat = self.model.cpu(cpu);
            self.loaded[usize::from(cpu)] = None;
        }
        let _seat = self.model.cpu(0);
        self.thaw(0);
        // The last harvest, if there is a log: with it, the replica is what the guest reads.
        for window in self.all_windows() {
            self.harvest(0, window, u64::MAX);
        }
        self.log = None;
        self.pages.stop_logging();
        self.look_at_all(0);
        self.reclaim_all();
        assert_eq!(self.guest.mmu().memory().live(), self.expected_tables(), "what is empty comes back by itself");
        for window in self.all_windows() {
            self.unmap_with(0, window);
        }
        assert_eq!(self.pages.len(), 0);
        self.reclaim_all();
        assert_eq!(self.guest.mmu().memory().live(), self.guest.geometry().root_tables());
    }

    fn apply(&mut self, cpu: u16, range: IpaRange, operation: Operation) {
        let here = usize::from(cpu);
        let first = range.start().raw();
        match operation {
            Operation::Map(attributes, content) => self.map(cpu, range, attributes, content),
            Operation::Unmap => {
                let unmapped = *self.guest.unmap(&self.readers[here], range).expect("nobody is in the way").peek();
                let removed = self.pages.remove(range);
                assert_eq!(unmapped.leaves as usize, removed.len());
                removed.iter().for_each(|(_, page)| self.model.free_frame(page.pa, G::PAGE_SIZE));
            }
            Operation::UnmapWith => self.unmap_with(cpu, range),
            Operation::Protect(permissions) => {
                self.guest.protect(&self.readers[here], range, permissions).expect("nobody is in the way");
                self.pages.of(range).for_each(|(_, page)| page.permissions = permissions);
            }
            Operation::WriteProtect => {
                self.guest.write_protect(&self.readers[here], range).expect("nobody is in the way");
            }
            Operation::Access(access) => self.access(cpu, first, access),
            Operation::Abort { code, write, execute } => self.abort(cpu, first, code, (write, execute)),
            Operation::Look => {}
            Operation::LookAtAll => self.look_at_all(cpu),
            Operation::StartLogging(initial) => self.start_logging(cpu, initial),
            Operation::StopLogging => {
                self.log = None;
                self.pages.stop_logging();
            }
            Operation::Scan | Operation::Harvest { .. } if self.log.is_none() => {
                self.start_logging(cpu, Initial::Clean);
            }
            Operation::Scan => drop(self.scan(cpu, range)),
            Operation::Harvest { mask } => self.harvest(cpu, range, mask),
            Operation::Fill => self.fill(range),
            Operation::Reclaim { budget } => {
                self.guest.reclaim(&self.readers[here], budget).expect("a reader of this machine");
            }
            Operation::Quiescent => self.readers[here].quiescent(),
            Operation::Run => {
                if let Some(loaded) = &mut self.loaded[here] {
                    loaded.run(&mut self.readers[here], || ()).expect("there are VMIDs");
                }
            }
            Operation::Freeze => {
                if self.frozen.is_none() {
                    self.frozen = self.guest.freeze(&self.readers[here]).ok();
                }
                assert!(self.frozen.is_some() && self.guest.freeze(&self.readers[here]).is_err());
            }
            Operation::Thaw => self.thaw(cpu),
            Operation::Load => assert!(self.load(cpu)),
            Operation::Unload => self.loaded[here] = None,
            Operation::Starve { successes } => {
                self.guest.mmu().memory().fail_after(successes);
                self.starves = true;
            }
            Operation::Feed => {
                self.guest.mmu().memory().fail_after(u64::MAX);
                self.starves = false;
            }
            Operation::FlushMapped => {
                self.guest.flush_mapped(&self.readers[here], range).expect("a range of this guest");
            }
            Operation::MakeOld => self.make_old(cpu, range),
            Operation::Teardown => unreachable!("it ends the session"),
        }
        self.look(cpu, range);
    }

    /// Whether there may be no table for somebody who needs one.
    pub(super) fn is_starved(&self) -> bool {
        // A range takes no more than a path of tables and a leaf table.
        self.starves || self.guest.mmu().memory().live() + 8 > self.tables
    }

    /// The guest is on `cpu` from here on.
    pub(super) fn load(&mut self, cpu: u16) -> bool {
        let here = usize::from(cpu);
        if self.loaded[here].is_none() {
            self.loaded[here] = self.guest.load(&self.readers[here]).ok();
        }
        self.loaded[here].is_some()
    }

    fn thaw(&mut self, cpu: u16) {
        let Some(frozen) = self.frozen.take() else { return };
        self.quiesce_all();
        assert_eq!(frozen.is_settled(), Ok(()), "nothing is under way");
        assert!(frozen.thaw(&self.readers[usize::from(cpu)]).is_ok());
    }

    /// Maps up to the first page that is in the way, or the first table that is not to be had.
    fn map(&mut self, cpu: u16, range: IpaRange, attributes: Attributes, content: Content) {
        let start = range.start().raw();
        let pages = range.bytes() / G::PAGE_SIZE;
        let frames = self.frames.take(pages);
        let new: Vec<u64> = (0..pages)
            .map(|page| {
                let ipa = start + page * G::PAGE_SIZE;
                let value = if content == Content::New { self.frames.value() } else { self.pages.content(ipa) };
                self.model.fill(frames.offset(page * G::PAGE_SIZE), value);
                value
            })
            .collect();
        let obstacle = self.pages.of(range).map(|(ipa, _)| ipa).next();
        let result = self.guest.map(&self.readers[usize::from(cpu)], range, frames, attributes, content);
        let end = match result {
            Ok(()) => {
                assert_eq!(obstacle, None);
                start + range.bytes()
            }
            Err(MapError::Stopped(stopped)) => {
                let at = stopped.at.raw();
                assert_eq!(stopped.done, IpaRange::new(Ipa::new(start), at - start));
                match stopped.cause {
                    MapCause::Exists => assert_eq!(obstacle, Some(at)),
                    MapCause::Retry | MapCause::OutOfTables => {
                        assert!(self.is_starved() || self.frozen.is_some(), "{stopped:?}");
                        assert!(obstacle.is_none_or(|obstacle| at <= obstacle), "{stopped:?}, {obstacle:x?}");
                        assert!(at == start || G::index(stopped.at, Level::L3) == 0, "a table or none of it");
                    }
                    MapCause::Corrupt(_) => panic!("{stopped:?}"),
                }
                at
            }
            Err(error) => panic!("{error:?}"),
        };
        for (ipa, value) in (start..end).step_by(G::PAGE_SIZE as usize).zip(new) {
            let pa = frames.offset(ipa - start);
            let Attributes { permissions, memory, .. } = attributes;
            self.pages.write(ipa, value);
            self.pages.insert(ipa, Page { pa, permissions, memory, dirty: content == Content::New, young: true });
        }
    }

    fn unmap_with(&mut self, cpu: u16, range: IpaRange) {
        let mut frames: Vec<(u64, Pa, bool, bool)> = Vec::new();
        let unmapped = self.guest.unmap_with(&self.readers[usize::from(cpu)], range, |leaf| {
            self.model.free_frame(*leaf.frame.peek(), G::PAGE_SIZE);
            frames.push((leaf.ipa.raw(), *leaf.frame.peek(), leaf.dirty, leaf.accessed));
        });
        assert_eq!(unmapped.expect("nobody is in the way").leaves as usize, frames.len());
        let removed = self.pages.remove(range);
        assert!(frames.into_iter().eq(removed.iter().map(|(ipa, page)| (*ipa, page.pa, page.dirty, page.young))));
    }

    /// What is young is made old.
    fn make_old(&mut self, cpu: u16, range: IpaRange) {
        let reader = &self.readers[usize::from(cpu)];
        let start = range.start().raw();
        let mut bitmap = [0];
        let found = self.guest.scan_accessed(reader, range, &mut bitmap).expect("a range of this guest");
        let made_old = self.guest.make_old(reader, range, u32::MAX, Flush::Now).expect("a range of this guest");
        let mut young = 0;
        for (ipa, page) in self.pages.of(range).filter(|(_, page)| page.young) {
            young |= 1 << ((ipa - start) / G::PAGE_SIZE);
            page.young = false;
        }
        assert_eq!(bitmap, [young], "{range:?}");
        let count = u64::from(young.count_ones());
        assert_eq!((found, made_old), (count, MadeOld { young: count, next: None }), "{range:?}");
    }

    /// The hypervisor stores to the first page, and says so.
    fn fill(&mut self, range: IpaRange) {
        let ipa = range.start().raw();
        let page = IpaRange::new(range.start(), G::PAGE_SIZE).expect("a page");
        if let Some(Page { pa, .. }) = self.pages.get(ipa) {
            let value = self.frames.value();
            self.model.fill(pa, value);
            self.pages.write(ipa, value);
        }
        let noted = self.guest.mark_dirty(page);
        let is_logged = self.pages.is_logged(ipa);
        assert_eq!(noted, if is_logged { Ok(()) } else { Err(ArgumentError::NotLogged(page)) });
        self.pages.note(ipa);
    }

    fn start_logging(&mut self, cpu: u16, initial: Initial) {
        match self.guest.start_logging(&self.readers[usize::from(cpu)], initial) {
            Ok(log) => {
                assert!(self.log.is_none());
                self.log = Some(log);
                let worked_on = self.all_pages();
                self.pages.start_logging((initial == Initial::Dirty).then(|| worked_on.into_iter()));
            }
            Err(error) => assert_eq!((error, self.log.is_some()), (StartError::Started, true)),
        }
    }

    /// The pages of the range that a scan reports, a bit each.
    fn scan(&mut self, cpu: u16, range: IpaRange) -> Option<u64> {
        let log = self.log.as_mut()?;
        let mut bitmap = [0];
        let result = log.scan(&self.readers[usize::from(cpu)], range, &mut bitmap);
        if ![range.start(), range.last()].iter().all(|end| self.pages.is_logged(end.raw())) {
            assert_eq!(result, Err(ScanError::Argument(ArgumentError::NotLogged(range))));
            return None;
        }
        let pages = range.bytes() / G::PAGE_SIZE;
        let is_reported = |page: &u64| self.pages.is_reported(range.start().raw() + page * G::PAGE_SIZE);
        let expected = (0..pages).filter(is_reported).fold(0, |bits, page| bits | 1 << page);
        assert_eq!(bitmap[0], expected, "{range:?}");
        assert_eq!(result, Ok(u64::from(bitmap[0].count_ones())));
        Some(bitmap[0])
    }

    /// Scans, and rearms and copies what the mask has of it. If that is all, the replica is what the guest reads.
    fn harvest(&mut self, cpu: u16, range: IpaRange, mask: u64) {
        let found = self.scan(cpu, range);
        let Some(log) = self.log.as_mut() else { return };
        let Some(found) = found else {
            let refused = log.rearm(&self.readers[usize::from(cpu)], range, &[mask]);
            assert!(matches!(refused, Err(RearmError::Argument(ArgumentError::NotLogged(_)))));
            return;
        };
        let bitmap = found & mask;
        let rearmed = log.rearm(&self.readers[usize::from(cpu)], range, &[bitmap]).expect("a range of the log");
        let mut cleaned = 0;
        let page_at = |page: u64| range.start().raw() + page * G::PAGE_SIZE;
        for page in (0..64).filter(|page| bitmap >> page & 1 == 1) {
            cleaned += u64::from(self.pages.rearm(page_at(page)));
            self.model.copied(Ipa::new(page_at(page)));
            self.pages.copy(page_at(page));
        }
        assert_eq!(rearmed.cleaned, cleaned);
        if bitmap == found {
            for page in 0..range.bytes() / G::PAGE_SIZE {
                let ipa = page_at(page);
                assert_eq!(self.pages.copied(ipa), self.pages.content(ipa), "the replica at {ipa:#x}");
            }
        }
    }

    /// The range is what the map says.
    fn look(&self, cpu: u16, range: IpaRange) {
        let reader = &self.readers[usize::from(cpu)];
        for page in 0..range.bytes() / G::PAGE_SIZE {
            let ipa = range.start().raw() + page * G::PAGE_SIZE;
            let found = self.guest.query(reader, Ipa::new(ipa + 8)).expect("an address of this guest").map(|mapping| {
                assert_eq!(mapping.level, Level::L3);
                let (pa, memory) = (Pa::new(mapping.pa.raw() - 8), mapping.memory.expect("a type that was asked for"));
                Page { pa, permissions: mapping.permissions, memory, dirty: mapping.dirty, young: mapping.accessed }
            });
            let expected = self.pages.get(ipa);
            assert_eq!(found, expected, "{ipa:#x}");
            let view = self.guest.view(reader, Ipa::new(ipa)).expect("an address of this guest");
            assert_eq!(view.map(|view| view.pa()), expected.map(|page| page.pa), "{ipa:#x}");
            if let Some(page) = expected {
                assert_eq!(self.model.content(page.pa), self.pages.content(ipa), "{ipa:#x}");
            }
        }
    }

    fn look_at_all(&self, cpu: u16) {
        self.all_windows().into_iter().for_each(|window| self.look(cpu, window));
    }

    fn all_windows(&self) -> [IpaRange; WINDOWS] {
        self.windows.map(|base| IpaRange::new(Ipa::new(base), WINDOW * G::PAGE_SIZE).expect("some"))
    }

    fn all_pages(&self) -> Vec<u64> {
        let window = |base: u64| (0..WINDOW).map(move |page| base + page * G::PAGE_SIZE);
        self.windows.into_iter().flat_map(window).collect()
    }

    fn quiesce_all(&mut self) {
        for (cpu, reader) in (0..).zip(&mut self.readers) {
            let _seat = self.model.cpu(cpu);
            reader.quiescent();
        }
    }

    /// Everybody quiesces and the reclaimer works, until it has nothing left to do.
    fn reclaim_all(&mut self) {
        for _ in 0..20 {
            self.quiesce_all();
            self.guest.reclaim(&self.readers[0], 100).expect("a reader of this machine");
        }
    }

    /// The root, and a table of each level below it wherever there is a page.
    fn expected_tables(&self) -> usize {
        let geometry = self.guest.geometry();
        let below = |level: Level| {
            let base = |ipa| G::table_base(Ipa::new(ipa), level).raw();
            let mut bases: Vec<u64> = self.pages.addresses().map(base).collect();
            bases.dedup();
            bases.len()
        };
        let levels = [Level::L1, Level::L2, Level::L3].into_iter().filter(|level| *level > geometry.start_level());
        geometry.root_tables() + levels.map(below).sum::<usize>()
    }
}
