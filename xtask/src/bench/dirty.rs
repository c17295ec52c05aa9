//! The dirty log: goals per page, and what KVM takes (Linux 6.1, VHE, the same emulator, 64 MiB of 4K pages).

use super::{Group, Kvm, Line, Part};

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
    parts: &[Part { name: "dirty", cpus: 1 }, Part { name: "beside-scan", cpus: 2 }],
    lines: &[
        Line { operations: &["enable_logging_4k"], goals: &all(8.0), kvm: Some(Kvm::Instructions(56.0)) },
        Line { operations: &["enable_logging_2m"], goals: &all(0.1), kvm: Some(Kvm::Instructions(1.0)) },
        Line { operations: &["scan_dense"], goals: &all(6.0), kvm: None },
        Line { operations: &["rearm_dense"], goals: &all(12.0), kvm: None },
        Line { operations: &["scan_dense", "rearm_dense"], goals: &[], kvm: Some(Kvm::Instructions(61.0)) },
        Line {
            operations: &["scan_sparse", "rearm_sparse"],
            goals: &[(WRITE_PROTECT, 2.0), (ADAPTIVE, 6.0)],
            kvm: Some(Kvm::Instructions(7.0)),
        },
        Line {
            operations: &["scan_clean", "rearm_clean"],
            goals: &[(WRITE_PROTECT, 0.1), (ADAPTIVE, 0.1)],
            kvm: Some(Kvm::Instructions(0.2)),
        },
        Line { operations: &["collapse"], goals: &all(14.0), kvm: Some(Kvm::Never) },
        Line { operations: &["fault_alone"], goals: &[], kvm: None },
        Line { operations: &["fault_beside_scan"], goals: &[], kvm: None },
    ],
    equal: &[["fault_alone", "fault_beside_scan"]],
};
