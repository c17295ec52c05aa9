//! What a plugin of QEMU's counts in the windows that the image opens: what kind of instructions they are, and which lines they write.
//!
//! It counts the instructions, too. They have to be as many as the PMU has counted, to the last one: the two are of different boots, and
//! by different means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::machine::events::Cost;
use crate::prerequisites::{Qemu, qemu_with_plugins};
use crate::trace::build_plugin;
use crate::workspace::Workspace;

/// The operation that is an empty window: what a window itself costs.
const NOTHING: u64 = 0;

/// A QEMU and a plugin that counts.
#[derive(Debug)]
pub(crate) struct Counting {
    pub(super) qemu: Qemu,
    pub(super) plugin: PathBuf,
}

impl Counting {
    /// Finds the one and builds the other.
    ///
    /// # Errors
    ///
    /// Why that is not to be had here, in one line.
    pub(crate) fn prepare(workspace: &Workspace, log: Option<&Path>) -> Result<Self> {
        Ok(Self { qemu: qemu_with_plugins(workspace)?, plugin: build_plugin(workspace, log)? })
    }
}

/// What was counted of an operation, for all of its units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    instructions: u64,
    pub(super) loads: u64,
    pub(super) stores: u64,
    pub(super) atomics: u64,
    pub(super) barriers: u64,
    pub(super) tlbis: u64,
    pub(super) locks: u64,
    pub(super) shared_lines: u64,
}

/// How often the instruction at each address was executed, by operation.
pub(super) type Places = BTreeMap<u64, BTreeMap<u64, u64>>;

/// A boot's.
#[derive(Debug, Default)]
pub(super) struct Counted {
    operations: BTreeMap<u64, Counts>,
    pub(super) places: Places,
}

impl Counted {
    /// Reads what the plugin has written.
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut counted = Self::default();
        for line in text.lines() {
            counted.read_line(line).with_context(|| format!("the plugin wrote `{line}`, which is no count"))?;
        }
        ensure!(counted.operations.contains_key(&NOTHING), "the plugin has counted nothing");
        Ok(counted)
    }

    fn read_line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["operation", ref numbers @ ..] => {
                let numbers = numbers.iter().map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
                let [operation, _, instructions, loads, stores, atomics, barriers, tlbis, locks, shared_lines] =
                    numbers[..]
                else {
                    bail!("{} numbers", numbers.len())
                };
                let counts = Counts { instructions, loads, stores, atomics, barriers, tlbis, locks, shared_lines };
                self.operations.insert(operation, counts);
            }
            ["place", operation, place, times] => {
                let place = u64::from_str_radix(place.trim_start_matches("0x"), 16)?;
                self.places.entry(operation.parse()?).or_default().insert(place, times.parse()?);
            }
            _ => bail!("neither an operation nor a place"),
        }
        Ok(())
    }

    /// What was counted of the operation that costs this, without what its windows cost themselves; `None` if it has no windows of its own.
    ///
    /// # Errors
    ///
    /// The PMU has counted something else.
    pub(super) fn of(&self, cost: &Cost) -> Result<Option<Counts>> {
        let Some(number) = cost.operation else { return Ok(None) };
        let nothing = self.operations.get(&NOTHING).copied().unwrap_or_default();
        let all = self.operations.get(&number).with_context(|| format!("the plugin has not seen {}", cost.name))?;
        let without = |of: fn(&Counts) -> u64| {
            let rest = of(all).checked_sub(cost.windows * of(&nothing));
            rest.with_context(|| format!("{} takes less than nothing", cost.name))
        };
        let counts = Counts {
            instructions: without(|counts| counts.instructions)?,
            loads: without(|counts| counts.loads)?,
            stores: without(|counts| counts.stores)?,
            atomics: without(|counts| counts.atomics)?,
            barriers: without(|counts| counts.barriers)?,
            tlbis: without(|counts| counts.tlbis)?,
            locks: without(|counts| counts.locks)?,
            shared_lines: without(|counts| counts.shared_lines)?,
        };
        ensure!(
            counts.instructions == cost.instructions,
            "{} ({}) takes {} instructions by the PMU and {} by the plugin",
            cost.name,
            cost.mode,
            cost.instructions,
            counts.instructions
        );
        Ok(Some(counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "operation 0 1 8 0 1 0 2 0 0 0\nplace 0 0x40200000 8\n\
                        operation 4 10 1080 100 60 20 40 10 10 30\nplace 4 0x40200004 10\n";

    fn cost(operation: Option<u64>, windows: u64, instructions: u64) -> Cost {
        Cost {
            name: "a".to_owned(),
            mode: "b".to_owned(),
            per: "page".to_owned(),
            units: 10.try_into().unwrap(),
            instructions,
            operation,
            windows,
        }
    }

    #[test]
    fn what_windows_cost_is_taken_off() {
        let counted = Counted::read(TEXT).unwrap();
        let counts = counted.of(&cost(Some(4), 10, 1000)).unwrap().unwrap();
        assert_eq!((counts.stores, counts.barriers, counts.tlbis, counts.shared_lines), (50, 20, 10, 30));
        assert_eq!(counted.of(&cost(None, 0, 5)).unwrap(), None);
        assert_eq!(counted.places[&4][&0x4020_0004], 10);
    }

    #[test]
    fn one_instruction_more_or_less_is_an_error() {
        let counted = Counted::read(TEXT).unwrap();
        assert!(counted.of(&cost(Some(4), 10, 999)).is_err());
        assert!(counted.of(&cost(Some(4), 9, 1000)).is_err());
        assert!(counted.of(&cost(Some(5), 1, 1)).is_err());
    }

    #[test]
    fn what_is_no_count_is_an_error() {
        for text in ["", "operation 0 1", "place 1 zz 3", "what", "operation 1 1 8 0 1 0 2 0 0 0"] {
            assert!(Counted::read(text).is_err(), "{text}");
        }
    }
}
