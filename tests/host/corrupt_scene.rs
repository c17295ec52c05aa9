//! The scene for bad descriptors: two guests with the same pages, and every descriptor that is wrong somewhere on the way to one
//! of them.

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::dirty::{DirtyBitmap, Word};
use stage2::geometry::{Features, Geometry, GeometryOptions, Granule, IdRegisters};
use stage2::model::ModelArch;
use stage2::quiescence::Reader;
use stage2::stage2::Stage2;

use crate::support::*;
use crate::tables::*;

pub(crate) const PAGES: usize = 24;
const PA_BITS: u32 = 44;
/// S2AP\[1\], in leaves: a scan looks at what is dirty.
const DIRTY: u64 = 1 << 7;

/// CPUs with 44 bits of physical address and without DIC and IDC: to make pages executable is to look at their frames, too.
fn narrow() -> Features {
    features().meet(Features::from_id_registers(&IdRegisters {
        id_aa64mmfr0_el1: 1 << 20 | 4,
        id_aa64mmfr1_el1: 1 << 28 | 2 << 4,
        id_aa64mmfr2_el1: 1 << 48 | 1 << 40,
        ctr_el0: 0x8444_c004,
        ..IdRegisters::default()
    }))
}

/// Two guests with the same pages, one of them with a log.
pub(crate) struct Scene<G: Granule> {
    pub(crate) mmu: &'static Machine<ModelArch, G>,
    pub(crate) reader: Reader<'static>,
    pub(crate) guest: Guest<ModelArch, G>,
    pub(crate) other: Guest<ModelArch, G>,
    /// The page whose way the bad descriptor is on; the fourth of its table.
    pub(crate) page: Ipa,
    /// The tables there, from the root on, and of a page for which no table but the root is the same.
    pub(crate) path: Vec<(Level, Pa)>,
    pub(crate) elsewhere: Vec<(Level, Pa)>,
    /// The other guest's on the way to the same page.
    pub(crate) others: Vec<Pa>,
    /// All that the other guest has there, and a page that nobody has.
    pub(crate) foreign: Contents,
}

impl<G: Granule> Scene<G> {
    pub(crate) fn new(ipa_bits: u8) -> Self {
        let mmu = machine_of(ModelArch::new(), 2, PAGES, narrow());
        let geometry = Geometry::<G>::new(ipa_bits, &narrow(), GeometryOptions::default()).unwrap();
        let reader = reader(mmu, 0);
        let ipa = |indices: [u64; 4]| {
            let levels = [Level::L0, Level::L1, Level::L2, Level::L3].into_iter().zip(indices);
            let used = levels.filter(|(level, _)| *level >= geometry.start_level());
            Ipa::new(used.map(|(level, index)| index << G::shift(level)).sum())
        };
        let (page, elsewhere) = (ipa([1, 5, 7, 3]), ipa([2, 9, 11, 4]));
        let table = G::table_base(page, Level::L3);
        let words: Box<[Word]> = (0..2 * G::ENTRIES / 64).map(|_| Word::new(0)).collect();
        let log = DirtyBitmap { base: Ipa::new(table.raw() - Self::table_bytes()), words: Box::leak(words) };
        let guest: Guest<_, G> = Stage2::new(mmu, geometry, Some(log)).unwrap();
        let other: Guest<_, G> = Stage2::new(mmu, geometry, None).unwrap();
        for guest in [&guest, &other] {
            map(guest, &reader, table.raw() - 2 * G::PAGE_SIZE, 10 * G::PAGE_SIZE);
            map(guest, &reader, elsewhere.raw(), 2 * G::PAGE_SIZE);
        }
        let path_of = |guest, ipa| path(guest, &reader, ipa);
        let (path, elsewhere) = (path_of(&guest, page), path_of(&guest, elsewhere));
        let tables_of = |guest, ipa| path_of(guest, ipa).into_iter().map(|(_, table)| table);
        let others: Vec<Pa> = tables_of(&other, page).collect();
        let before = tables_of(&other, Ipa::new(table.raw() - 1)).next_back();
        let foreign = others.iter().copied().chain(before).chain([page_at::<G>(PAGES - 1)]);
        let foreign = Contents::of(mmu.memory(), foreign);
        Self { mmu, guest, other, page, path, elsewhere, others, foreign, reader }
    }

    pub(crate) fn levels(ipa_bits: u8) -> Vec<Level> {
        Self::new(ipa_bits).path.iter().map(|(level, _)| *level).collect()
    }

