//! What a plugin of QEMU's counts in the windows that the image opens: what kind of instructions they are, and which lines they write.
//!
//! It counts the instructions, too. They have to be as many as the PMU has counted, to the last one: the two are of different boots, and
//! by different means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::machine::events::{Cost, Point};
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
    pub(super) cache_operations: u64,
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
        Ok(counted)
    }

    fn read_line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["operation", ref numbers @ ..] => {
                let numbers = numbers.iter().map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
                let [operation, _, instructions, loads, stores, atomics, barriers, tlbis, ref rest @ ..] = numbers[..]
                else {
                    bail!("{} numbers", numbers.len())
                };
                let [cache_operations, locks, shared_lines] = rest[..] else { bail!("{} numbers", numbers.len()) };
                let counts = Counts {
                    instructions,
                    loads,
                    stores,
                    atomics,
                    barriers,
                    tlbis,
                    cache_operations,
                    locks,
                    shared_lines,
                };
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

    /// What was counted of an operation, without what its windows cost themselves; `None` if it has no windows of its own.
    ///
    /// # Errors
    ///
    /// The PMU has counted something else.
    pub(super) fn of(&self, measured: &Measured<'_>) -> Result<Option<Counts>> {
        let Measured { name, operation, minus, windows, instructions } = *measured;
        let Some(number) = operation else { return Ok(None) };
        let nothing = self.operations.get(&NOTHING).context("the plugin has not seen an empty window")?;
        let seen = |number| self.operations.get(&number).with_context(|| format!("the plugin has not seen {name}"));
        let (all, less) = (seen(number)?, minus.map(seen).transpose()?);
        let without = |of: fn(&Counts) -> u64| {
            let rest = of(all).checked_sub(windows * of(nothing) + less.map_or(0, of));
            rest.with_context(|| format!("{name} takes less than nothing"))
        };
        let counts = Counts {
            instructions: without(|counts| counts.instructions)?,
            loads: without(|counts| counts.loads)?,
            stores: without(|counts| counts.stores)?,
            atomics: without(|counts| counts.atomics)?,
            barriers: without(|counts| counts.barriers)?,
            tlbis: without(|counts| counts.tlbis)?,
            cache_operations: without(|counts| counts.cache_operations)?,
            locks: without(|counts| counts.locks)?,
            shared_lines: without(|counts| counts.shared_lines)?,
        };
        ensure!(
            counts.instructions == instructions,
            "{name} takes {instructions} instructions by the PMU and {} by the plugin",
            counts.instructions
        );
        Ok(Some(counts))
    }
}

/// What the PMU has counted of an operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured<'a> {
    name: &'a str,
    operation: Option<u64>,
    /// The one that is taken off.
    minus: Option<u64>,
    windows: u64,
    instructions: u64,
}

impl<'a> From<&'a Cost> for Measured<'a> {
    fn from(cost: &'a Cost) -> Self {
        let Cost { name, operation, minus, windows, instructions, .. } = cost;
        Self { name, operation: *operation, minus: *minus, windows: *windows, instructions: *instructions }
    }
}

impl<'a> From<&'a Point> for Measured<'a> {
    fn from(point: &'a Point) -> Self {
        let Point { curve, operation, windows, instructions, .. } = point;
        let (operation, windows, instructions) = (Some(*operation), *windows, *instructions);
        Self { name: curve, operation, minus: None, windows, instructions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "operation 0 1 8 0 1 0 2 0 0 0 0\nplace 0 0x40200000 8\n\
                        operation 4 10 1080 100 60 20 40 10 0 10 30\nplace 4 0x40200004 10\n";

    fn measured(operation: Option<u64>, windows: u64, instructions: u64) -> Measured<'static> {
        Measured { name: "a", operation, minus: None, windows, instructions }
    }

    #[test]
    fn what_windows_cost_is_taken_off() {
        let counted = Counted::read(TEXT).unwrap();
        let counts = counted.of(&measured(Some(4), 10, 1000)).unwrap().unwrap();
        assert_eq!((counts.stores, counts.barriers, counts.tlbis, counts.shared_lines), (50, 20, 10, 30));
        assert_eq!(counted.of(&measured(None, 0, 5)).unwrap(), None);
        assert_eq!(counted.places[&4][&0x4020_0004], 10);
    }

    #[test]
    fn a_difference_is_one_of_every_kind() {
        let counted = Counted::read(&format!("{TEXT}operation 5 10 1100 105 60 20 40 10 0 10 30\n")).unwrap();
        let difference = Measured { minus: Some(4), ..measured(Some(5), 0, 20) };
        let counts = counted.of(&difference).unwrap().unwrap();
        assert_eq!((counts.loads, counts.stores, counts.locks), (5, 0, 0));
        assert!(counted.of(&Measured { minus: Some(5), ..measured(Some(4), 0, 0) }).is_err());
    }

    #[test]
    fn one_instruction_more_or_less_is_an_error() {
        let counted = Counted::read(TEXT).unwrap();
        assert!(counted.of(&measured(Some(4), 10, 999)).is_err());
        assert!(counted.of(&measured(Some(4), 9, 1000)).is_err());
        assert!(counted.of(&measured(Some(5), 1, 1)).is_err());
    }

    #[test]
    fn what_is_no_count_is_an_error() {
        for text in ["operation 0 1", "place 1 zz 3", "what"] {
            assert!(Counted::read(text).is_err(), "{text}");
        }
        let without_nothing = Counted::read("operation 4 1 8 0 1 0 2 0 0 0 0\n").unwrap();
        assert!(without_nothing.of(&measured(Some(4), 0, 8)).is_err());
    }
}
