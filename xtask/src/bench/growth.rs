//! How costs grow. Nothing may grow faster than what it touches.
//!
//! What an operation touches is of several kinds: tables, descriptors, pages, CPUs. If it costs so much for each of a kind, then from one point
//! of a curve to the next its cost grows by no more than the kind that grows fastest. That is what is asserted, of instructions
//! and of shared lines.

use std::collections::BTreeMap;

use serde::Serialize;

use super::counts::Counts;
use super::goals::{Group, Part};
use crate::machine::events;

/// The group.
pub(super) const GROUP: Group = Group {
    name: "growth",
    parts: &[
        Part::alone("growth"),
        Part::of("growth-cpus", 1),
        Part::of("growth-cpus", 2),
        Part::of("growth-cpus", 4),
        Part::of("growth-cpus", 8),
        Part::alone("memory"),
    ],
    lines: &[],
    equal: &[],
};

/// A rounding's worth.
const TOLERANCE: f64 = 1.02;

/// A point of a curve.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Point {
    pub(super) curve: String,
    /// What there is more or less of.
    pub(super) axis: String,
    pub(super) at: u64,
    /// How many things are touched there, by kind.
    pub(super) touched: Vec<u64>,
    pub(super) instructions: u64,
    pub(super) shared_lines: Option<u64>,
}

impl Point {
    pub(super) fn new(point: &events::Point, counts: Option<Counts>) -> Self {
        let events::Point { curve, axis, at, touched, instructions, .. } = point.clone();
        Self { curve, axis, at, touched, instructions, shared_lines: counts.map(|counts| counts.shared_lines) }
    }
}

/// The points by axis and curve, each in the order in which it was measured.
pub(super) fn curves(points: &[Point]) -> BTreeMap<&str, BTreeMap<&str, Vec<&Point>>> {
    let mut curves: BTreeMap<&str, BTreeMap<&str, Vec<&Point>>> = BTreeMap::new();
    for point in points {
        curves.entry(&point.axis).or_default().entry(&point.curve).or_default().push(point);
    }
    curves
}

/// What grows faster than what it touches, a line each.
pub(super) fn too_fast(points: &[Point]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (axis, curves) in curves(points) {
        for (curve, points) in curves {
            for pair in points.windows(2) {
                let [before, after] = pair else { continue };
                let most = TOLERANCE * fastest(&before.touched, &after.touched);
                let lines = before.shared_lines.zip(after.shared_lines);
                let figures =
                    [("instructions", Some((before.instructions, after.instructions))), ("shared lines", lines)];
                for (what, figures) in figures {
                    let Some((less, more)) = figures else { continue };
                    if more as f64 > less as f64 * most {
                        wrong.push(format!(
                            "{curve}, {axis}: from {} to {} it grows from {less} to {more} {what}, and what it touches by {most:.2}",
                            before.at, after.at
                        ));
                    }
                }
            }
        }
    }
    wrong
}

/// By how much the kind grows that grows fastest.
fn fastest(before: &[u64], after: &[u64]) -> f64 {
    let growth = before.iter().zip(after).map(|(&before, &after)| match before {
        0 if after == 0 => 0.0,
        _ => after as f64 / before as f64,
    });
    growth.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: u64, touched: &[u64], instructions: u64, shared_lines: u64) -> Point {
        Point {
            curve: "c".to_owned(),
            axis: "a".to_owned(),
            at,
            touched: touched.to_vec(),
            instructions,
            shared_lines: Some(shared_lines),
        }
    }

    #[test]
    fn what_grows_with_what_it_touches_is_fine() {
        let points =
            [point(1, &[10, 100, 0], 1000, 10), point(2, &[20, 100, 0], 1500, 20), point(3, &[20, 100, 0], 1500, 20)];
        assert_eq!(too_fast(&points), Vec::<String>::new());
    }

    #[test]
    fn what_grows_faster_is_told() {
        let points = [point(1, &[10, 100], 1000, 10), point(2, &[20, 100], 2100, 10)];
        let told = too_fast(&points);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("c, a: from 1 to 2 it grows from 1000 to 2100 instructions"), "{told:?}");
        let points = [point(1, &[10, 100], 1000, 10), point(2, &[10, 100], 1000, 11)];
        assert!(too_fast(&points)[0].contains("from 10 to 11 shared lines"));
    }

    #[test]
    fn curves_are_not_mixed() {
        let other = Point { curve: "d".to_owned(), ..point(1, &[1], 10, 1) };
        let points = [point(1, &[1], 1000, 1), other.clone(), point(2, &[1], 1000, 1), other];
        assert!(too_fast(&points).is_empty());
    }
}
