//! What comes of a claim: from what the guest saw, with the library as it is and with its twins.

use alloc::{format, string::String};
use stage2::geometry::{Features, Granule4K};
pub(crate) use stage2_tests_qemu::say::{OrSay, expect};

use super::{
    lab::{Bench, Lab},
    lessened::Less,
};

/// What comes of a claim: a verdict, or the reason why it failed.
pub(crate) type Claimed = Result<Verdict, String>;

/// A claim that did not fail.
pub(crate) enum Verdict {
    /// It holds; what was seen.
    Holds(String),
    /// This CPU cannot show it; why.
    NotHere(String),
}

/// What the guest saw in a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Saw {
    /// What is so.
    TheTruth,
    /// What is so no longer: what the mechanism in question is there to prevent.
    ThePast,
}

impl Saw {
    /// From a value: `truth` is what it should be, `past` what it was.
    pub(crate) fn of(value: u64, truth: u64, past: u64) -> Result<Self, String> {
        match value {
            value if value == truth => Ok(Self::TheTruth),
            value if value == past => Ok(Self::ThePast),
            other => Err(format!("{other:#x} was seen, neither {truth:#x} nor {past:#x}")),
        }
    }

    /// The past if either saw it.
    pub(crate) fn and(self, other: Self) -> Self {
        if self == Self::TheTruth { other } else { self }
    }
}

/// A library from which something was taken, and what.
pub(crate) type Twin = (&'static str, Less);

/// Plays `scenario` with the library as it is, where the guest must see the truth, and with each twin, where it must not.
pub(crate) fn with_twins(
    lab: &Lab,
    features: Features,
    twins: &[Twin],
    scenario: impl Fn(&Bench<'_, Granule4K>) -> Result<Saw, String>,
) -> Claimed {
    compare(lab, features, Less::NOTHING, twins, scenario)
}

/// As [`with_twins`], where the scenario as it should be needs another `good` than the library alone.
pub(crate) fn compare(
    lab: &Lab,
    features: Features,
    good: Less,
    twins: &[Twin],
    scenario: impl Fn(&Bench<'_, Granule4K>) -> Result<Saw, String>,
) -> Claimed {
    if lab.bench(good, features, &scenario)? != Saw::TheTruth {
        return Err("the guest saw the past".into());
    }
    let mut detail = String::new();
    for (what, twin) in twins {
        match lab.bench(*twin, features, &scenario) {
            Ok(Saw::ThePast) => {}
            Ok(Saw::TheTruth) => return Err(format!("the twin is not caught: {what}")),
            Err(reason) => return Err(format!("the twin fails otherwise: {what}: {reason}")),
        }
        detail = if detail.is_empty() { format!("caught: {what}") } else { format!("{detail}; {what}") };
    }
    Ok(Verdict::Holds(detail))
}
