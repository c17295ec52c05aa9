//! Addresses, levels and ranges.
//!
//! An intermediate physical address ([`Ipa`]) is what a guest thinks of as physical memory; a physical
//! address ([`Pa`]) is what the machine has. They are different types, so that one is never used for the other.
//! A [`Level`] is Arm's number: 0 to 3, where 3 maps pages whatever the granule.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with the value `raw`, in bytes.
            #[inline(always)]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The address in bytes.
            #[inline(always)]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Whether the address is a multiple of `1 << shift` bytes.
            #[inline(always)]
            pub const fn is_aligned(self, shift: u32) -> bool {
                self.0 & ((1 << shift) - 1) == 0
            }

            /// The address rounded down to a multiple of `1 << shift` bytes.
            #[inline(always)]
            pub const fn align_down(self, shift: u32) -> Self {
                Self(self.0 >> shift << shift)
            }

            /// The address `bytes` further on, or `None` past the end of 64 bits.
            #[inline(always)]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The address `bytes` further on, modulo 2^64: for addresses already checked against a range.
            #[inline(always)]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// An intermediate physical address: the input of stage 2.
    Ipa
}
address! {
    /// A physical address: the output of stage 2.
    Pa
}

/// A level of the translation tables, as Arm numbers them: 3 holds pages, whatever the granule.
///
/// As wide as a register: what it stands beside in a table that a walk has found moves without padding, which costs more than the
/// walk's last step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u64)]
pub enum Level {
    /// Only with the 4K granule and more than 43 bits of IPA.
    #[doc(alias = "pgd")]
    L0 = 0,
    /// 1 GiB per entry with the 4K granule.
    #[doc(alias = "pud")]
    L1 = 1,
    /// 2 MiB per entry with the 4K granule.
    #[doc(alias = "pmd")]
    L2 = 2,
    /// The level of pages.
    #[doc(alias = "pte")]
    L3 = 3,
}

impl Level {
    /// The level of pages, at which every walk ends.
    pub const LEAF: Self = Self::L3;

    /// The next level down, towards the pages; `None` at level 3.
    #[inline(always)]
    pub const fn child(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// The next level up, towards the root; `None` at level 0.
    #[inline(always)]
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::L0 => None,
            Self::L1 => Some(Self::L0),
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
        }
    }

    /// How many levels lie below this one.
    #[inline(always)]
    pub const fn levels_below(self) -> u32 {
        3 - self as u32
    }
}

/// A range of intermediate physical addresses: not empty, and it does not wrap.
///
/// Whether it is aligned to the granule and below the IPA size is checked by the operation it is given to,
/// which knows both.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IpaRange {
    start: Ipa,
    last: Ipa,
}

impl IpaRange {
    /// The `bytes` from `start` on; `None` if that is empty or passes the end of 64 bits.
    #[inline]
    pub const fn new(start: Ipa, bytes: u64) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        match start.checked_add(bytes - 1) {
            Some(last) => Some(Self { start, last }),
            None => None,
        }
    }

    /// The range from `start` up to and including `last`; `None` if `last` is below `start`.
    #[inline]
    pub const fn inclusive(start: Ipa, last: Ipa) -> Option<Self> {
        if last.0 < start.0 { None } else { Some(Self { start, last }) }
    }

    /// The first address.
    #[inline(always)]
    pub const fn start(self) -> Ipa {
        self.start
    }

    /// The last address, included: a range may end where 64 bits do.
    #[inline(always)]
    pub const fn last(self) -> Ipa {
        self.last
    }

    /// The length in bytes, saturated at 2^64 - 1.
    #[inline]
    pub const fn bytes(self) -> u64 {
        (self.last.0 - self.start.0).saturating_add(1)
    }

    /// Whether `ipa` lies within.
    #[inline]
    pub const fn contains(self, ipa: Ipa) -> bool {
        self.start.0 <= ipa.0 && ipa.0 <= self.last.0
    }

    /// What both ranges share.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::inclusive(self.start.max(other.start), self.last.min(other.last))
    }

    /// What is left from `ipa` on; `None` once `ipa` lies behind the range.
    #[inline]
    pub fn starting_at(self, ipa: Ipa) -> Option<Self> {
        Self::inclusive(ipa, self.last)
    }
}

impl fmt::Debug for IpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IpaRange({:#x}..={:#x})", self.start.0, self.last.0)
    }
}

impl fmt::Display for IpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.start, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_never_empty_and_never_wraps() {
        assert_eq!(IpaRange::new(Ipa::new(0x1000), 0), None);
        assert_eq!(IpaRange::new(Ipa::new(u64::MAX), 2), None);
        let top = IpaRange::new(Ipa::new(u64::MAX - 0xfff), 0x1000).unwrap();
        assert_eq!(top.last(), Ipa::new(u64::MAX));
        assert_eq!(top.bytes(), 0x1000);
    }

    #[test]
    fn what_is_left_of_a_range_ends_with_it() {
        let range = IpaRange::new(Ipa::new(0x1000), 0x2000).unwrap();
        assert_eq!(range.starting_at(Ipa::new(0x3000)), None);
        assert_eq!(range.starting_at(Ipa::new(0x2000)).unwrap().bytes(), 0x1000);
    }
}
