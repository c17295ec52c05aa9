//! RAM as slices of atomic words: what EL2 and a guest may both access is never anything else.
//!
//! A word is loaded and stored with relaxed order. What has to be seen in order, a page's content before its mapping, the
//! library orders: every table entry is stored behind a barrier.

use core::{
    slice,
    sync::atomic::{AtomicU64, Ordering},
};

use stage2::dirty::Word;
use stage2_platform::ram::Region;

/// The bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// The words of a page.
pub const PAGE_WORDS: usize = PAGE_BYTES as usize / size_of::<u64>();

/// The region's memory for good, all zero.
pub fn words(region: Region) -> &'static [AtomicU64] {
    let count = region.size() as usize / size_of::<AtomicU64>();
    // SAFETY: mapped RAM for the rest of the run, page-aligned, and `region`, which ends here, was its only owner; any
    // bits are a valid atomic word.
    let words = unsafe { slice::from_raw_parts(region.pointer().cast::<AtomicU64>(), count) };
    fill(words, 0);
    words
}

/// The region's memory for good, all zero, for one owner alone.
pub fn plain_words(region: Region) -> &'static mut [u64] {
    let count = region.size() as usize / size_of::<u64>();
    // SAFETY: mapped RAM for the rest of the run, page-aligned, and `region`, which ends here, was its only owner; any bits are a
    // valid word.
    let words = unsafe { slice::from_raw_parts_mut(region.pointer().cast::<u64>(), count) };
    words.fill(0);
    words
}

/// The region's memory for good, as the bits of a side log, none of them set.
pub fn log_words(region: Region) -> &'static [Word] {
    let words = words(region);
    // SAFETY: the same memory, at the same alignment: a `Word` is an `AtomicU64` by another name (`repr(transparent)`).
    unsafe { slice::from_raw_parts(words.as_ptr().cast::<Word>(), words.len()) }
}

/// Words handled by straight code between two branches: pages are most of what this system's time goes to.
const UNROLLED: usize = 16;

/// Stores `value` to every word.
pub fn fill(words: &[AtomicU64], value: u64) {
    let store = |word: &AtomicU64| word.store(value, Ordering::Relaxed);
    let (chunks, rest) = words.as_chunks::<UNROLLED>();
    for chunk in chunks {
        chunk.iter().for_each(store);
    }
    rest.iter().for_each(store);
}

/// Copies word by word, as far as the shorter of the two goes.
pub fn copy(from: &[AtomicU64], to: &[AtomicU64]) {
    let count = from.len().min(to.len());
    let (from, from_rest) = from[..count].as_chunks::<UNROLLED>();
    let (to, to_rest) = to[..count].as_chunks::<UNROLLED>();
    let copy_word = |(from, to): (&AtomicU64, &AtomicU64)| to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    for (from, to) in from.iter().zip(to) {
        from.iter().zip(to).for_each(copy_word);
    }
    from_rest.iter().zip(to_rest).for_each(copy_word);
}

/// Copies bytes to the front of `to`, as little-endian words, the last one filled up with zeroes.
pub fn copy_bytes(from: &[u8], to: &[AtomicU64]) {
    for (from, to) in from.chunks(size_of::<u64>()).zip(to) {
        to.store(little_endian(from), Ordering::Relaxed);
    }
}

/// Whether both hold the same words.
pub fn equal(left: &[AtomicU64], right: &[AtomicU64]) -> bool {
    let differs =
        |(left, right): (&AtomicU64, &AtomicU64)| left.load(Ordering::Relaxed) ^ right.load(Ordering::Relaxed);
    let differ =
        |left: &[AtomicU64], right: &[AtomicU64]| left.iter().zip(right).fold(0, |any, pair| any | differs(pair));
    let (left_chunks, left_rest) = left.as_chunks::<UNROLLED>();
    let (right_chunks, right_rest) = right.as_chunks::<UNROLLED>();
    left.len() == right.len()
        && left_chunks.iter().zip(right_chunks).all(|(left, right)| differ(left, right) == 0)
        && differ(left_rest, right_rest) == 0
}

/// Whether `words` begin with these bytes, as [`copy_bytes`] would put them there.
pub fn starts_with(words: &[AtomicU64], bytes: &[u8]) -> bool {
    bytes.chunks(size_of::<u64>()).zip(words).all(|(bytes, word)| word.load(Ordering::Relaxed) == little_endian(bytes))
}

/// Up to 8 bytes as a word, filled up with zeroes.
fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0; size_of::<u64>()];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Whether all words are zero.
pub fn is_zero(words: &[AtomicU64]) -> bool {
    words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
}
