//! The dirty log: goals per page, and what KVM takes (Linux 6.1, VHE, the same emulator, 64 MiB of 4K pages).

use super::goals::{Group, Line, Part};

const WRITE_PROTECT: &str = "write_protect";
const HARDWARE: &str = "hardware";
const ADAPTIVE: &str = "adaptive";

/// A goal for all modes.
const fn all(goal: f64) -> [(&'static str, f64); 3] {
    [(WRITE_PROTECT, goal), (HARDWARE, goal), (ADAPTIVE, goal)]
}

/// The group.
pub(super) const GROUP: Group = Group {
    name: "dirty",
    parts: &[Part::alone("dirty"), Part::by_turns("beside-scan", 2)],
    lines: &[
        Line::of(&["enable_logging_4k"]).goals(&all(8.0)).kvm(56.0),
        Line::of(&["enable_logging_2m"]).goals(&all(0.1)).kvm(1.0),
        Line::of(&["scan_dense"]).goals(&all(6.0)),
        Line::of(&["rearm_dense"]).goals(&all(12.0)),
        Line::of(&["scan_dense", "rearm_dense"]).kvm(61.0),
        Line::of(&["scan_sparse", "rearm_sparse"]).goals(&[(WRITE_PROTECT, 2.0), (ADAPTIVE, 6.0)]).kvm(7.0),
        Line::of(&["scan_clean", "rearm_clean"]).goals(&[(WRITE_PROTECT, 0.1), (ADAPTIVE, 0.1)]).kvm(0.2),
        Line::of(&["collapse"]).goals(&all(14.0)).never_in_kvm(),
        Line::of(&["fault_alone"]),
        Line::of(&["fault_beside_scan"]),
    ],
    equal: &[["fault_alone", "fault_beside_scan"]],
};
