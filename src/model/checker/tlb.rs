//! What TLBs and walk caches may hold: every entry that some CPU may have cached and that no completed invalidation has
//! surely taken.
//!
//! Each cached descriptor is kept per CPU in two forms: as an entry of stage 2 alone (a leaf, or a table entry in a walk cache),
//! and combined with stage 1, under a virtual address that nobody knows. A combined entry can be made at any time from one
//! of stage 2.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::Kind;
use super::clock::{Clock, MAX_CPUS};
use super::shape::{LEAF, Meaning, Shape, meaning};

/// CPUs, a bit each.
pub(super) type Mask = u32;

/// What a cached descriptor translates, and for whom.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) vmid: u16,
    pub(super) level: u8,
    pub(super) ipa: u64,
    pub(super) root: u64,
}

/// A descriptor that may be cached.
#[derive(Clone, Copy)]
pub(super) struct Cached {
    pub(super) value: u64,
    /// Where it was read.
    pub(super) table: u64,
    pub(super) index: usize,
    /// What is visible to a walk that goes on from it.
    pub(super) seen: Clock,
    /// The CPUs that may have it as an entry of stage 2.
    pub(super) stage2: Mask,
    /// Those that may have it combined with stage 1.
    pub(super) combined: Mask,
    /// When each CPU surely lost it as an entry of stage 2.
    gone: [u64; MAX_CPUS],
    /// What it would be to use it.
    doom: Option<Kind>,
}

impl Cached {
    fn is_gone(&self) -> bool {
        self.stage2 | self.combined == 0
    }
}

/// Places, in order and each once: mostly it is one.
#[derive(Default)]
struct Places(Vec<Place>);

impl Places {
    fn insert(&mut self, place: Place) {
        if let Err(at) = self.0.binary_search(&place) {
            self.0.insert(at, place);
        }
    }

    fn remove(&mut self, place: &Place) {
        if let Ok(at) = self.0.binary_search(place) {
            self.0.remove(at);
        }
    }

    fn iter(&self) -> impl Iterator<Item = Place> {
        self.0.iter().copied()
    }
}

pub(super) struct Tlb {
    shape: Shape,
    places: BTreeMap<Place, Vec<Cached>>,
    /// Where a cached entry leads to each table.
    to_table: BTreeMap<u64, Places>,
    /// Where a cached leaf leads to each frame, by its first address.
    to_frame: BTreeMap<u64, Places>,
    /// Where each word was read for.
    from_word: BTreeMap<(u64, usize), Places>,
    /// Where something is cached that must not be used.
    doomed: BTreeSet<Place>,
    /// Where some CPU may have a combined entry, and surely has none of stage 2.
    only_combined: BTreeSet<Place>,
}

/// A descriptor to cache.
#[derive(Clone, Copy)]
pub(super) struct Fetched {
    pub(super) place: Place,
    pub(super) value: u64,
    pub(super) table: u64,
    pub(super) index: usize,
    pub(super) seen: Clock,
}

