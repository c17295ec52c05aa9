//! What is shown of a group: operations, each with what it should cost, what others take and what it cannot go below.

/// Operations that belong together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// What is booted for it.
    pub(super) parts: &'static [Part],
    /// What is shown of it.
    pub(super) lines: &'static [Line],
    /// Operations that have to cost the same.
    pub(super) equal: &'static [[&'static str; 2]],
}

/// A group of the image's, and the machine it takes.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: &'static str,
    /// As many as it takes: where CPUs take turns, one too many would be counted.
    pub(super) cpus: u32,
    /// More than one of them is at work, by turns: what is counted in a window is not one CPU's alone.
    pub(super) by_turns: bool,
}

impl Group {
    /// Whether there is a table of it.
    pub(crate) fn has_lines(&self) -> bool {
        !self.lines.is_empty()
    }
}

impl Part {
    /// On a machine with one CPU.
    pub(super) const fn alone(name: &'static str) -> Self {
        Self { name, cpus: 1, by_turns: false }
    }

    /// On one with so many, of which all but one are off.
    pub(super) const fn of(name: &'static str, cpus: u32) -> Self {
        Self { name, cpus, by_turns: false }
    }

    /// On one with so many that take turns.
    pub(super) const fn by_turns(name: &'static str, cpus: u32) -> Self {
        Self { name, cpus, by_turns: true }
    }
}

/// A figure that is shown: an operation's, or the sum of several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) operations: &'static [&'static str],
    pub(super) metric: Metric,
    /// The modes that are shown; all of them if none is named.
    pub(super) modes: &'static [&'static str],
    /// By mode.
    pub(super) goals: &'static [(&'static str, f64)],
    /// What Linux's KVM takes, on the same emulator.
    pub(super) kvm: Option<Kvm>,
    /// What the best of the other table libraries takes.
    pub(super) peers: Option<f64>,
    /// What nobody can go below: measured on code that does no more than it must.
    pub(super) floor: Option<f64>,
}

/// What of an operation's cost is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    Instructions,
    Tlbis,
    SharedLines,
}

/// What KVM takes for an operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kvm {
    Instructions(f64),
    /// It does not do it.
    Never,
}

impl Line {
    /// The instructions of these operations together.
    pub(super) const fn of(operations: &'static [&'static str]) -> Self {
        Self { operations, metric: Metric::Instructions, modes: &[], goals: &[], kvm: None, peers: None, floor: None }
    }

    pub(super) const fn metric(self, metric: Metric) -> Self {
        Self { metric, ..self }
    }

    pub(super) const fn modes(self, modes: &'static [&'static str]) -> Self {
        Self { modes, ..self }
    }

    pub(super) const fn goals(self, goals: &'static [(&'static str, f64)]) -> Self {
        Self { goals, ..self }
    }

    pub(super) const fn kvm(self, instructions: f64) -> Self {
        Self { kvm: Some(Kvm::Instructions(instructions)), ..self }
    }

    pub(super) const fn never_in_kvm(self) -> Self {
        Self { kvm: Some(Kvm::Never), ..self }
    }

    pub(super) const fn peers(self, figure: f64) -> Self {
        Self { peers: Some(figure), ..self }
    }

    pub(super) const fn floor(self, instructions: f64) -> Self {
        Self { floor: Some(instructions), ..self }
    }
}

impl Metric {
    /// What is put behind an operation's name.
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Instructions => "",
            Self::Tlbis => ": TLBIs",
            Self::SharedLines => ": shared lines",
        }
    }
}
