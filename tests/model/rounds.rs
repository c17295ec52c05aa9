//! A guest that stores the number of the round to pages of its memory, and a harvester who keeps a replica: KVM's dirty_log_test, by
//! its invariants.
//!
//! A round is: stores; a scan, at once or in pieces; stores; a rearm, of all that was found or of a part, in two pieces; stores; a copy of
//! what was cleaned, some of which comes to nothing and is given back. Between any two of these the guest stores, and now and then a
//! page is moved. Then
//!
//! - a page whose bit is set holds a value of this round or of the last, or was left over from the last on purpose;
//! - a page whose bit is clear held, when the scan began, nothing newer than the last harvest has taken: it is what the replica has.
//!
//! In the end, when nobody stores any more, the replica is what the guest has. What is stored is the round and a serial number, so
//! that no two stores look the same.

use std::collections::BTreeSet;
use std::ops::Range;

use stage2::addr::{Ipa, IpaRange, Level, Pa};
use stage2::dirty::{Content, Initial, Tracking};
use stage2::geometry::{Features, Granule4K};
use stage2::model::ModelMmu;

use crate::support::*;

/// Rounds of a play.
const ROUNDS: u64 = 6;
/// In this one the guest stores to all pages.
const DENSE: u64 = 4;
/// Frames of blocks: aligned to 1 GiB.
const BLOCKS: u64 = 0x40_0000_0000;
/// Pages of a block.
const BLOCK: u64 = TABLE / PAGE;

/// Who harvests: as one has to, or with one thing wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Harvester {
    Careful,
    /// Copies first and rearms then.
    CopiesFirst,
    /// Rearms all pages, not only those that were found.
    RearmsAll,
    /// Says nothing of what was stored behind the tree's back.
    MarksNothing,
    /// Does not give back what could not be copied.
    GivesNothingBack,
}

/// What is played.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) features: Features,
    pub(crate) tracking: Tracking,
    pub(crate) initial: Initial,
    pub(crate) ipa_bits: u8,
    /// Pages of the guest. The last is the last of the IPA space.
    pub(crate) pages: u64,
    /// The leaves that all of it is mapped with at first. Pages come by faults.
    pub(crate) largest: Level,
    pub(crate) harvester: Harvester,
    pub(crate) seed: u64,
}

impl Plan {
    fn first_page(&self) -> u64 {
        (1 << self.ipa_bits) / PAGE - self.pages
    }

    fn range(&self, pages: Range<u64>) -> IpaRange {
        range((self.first_page() + pages.start) * PAGE, (pages.end - pages.start) * PAGE)
    }

    /// Plays it: what was wrong with the replica.
    pub(crate) fn play(&self) -> Result<(), String> {
        let model = ModelMmu::new::<Granule4K>(4, self.seed);
        let scene = Scene::on_model(model, self.features, |mmu| {
            let base = self.first_page() * PAGE;
            guest_at(mmu, self.features, self.ipa_bits, base, self.pages).with_largest_leaf(self.largest)
        });
        scene.on(1, |there| scene.on(0, |here| Play::new(self, &scene, there, here).all_rounds()))
    }
}

/// A play that is under way.
struct Play<'s> {
    plan: &'s Plan,
    scene: &'s Scene,
    guest: &'s Running<'s>,
    here: &'s Running<'s>,
    random: u64,
    serial: u64,
    round: u64,
    /// What was stored to each page last.
    memory: Vec<u64>,
    /// What the harvester has of each.
    replica: Vec<u64>,
    /// Pages that have to be in the next harvest, whatever they hold.
    again: BTreeSet<u64>,
    /// What each page becomes dirty together with, by a store from here on: itself, or a block.
    leaves: Vec<Range<u64>>,
}

impl<'s> Play<'s> {
    fn new(plan: &'s Plan, scene: &'s Scene, guest: &'s Running<'s>, here: &'s Running<'s>) -> Self {
        let nothing = vec![0; plan.pages as usize];
        let (memory, replica) = (nothing.clone(), nothing);
        let (random, again) = (plan.seed, BTreeSet::new());
        let leaves = Vec::new();
        Self { plan, scene, guest, here, random, serial: 0, round: 0, memory, replica, again, leaves }
    }