    /// As it was in the beginning.
    pub(crate) fn restore(&self) {
        let part = self.surroundings();
        unmap(&self.guest, &self.reader, part.start().raw(), part.bytes());
        map(&self.guest, &self.reader, part.start().raw(), part.bytes());
        self.mmu.arch().take_events();
    }

    pub(crate) fn table_bytes() -> u64 {
        G::entry_size(Level::L3) * G::ENTRIES as u64
    }

    pub(crate) fn table(&self) -> Ipa {
        G::table_base(self.page, Level::L3)
    }

    /// Two pages of the table before, and the eight that are mapped in this one.
    pub(crate) fn surroundings(&self) -> IpaRange {
        range(self.table().raw() - 2 * G::PAGE_SIZE, 10 * G::PAGE_SIZE)
    }

    pub(crate) fn logged(&self) -> IpaRange {
        range(self.table().raw() - Self::table_bytes(), 2 * Self::table_bytes())
    }

    pub(crate) fn table_at(path: &[(Level, Pa)], level: Level) -> Pa {
        path.iter().find(|(at, _)| *at == level).expect("a level of the tree").1
    }

    pub(crate) fn entry(&self, level: Level) -> &'static stage2::dirty::Word {
        word(self.mmu.memory(), Self::table_at(&self.path, level), G::index(self.page, level))
    }

    /// How many tables hang below the entry of `level`.
    pub(crate) fn below(&self, level: Level) -> usize {
        match level {
            Level::L3 => 0,
            Level::L2 => 1,
            // The leaf table before is below it, too.
            Level::L1 => 3,
            Level::L0 => 4,
        }
    }

    /// Every bad descriptor there is for the entry of `level`, by name.
    pub(crate) fn corruptions(&self, level: Level) -> Vec<(&'static str, u64)> {
        let table = |pa: Pa| pa.raw() | 0b11;
        let mut bad = vec![
            ("a marker nobody makes", 7 << 56 | DIRTY),
            ("a table's marker with no table behind", 6 << 56 | DIRTY),
            ("content without validity or marker", self.page.raw() | 0b10 | DIRTY),
            ("a bit alone", 1 << 62 | DIRTY),
        ];
        let Some(child) = level.child() else {
            bad.extend([
                ("the encoding that level 3 reserves", 0x8000_0001 | DIRTY),
                ("a page beyond the physical addresses", 1 << PA_BITS | 0b11 | DIRTY | 1 << 10),
            ]);
            if G::PAGE_SHIFT > 12 {
                bad.push(("a page that is not aligned", 0x8000_1003 | DIRTY | 1 << 10));
            }
            return bad;
        };
        let root = self.path[0].1;
        bad.extend([
            ("a table outside table memory", 0x7fff_0000_0003),
            ("a table before table memory", 0b11),
            ("a table page that is free", table(page_at::<G>(PAGES - 1))),
            ("itself", table(Self::table_at(&self.path, level))),
            ("the root", table(root)),
            ("a subtree that hangs elsewhere, too", table(Self::table_at(&self.elsewhere, child))),
            ("a table of another guest", table(self.others[child as usize - self.path[0].0 as usize])),
            ("a frozen entry that leads elsewhere", Self::table_at(&self.elsewhere, child).raw() | 0b10 | 1 << 56),
            ("a collapsing entry that leads elsewhere", Self::table_at(&self.elsewhere, child).raw() | 0b10 | 6 << 56),
            ("a block beyond the physical addresses", 1 << PA_BITS | 0b01 | DIRTY | 1 << 10),
            ("a block that is not aligned to its size", (G::entry_size(level) / 2) | 0b01 | DIRTY | 1 << 10),
        ]);
        if child != Level::L3 {
            bad.push(("a table of a lower level", table(Self::table_at(&self.elsewhere, Level::L3))));
        }
        if level < G::FIRST_BLOCK_LEVEL {
            bad.push(("a block where there is none", 0b01 | DIRTY | 1 << 10));
        }
        if G::PAGE_SHIFT > 12 {
            bad.push(("a table that is not aligned", table(Self::table_at(&self.elsewhere, child).offset(0x1000))));
        }
        bad
    }

    /// Where a walk along `range` meets the entry of `level`.
    pub(crate) fn met_at(&self, level: Level, range: IpaRange) -> Ipa {
        self.page.align_down(G::shift(level)).max(range.start())
    }
}
