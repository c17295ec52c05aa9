//! The guest's side of a session: accesses, the faults they take, and the memory they are paged in from.

use std::cell::{Cell, RefCell};

use stage2::addr::{Ipa, Pa};
use stage2::descriptor::{Attributes, Permissions, Xn};
use stage2::dirty::Content;
use stage2::fault::{Backing, FaultError, Outcome, Region, Syndrome, Unavailable};
use stage2::geometry::Granule;
use stage2::model::{Access, ModelMmu, Through};

use super::pages::Page;
use super::session::Session;

/// What is paged in is memory that may be everything.
const PAGED_IN: Attributes = Attributes::normal(Permissions::RWX);
/// Where frames begin: no table is here or above.
const FRAMES: u64 = 0x8000_0000;
/// Faults that one access may take: the tables, a permission, and stricter entries in this CPU's TLB.
const FAULTS: u32 = 24;

/// Frames, each given out once: a translation that outlives its page leads to a frame that was given back.
pub(super) struct Frames<'m> {
    model: &'m ModelMmu,
    next: Cell<u64>,
    bytes: u64,
    /// The page that was asked for and is not back.
    given: RefCell<Option<(Ipa, stage2::fault::Page, u64)>>,
}

impl<'m> Frames<'m> {
    pub(super) fn new(model: &'m ModelMmu, bytes: u64) -> Self {
        Self { model, next: Cell::new(FRAMES), bytes, given: RefCell::new(None) }
    }

    /// So many frames in a row.
    pub(super) fn take(&self, count: u64) -> Pa {
        Pa::new(self.next.replace(self.next.get() + count * self.bytes))
    }

    /// A value that no page holds yet.
    pub(super) fn value(&self) -> u64 {
        self.take(1).raw()
    }
}

impl Backing for Frames<'_> {
    fn region(&self, _ipa: Ipa) -> Region {
        Region::Memory(PAGED_IN)
    }

    fn page(&self, ipa: Ipa, _write: bool) -> Result<stage2::fault::Page, Unavailable> {
        let page = stage2::fault::Page { frame: self.take(1), content: Content::New };
        let value = self.value();
        self.model.fill(page.frame, value);
        assert!(self.given.replace(Some((ipa, page, value))).is_none(), "one page is asked for at a time");
        Ok(page)
    }

    fn unused(&self, ipa: Ipa, page: stage2::fault::Page) {
        let given = self.given.take().map(|(ipa, page, _)| (ipa, page));
        assert_eq!(given, Some((ipa, page)), "what was given comes back");
    }
}

/// Whether a page with these permissions lets it pass.
fn permits(permissions: Permissions, access: Access) -> bool {
    match access {
        Access::Load | Access::Stage1Walk => true,
        Access::Store | Access::Stage1Update => permissions.write,
        Access::Fetch => permissions.execute != Xn::Never,
    }
}

impl<G: Granule> Session<'_, '_, G> {
    /// The guest on `cpu` tries an access of the page at `ipa`, and takes faults until it passes or must not.
    pub(super) fn access(&mut self, cpu: u16, ipa: u64, access: Access) {
        if !self.load(cpu) {
            return;
        }
        for _ in 0..FAULTS {
            let value = self.frames.value();
            let memory = self.guest.mmu().memory();
            let tried = match access {
                Access::Store => self.model.store(memory, ipa, value, Through::Caches),
                Access::Load => self.model.load(memory, ipa, Through::Caches).map(|read| {
                    assert_eq!(read, self.pages.content(ipa), "{ipa:#x}");
                }),
                Access::Fetch => self.model.fetch(memory, ipa, Through::Caches),
                walk => self.model.access(memory, ipa, walk).map(drop),
            };
            let syndrome = match tried {
                Ok(()) => {
                    assert!(self.frozen.is_none(), "a guest that is frozen does not pass");
                    let page = self.pages.get_mut(ipa).expect("what passes is mapped");
                    assert!(permits(page.permissions, access), "{ipa:#x}: {access:?} of {page:?}");
                    page.dirty |= matches!(access, Access::Store | Access::Stage1Update);
                    page.young = true;
                    if access == Access::Store {
                        self.pages.write(ipa, value);
                    }
                    return;
                }
                Err(syndrome) => syndrome,
            };
            match self.resolve(cpu, ipa, syndrome) {
                Some(Outcome::Resumed) => {}
                Some(Outcome::Reflect(_)) => {
                    let page = self.pages.get(ipa).expect("what is missing is paged in");
                    assert!(!permits(page.permissions, access), "{ipa:#x}: {access:?} of {page:?}");
                    return;
                }
                Some(Outcome::Retry) if self.frozen.is_some() || self.is_starved() => return,
                None if self.is_starved() => return,
                outcome => panic!("{ipa:#x}: {access:?} ends in {outcome:?}"),
            }
        }
        panic!("{ipa:#x}: {access:?} faults for ever");
    }

