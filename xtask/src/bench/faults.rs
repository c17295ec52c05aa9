//! Round trips of a guest: goals, and what KVM takes (Linux 6.1, VHE, the same emulator). KVM's contain a full switch of context between host
//! and guest; a type-1 hypervisor needs none.

use super::goals::{Group, Line, Metric, Part};

/// The group.
pub(super) const GROUP: Group = Group {
    name: "faults",
    parts: &[Part::alone("faults")],
    lines: &[
        Line::of(&["null_exit"]).goals(&[("pages", 120.0)]).kvm(1450.0),
        Line::of(&["fault_map"]).modes(&["pages"]).goals(&[("pages", 350.0)]).kvm(3490.0),
        Line::of(&["fault_map"]).modes(&["blocks"]),
        Line::of(&["fault_map"]).metric(Metric::SharedLines).goals(&[("pages", 2.0)]),
        Line::of(&["fault_write_protect"]).modes(&["write_protect"]).goals(&[("write_protect", 320.0)]).kvm(3231.0),
        Line::of(&["fault_write_protect"]).modes(&["adaptive"]),
        Line::of(&["fault_write_protect"]).metric(Metric::SharedLines),
        Line::of(&["fault_permission"]),
        Line::of(&["fault_mmio"]),
        Line::of(&["fault_spurious"]),
        Line::of(&["fault_spurious"]).metric(Metric::SharedLines),
    ],
    equal: &[],
};