    fn all_rounds(mut self) -> Result<(), String> {
        if self.plan.largest != Level::LEAF {
            let all = self.plan.range(0..self.plan.pages);
            // The frames are aligned as the addresses are.
            let frames = Pa::new(BLOCKS + all.start().raw() % TABLE);
            self.scene.guest.map(&self.here.reader, all, frames, RWX, Content::New).unwrap();
        }
        self.guest_stores();
        let mut log =
            self.scene.guest.start_logging_with(&self.here.reader, self.plan.initial, self.plan.tracking).unwrap();
        match self.plan.initial {
            Initial::Clean => self.copy(&(0..self.plan.pages).collect(), true),
            Initial::Dirty => self.again.extend(0..self.plan.pages),
        }
        for round in 1..=ROUNDS {
            self.round = round;
            self.play_round(&mut log)?;
        }
        // Nobody stores any more.
        let (found, bitmap) = self.scan(&mut log);
        self.rearm(&mut log, 0..self.plan.pages, &bitmap);
        self.copy(&found, true);
        if let Some(page) = (0..self.plan.pages).find(|&page| self.replica[page as usize] != self.content(page)) {
            return Err(format!("in the end the replica of page {page} differs"));
        }
        assert!(self.scan(&mut log).0.is_empty(), "all is clean");
        Ok(())
    }

    fn play_round(&mut self, log: &mut Log) -> Result<(), String> {
        self.guest_stores();
        if self.round == DENSE {
            (0..self.plan.pages).for_each(|page| self.guest_stores_to(page));
        }
        self.hypervisor_stores();
        self.leaves = (0..self.plan.pages).map(|page| self.leaf(page)).collect();
        let before = self.memory.clone();
        let (found, _) = if self.round.is_multiple_of(2) { self.scan(log) } else { self.scan_in_pieces(log) };
        let copies_first = self.plan.harvester == Harvester::CopiesFirst;
        // The first page that is found comes to nothing.
        let failed: BTreeSet<u64> = found.iter().copied().take(1).collect();
        let cleaned: BTreeSet<u64> = if self.round.is_multiple_of(3) {
            found.iter().copied().filter(|page| page % 3 != 0).collect()
        } else {
            found.clone()
        };
        let copied = cleaned.difference(&failed).copied().collect();
        if copies_first {
            self.copy(&copied, false);
        }
        self.guest_stores();
        let (half, mut cleaning) = (self.below(self.plan.pages + 1), bitmap_of(&cleaned, self.plan.pages));
        if self.plan.harvester == Harvester::RearmsAll {
            cleaning.fill(u64::MAX);
        }
        for part in [0..half, half..self.plan.pages] {
            self.rearm(log, part, &cleaning);
            self.guest_stores();
        }
        if !copies_first {
            self.copy(&copied, true);
        }
        if self.plan.harvester != Harvester::GivesNothingBack {
            log.merge(self.plan.range(0..self.plan.pages), &bitmap_of(&failed, self.plan.pages)).unwrap();
        }
        self.check(&before, &found)?;
        // A block that is dirty is cleaned if one rearm covers all of it.
        let is_kept = |page: &u64| {
            let mut block = self.leaves[*page as usize].clone();
            let is_dirty = block.clone().all(|page| found.contains(&page));
            let is_whole = block.end <= half || half <= block.start;
            if is_dirty { !is_whole || block.any(|page| !cleaned.contains(&page)) } else { !cleaned.contains(page) }
        };
        self.again = found.iter().copied().filter(is_kept).chain(failed).collect();
        Ok(())
    }

    fn check(&self, before: &[u64], found: &BTreeSet<u64>) -> Result<(), String> {
        let is_recent = |page: u64| (self.memory[page as usize] >> 32) + 1 >= self.round;
        for page in 0..self.plan.pages {
            let (held, has) = (before[page as usize], self.replica[page as usize]);
            let (is_found, is_due) = (found.contains(&page), self.again.contains(&page));
            let right = if is_found {
                is_due || self.leaves[page as usize].clone().any(is_recent)
            } else {
                !is_due && held == has
            };
            if !right {
                return Err(format!("round {}: page {page}, {is_found}: {held:#x}, replica {has:#x}", self.round));
            }
        }
        Ok(())
    }

    /// The pages of the leaf that maps this one.
    fn leaf(&self, page: u64) -> Range<u64> {
        let ipa = self.plan.range(page..page + 1).start();
        let mapping = self.scene.guest.query(&self.here.reader, ipa).unwrap();
        if mapping.is_none_or(|mapping| mapping.level == Level::LEAF) {
            return page..page + 1;
        }
        let first = ipa.raw() / TABLE * BLOCK - self.plan.first_page();
        first..first + BLOCK
    }

    /// Where the page is, mapped or not.
    fn frame(&self, page: u64) -> Pa {
        let ipa = self.plan.range(page..page + 1).start();
        let view = self.scene.guest.view(&self.here.reader, ipa).unwrap();
        view.map_or_else(|| self.scene.frames.get(ipa), |view| view.pa())
    }

    /// What it holds.
    fn content(&self, page: u64) -> u64 {
        self.scene.model.content(self.frame(page))
    }