impl Tlb {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            places: BTreeMap::new(),
            to_table: BTreeMap::new(),
            to_frame: BTreeMap::new(),
            from_word: BTreeMap::new(),
            doomed: BTreeSet::new(),
            only_combined: BTreeSet::new(),
        }
    }

    /// CPU `cpu` may cache it; whether it could not before.
    pub(super) fn insert(&mut self, cpu: u16, fetched: &Fetched) -> bool {
        let Fetched { place, value, table, index, seen } = *fetched;
        let cached = self.places.entry(place).or_default();
        let bit = 1 << cpu;
        let meaning = meaning(value, place.level, self.shape);
        let combined = if matches!(meaning, Meaning::Leaf(_)) { bit } else { 0 };
        if let Some(cached) = cached.iter_mut().find(|cached| cached.value == value && cached.table == table) {
            let is_new = cached.stage2 & bit == 0;
            cached.stage2 |= bit;
            cached.combined |= combined;
            return is_new;
        }
        cached.push(Cached { value, table, index, seen, stage2: bit, combined, gone: [0; MAX_CPUS], doom: None });
        self.from_word.entry((table, index)).or_default().insert(place);
        match meaning {
            Meaning::Table(child) => self.to_table.entry(child).or_default().insert(place),
            Meaning::Leaf(frame) => self.to_frame.entry(frame).or_default().insert(place),
            Meaning::Invalid => {}
        }
        true
    }

    /// Whether CPU `cpu` may have had it as an entry of stage 2 until `now`, when it was dropped, or has it still.
    pub(super) fn had(&self, cpu: u16, fetched: &Fetched, now: u64) -> bool {
        let mut same =
            self.at(fetched.place).iter().filter(|it| (it.value, it.table) == (fetched.value, fetched.table));
        same.any(|cached| cached.stage2 & 1 << cpu != 0 || cached.gone[usize::from(cpu)] == now)
    }

    pub(super) fn at(&self, place: Place) -> &[Cached] {
        self.places.get(&place).map_or(&[], |cached| cached)
    }

    /// What is cached for any of the addresses `first..=last` under `vmid`, at `level`.
    pub(super) fn over(&self, vmid: u16, level: u8, first: u64, last: u64) -> impl Iterator<Item = (Place, &Cached)> {
        let first = first >> self.shape.shift(level) << self.shape.shift(level);
        let bounds = Place { vmid, level, ipa: first, root: 0 }..=Place { vmid, level, ipa: last, root: u64::MAX };
        self.places.range(bounds).flat_map(|(place, cached)| cached.iter().map(|cached| (*place, cached)))
    }

    /// What is cached of a word.
    pub(super) fn read_from(&self, table: u64, index: usize) -> impl Iterator<Item = (Place, &Cached)> {
        let places = self.from_word.get(&(table, index)).into_iter().flat_map(Places::iter);
        let cached = places.flat_map(|place| self.at(place).iter().map(move |cached| (place, cached)));
        cached.filter(move |(_, cached)| (cached.table, cached.index) == (table, index))
    }

    /// Nobody may use this any more; now nobody does.
    pub(super) fn doom(&mut self, place: Place, doomed: &Cached, kind: Kind) {
        for cached in self.places.get_mut(&place).into_iter().flatten() {
            if cached.value == doomed.value && cached.table == doomed.table {
                cached.doom = Some(kind);
                self.doomed.insert(place);
            }
        }
    }

    /// What a CPU that takes up `vmid` may use and must not.
    pub(super) fn doomed(&self, cpu: u16, vmid: u16) -> Option<(Place, Cached, Kind)> {
        let places = self.doomed.iter().filter(|place| place.vmid == vmid);
        let cached = places.flat_map(|&place| self.at(place).iter().map(move |cached| (place, *cached)));
        let mut mine = cached.filter(|(_, cached)| (cached.stage2 | cached.combined) & 1 << cpu != 0);
        mine.find_map(|(place, cached)| Some((place, cached, cached.doom?)))
    }

    /// The VMIDs under which something is cached. Goes from one to the next, not through all that is cached.
    pub(super) fn vmids(&self) -> BTreeSet<u16> {
        let mut vmids = BTreeSet::new();
        let mut from = Some(0);
        while let Some(vmid) = from {
            let next = self.places.range(Place { vmid, level: 0, ipa: 0, root: 0 }..).next();
            from = next.and_then(|(place, _)| {
                vmids.insert(place.vmid);
                place.vmid.checked_add(1)
            });
        }
        vmids
    }

    /// Another root than `root` that something is cached of under `vmid`.
    pub(super) fn other_root(&self, vmid: u16, root: u64) -> Option<u64> {
        let bounds =
            Place { vmid, level: 0, ipa: 0, root: 0 }..=Place { vmid, level: LEAF, ipa: u64::MAX, root: u64::MAX };
        self.places.range(bounds).map(|(place, _)| place.root).find(|&other| other != root)
    }

    /// The cached entries that lead to `table`.
    pub(super) fn leading_to_table(&self, table: u64) -> impl Iterator<Item = (Place, &Cached)> {
        let places = self.to_table.get(&table).into_iter().flat_map(Places::iter);
        let cached = places.flat_map(|place| self.at(place).iter().map(move |cached| (place, cached)));
        cached.filter(move |(place, cached)| meaning(cached.value, place.level, self.shape) == Meaning::Table(table))
    }

    /// A cached leaf that leads to any of `bytes` from `frame` on.
    pub(super) fn leading_to_frame(&self, frame: u64, bytes: u64) -> impl Iterator<Item = (Place, &Cached)> {
        let last = frame + (bytes - 1);
        let blocks = (1..=2u8).map(move |level| frame >> self.shape.shift(level) << self.shape.shift(level));
        let within = self.to_frame.range(frame..=last).map(|(_, places)| places);
        let around = blocks.filter(move |&block| block < frame).filter_map(|block| self.to_frame.get(&block));
        within.chain(around).flat_map(Places::iter).flat_map(move |place| {
            self.at(place).iter().filter_map(move |cached| {
                let Meaning::Leaf(to) = meaning(cached.value, place.level, self.shape) else { return None };
                let end = to + (1 << self.shape.shift(place.level)) - 1;
                (to <= last && frame <= end).then_some((place, cached))
            })
        })
    }

    /// The places that are cached under `vmid` (all, if `None`) for any of the addresses `first..=last`.
    pub(super) fn places(&self, vmid: Option<u16>, first: u64, last: u64) -> Vec<Place> {
        let vmids = match vmid {
            Some(vmid) => BTreeSet::from([vmid]),
            None => self.vmids(),
        };
        let levels = vmids.into_iter().flat_map(|vmid| (0..=LEAF).map(move |level| (vmid, level)));
        let over = levels.flat_map(|(vmid, level)| self.over(vmid, level, first, last).map(|(place, _)| place));
        over.collect::<BTreeSet<Place>>().into_iter().collect()
    }

    /// Takes from the CPUs that `lost` says what it says of the cached descriptors at `places`, as entries of stage 2, at
    /// the time `now`.
    pub(super) fn drop_stage2(&mut self, places: &[Place], now: u64, lost: impl Fn(Place, &Cached) -> Mask) {
        for place in places {
            for cached in self.places.get_mut(place).into_iter().flatten() {
                let lost = lost(*place, cached) & cached.stage2;
                cached.stage2 &= !lost;
                cpus(lost).for_each(|cpu| cached.gone[usize::from(cpu)] = now);
                if cached.combined & lost != 0 {
                    self.only_combined.insert(*place);
                }
            }
        }
    }

    /// Takes combined entries of `vmid` (all, if `None`) from `reached`: those that could not be made anew since `issued`.
    pub(super) fn drop_combined(&mut self, vmid: Option<u16>, reached: Mask, issued: u64) {
        let places: Vec<Place> = self.only_combined.iter().copied().collect();
        for place in places.into_iter().filter(|place| vmid.is_none_or(|vmid| vmid == place.vmid)) {
            let mut is_left = false;
            for cached in self.places.get_mut(&place).into_iter().flatten() {
                for cpu in cpus(reached & cached.combined & !cached.stage2) {
                    if cached.gone[usize::from(cpu)] <= issued {
                        cached.combined &= !(1 << cpu);
                    }
                }
                is_left |= cached.combined & !cached.stage2 != 0;
            }
            if !is_left {
                self.only_combined.remove(&place);
            }
            self.sweep(&[place]);
        }
    }

    /// Forgets what nobody has any more, at these places.
    pub(super) fn sweep(&mut self, places: &[Place]) {
        for place in places {
            let Some(cached) = self.places.get_mut(place) else { continue };
            let gone: Vec<Cached> = cached.extract_if(.., |cached| cached.is_gone()).collect();
            let meaning = |cached: &Cached| meaning(cached.value, place.level, self.shape);
            for lost in &gone {
                if !cached.iter().any(|kept| (kept.table, kept.index) == (lost.table, lost.index)) {
                    forget(&mut self.from_word, (lost.table, lost.index), place);
                }
                let lost = meaning(lost);
                if cached.iter().any(|kept| meaning(kept) == lost) {
                    continue;
                }
                match lost {
                    Meaning::Table(table) => forget(&mut self.to_table, table, place),
                    Meaning::Leaf(frame) => forget(&mut self.to_frame, frame, place),
                    Meaning::Invalid => {}
                }
            }
            if cached.iter().all(|cached| cached.doom.is_none()) {
                self.doomed.remove(place);
            }
            if cached.is_empty() {
                self.places.remove(place);
            }
        }
    }
}

/// Copies of what is cached, for who changes something meanwhile.
pub(super) fn owned<'a>(cached: impl Iterator<Item = (Place, &'a Cached)>) -> Vec<(Place, Cached)> {
    cached.map(|(place, cached)| (place, *cached)).collect()
}

/// The CPUs of a mask.
pub(super) fn cpus(mask: Mask) -> impl Iterator<Item = u16> {
    (0..MAX_CPUS as u16).filter(move |cpu| mask & 1 << cpu != 0)
}

fn forget<K: Ord>(index: &mut BTreeMap<K, Places>, to: K, place: &Place) {
    if let Some(places) = index.get_mut(&to) {
        places.remove(place);
        if places.0.is_empty() {
            index.remove(&to);
        }
    }
}
