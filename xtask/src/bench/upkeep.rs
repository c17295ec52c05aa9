//! Tables on their way back, teardown, quiescent states, grace periods and VMIDs: goals, and what KVM takes (Linux 6.1, per table of 512
//! pages).

use super::goals::{Group, Line, Part};

/// KVM tears down at 92 instructions a page.
const KVM_TEARDOWN: f64 = 92.0 * 512.0;

/// The group.
pub(super) const GROUP: Group = Group {
    name: "upkeep",
    parts: &[Part::alone("upkeep"), Part::alone("vmids")],
    lines: &[
        Line::of(&["reclaim_table"]).goals(&[("batches_of_32", 400.0)]),
        Line::of(&["teardown_table"]).goals(&[("full", 600.0), ("sparse", 600.0)]).kvm(KVM_TEARDOWN),
        Line::of(&["quiescent"]).goals(&[("announced", 6.0)]),
        Line::of(&["read_section"]).goals(&[("on_top_of_its_looks", 0.0)]),
        Line::of(&["grace_period_begin"]),
        Line::of(&["grace_period_poll"]),
        Line::of(&["load_tree"]),
        Line::of(&["vmid_allocation"]),
        Line::of(&["vmid_rollover"]),
    ],
    equal: &[],
};