    fn copy(&mut self, pages: &BTreeSet<u64>, is_clean: bool) {
        for &page in pages {
            if is_clean {
                self.scene.model.copied(self.plan.range(page..page + 1).start());
            }
            let content = self.content(page);
            assert_eq!(content, self.memory[page as usize], "page {page}");
            self.replica[page as usize] = content;
        }
    }

    fn scan(&mut self, log: &mut Log) -> (BTreeSet<u64>, Vec<u64>) {
        let mut bitmap = vec![0; self.plan.pages.div_ceil(64) as usize];
        let count = log.scan(&self.here.reader, self.plan.range(0..self.plan.pages), &mut bitmap).unwrap();
        let found: BTreeSet<u64> = (0..bitmap.len() as u64 * 64).filter(|page| has(&bitmap, *page)).collect();
        assert_eq!(found.len() as u64, count);
        assert!(found.last().is_none_or(|&last| last < self.plan.pages), "no bit beyond the last page");
        (found, bitmap)
    }

    /// By runs, from one budget to the next; the guest stores in between.
    fn scan_in_pieces(&mut self, log: &mut Log) -> (BTreeSet<u64>, Vec<u64>) {
        let all = self.plan.range(0..self.plan.pages);
        let (mut found, mut rest) = (BTreeSet::new(), Some(all));
        while let Some(left) = rest {
            let page_of = |ipa: Ipa| ipa.raw() / PAGE - self.plan.first_page();
            let budget = self.round as u32 % 3;
            let scanned = log.scan_runs(&self.here.reader, left, budget, |run| {
                found.extend(page_of(run.start())..=page_of(run.last()));
            });
            rest = scanned.unwrap().next.and_then(|next| IpaRange::inclusive(next, all.last()));
            self.guest_stores();
        }
        let bitmap = bitmap_of(&found, self.plan.pages);
        (found, bitmap)
    }

    /// Those pages of `part` that are in the bitmap, which is one of all pages.
    fn rearm(&mut self, log: &mut Log, part: Range<u64>, bitmap: &[u64]) {
        if part.is_empty() {
            return;
        }
        let own: BTreeSet<u64> = part.clone().filter(|page| has(bitmap, *page)).map(|page| page - part.start).collect();
        let bitmap = bitmap_of(&own, part.end - part.start);
        let _rearmed = log.rearm(&self.here.reader, self.plan.range(part), &bitmap).unwrap();
    }

    /// To a few pages. And another is moved, perhaps.
    fn guest_stores(&mut self) {
        for _ in 0..1 + self.plan.pages.min(64) / 8 {
            let page = self.below(self.plan.pages);
            self.guest_stores_to(page);
        }
        let page = self.below(2 * self.plan.pages);
        if page < self.plan.pages && self.plan.largest == Level::LEAF {
            self.move_page(page);
        }
    }

    /// To another frame. It is mapped again when the guest comes to it.
    fn move_page(&self, page: u64) {
        let (model, frames) = (&self.scene.model, &self.scene.frames);
        let release = |removed: stage2::stage2::Removed<'_>| {
            let (old, new) = (*removed.frame.peek(), frames.fresh());
            model.fill(new, model.content(old));
            frames.set(removed.ipa, new);
            model.free_frame(old, PAGE);
        };
        self.scene.guest.unmap_with(&self.here.reader, self.plan.range(page..page + 1), release).unwrap();
    }

    fn guest_stores_to(&mut self, page: u64) {
        let value = self.next_value();
        let _cpu = self.scene.model.cpu(1);
        self.guest.stores(self.plan.first_page() + page, value);
        self.memory[page as usize] = value;
    }

    /// To the frame of a page, not through the tree.
    fn hypervisor_stores(&mut self) {
        let (page, value) = (self.below(self.plan.pages), self.next_value());
        self.scene.model.fill(self.frame(page), value);
        self.memory[page as usize] = value;
        if self.plan.harvester != Harvester::MarksNothing {
            self.scene.guest.mark_dirty(self.plan.range(page..page + 1)).unwrap();
        }
    }

    fn next_value(&mut self) -> u64 {
        self.serial += 1;
        self.round << 32 | self.serial
    }

    /// A random number below `end` (xorshift).
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % end
    }
}

fn has(bitmap: &[u64], page: u64) -> bool {
    bitmap[(page / 64) as usize] >> (page % 64) & 1 == 1
}

fn bitmap_of(pages: &BTreeSet<u64>, count: u64) -> Vec<u64> {
    let mut bitmap = vec![0; count.div_ceil(64) as usize];
    pages.iter().for_each(|page| bitmap[(page / 64) as usize] |= 1 << (page % 64));
    bitmap
}
