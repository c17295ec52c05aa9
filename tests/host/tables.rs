//! Looking behind the library, at table memory itself: where the tables of a guest are, what all pages hold, and whether
//! pages that went back did so once.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use stage2::addr::{Ipa, Level, Pa};
use stage2::arch::Arch;
use stage2::geometry::Granule;
use stage2::memory::TableMemory;
use stage2::model::{Event, ModelArch, ModelMemory};
use stage2::quiescence::Reader;
use stage2::stage2::Stage2;

use crate::support::Machine;

const ADDRESS: u64 = 0xffff_ffff_f000;

/// The first page of [`ModelMemory`].
pub(crate) fn page_at<G: Granule>(index: usize) -> Pa {
    Pa::new((16 + index as u64) * G::PAGE_SIZE)
}

/// The word at `index` of a page.
pub(crate) fn read<M: TableMemory>(memory: &M, table: Pa, index: usize) -> u64 {
    // SAFETY: looked at only.
    unsafe { memory.table(table) }.expect("a page of the memory").entries[index].load(Ordering::Relaxed)
}

/// Where the guest's root is, as the machine, which is `told`, was told.
fn root<A: Arch, M: TableMemory>(guest: &Stage2<'_, A, M>, told: &ModelArch, reader: &Reader<'_>) -> Pa {
    told.take_events();
    drop(guest.load(reader).unwrap());
    let loaded = |event| if let Event::Load(registers) = event { Some(registers.vttbr) } else { None };
    let vttbr = told.take_events().into_iter().find_map(loaded);
    Pa::new(vttbr.expect("it was loaded") & 0xffff_ffff_fffe)
}

/// The tables on the way to `ipa`, from the root's on, found as the hardware would.
pub(crate) fn path<M: TableMemory>(
    guest: &Stage2<'_, ModelArch, M>,
    reader: &Reader<'_>,
    ipa: Ipa,
) -> Vec<(Level, Pa)> {
    path_as_told(guest, guest.mmu().arch(), reader, ipa)
}

/// The same on a machine that is made of the one that is `told`.
pub(crate) fn path_as_told<A: Arch, M: TableMemory>(
    guest: &Stage2<'_, A, M>,
    told: &ModelArch,
    reader: &Reader<'_>,
    ipa: Ipa,
) -> Vec<(Level, Pa)> {
    let geometry = guest.geometry();
    let mut at = root(guest, told, reader).offset(geometry.root_index(ipa) as u64 * M::Granule::PAGE_SIZE);
    let mut level = geometry.start_level();
    let mut path = vec![(level, at)];
    while let Some(below) = level.child() {
        let entry = read(guest.mmu().memory(), at, M::Granule::index(ipa, level));
        if entry & 0b11 != 0b11 {
            break;
        }
        (at, level) = (Pa::new(entry & ADDRESS), below);
        path.push((level, at));
    }
    path
}

/// What some pages held at one time.
pub(crate) struct Contents(Vec<(Pa, Vec<u64>)>);

impl Contents {
    pub(crate) fn of<G: Granule>(memory: &ModelMemory<G>, pages: impl Iterator<Item = Pa>) -> Self {
        let words = |page| (0..G::ENTRIES).map(|index| read(memory, page, index)).collect();
        Self(pages.map(|page| (page, words(page))).collect())
    }

    pub(crate) fn is_unchanged<G: Granule>(&self, memory: &ModelMemory<G>) -> bool {
        self.0.iter().all(|(page, then)| {
            // SAFETY: looked at only.
            let now = unsafe { memory.table(*page) }.expect("a page of the memory").entries;
            now.iter().zip(then).all(|(now, then)| now.load(Ordering::Relaxed) == *then)
        })
    }
}

/// Allocates until there is nothing left, and gives it all back: each of the memory's `pages` is there once but for those that
/// are `lost`.
pub(crate) fn every_page_is_there_once<A: Arch, G: Granule>(mmu: &Machine<A, G>, pages: usize, lost: usize) {
    let memory = mmu.memory();
    assert_eq!(memory.live(), lost, "tables leaked");
    let mut seen = BTreeSet::new();
    while let Ok(page) = memory.alloc() {
        assert!(seen.insert(page), "{page} was freed twice");
    }
    assert_eq!(seen.len(), pages - lost);
    for page in seen {
        // SAFETY: allocated above, and nobody was told.
        unsafe { memory.free(page, 0) };
    }
}