    /// `cpu` reports an abort at `ipa` that may have no cause: the tables decide what becomes of it.
    pub(super) fn abort(&mut self, cpu: u16, ipa: u64, code: u64, (write, execute): (bool, bool)) {
        const DATA: u64 = 0x24 << 26;
        const INSTRUCTION: u64 = 0x20 << 26;
        const ADDRESS_SIZE: u64 = 0b00_0000;
        const EXTERNAL: u64 = 0b01_0000;
        const CONFLICT: u64 = 0b11_0000;
        if !self.load(cpu) {
            return;
        }
        let access = if execute {
            Access::Fetch
        } else if write {
            Access::Store
        } else {
            Access::Load
        };
        let esr = if execute { INSTRUCTION } else { DATA } | code | u64::from(write) << 6;
        let outcome = self.resolve(cpu, ipa, Syndrome { esr, far: ipa, hpfar: ipa >> 12 << 4 });
        let page = self.pages.get_mut(ipa);
        match outcome {
            Some(Outcome::Resumed) => {
                let page = page.expect("what is resumed is mapped");
                assert!(permits(page.permissions, access), "{ipa:#x}: {access:?} of {page:?}");
                page.dirty |= access == Access::Store;
            }
            Some(Outcome::Reflect(_)) => {
                let denied = page.is_some_and(|page| !permits(page.permissions, access));
                assert!(denied || matches!(code, ADDRESS_SIZE | EXTERNAL), "{ipa:#x}: {access:?}, {code:#x}");
            }
            Some(Outcome::Retry) => assert!(self.frozen.is_some() || self.is_starved() || code == CONFLICT),
            None => assert!(self.is_starved()),
            Some(outcome) => panic!("{ipa:#x}: {access:?} ends in {outcome:?}"),
        }
    }

    /// What the library makes of the fault; `None` if it has no tables for it. A page that was paged in is in the map.
    fn resolve(&mut self, cpu: u16, ipa: u64, syndrome: Syndrome) -> Option<Outcome> {
        let (loaded, reader) = (&self.loaded[usize::from(cpu)], &self.readers[usize::from(cpu)]);
        let result = loaded.as_ref().expect("it is loaded").resolve(reader, &self.frames, syndrome);
        if let Some((at, page, value)) = self.frames.given.take() {
            assert_eq!(result, Ok(Outcome::Resumed), "a page was asked for, and neither mapped nor given back");
            assert_eq!(at, Ipa::new(ipa));
            let Attributes { permissions, memory, .. } = PAGED_IN;
            self.pages.write(ipa, value);
            self.pages.insert(ipa, Page { pa: page.frame, permissions, memory, dirty: true, young: true });
        }
        if result == Ok(Outcome::Resumed)
            && let Some(page) = self.pages.get_mut(ipa)
        {
            page.young = true;
        }
        match result {
            Ok(outcome) => Some(outcome),
            Err(FaultError::OutOfTables) => None,
            Err(error) => panic!("{ipa:#x}: {error:?}"),
        }
    }
}
