//! `cargo test`, run and counted.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::runner::Tally;
use crate::process;

/// Runs a `cargo test` command and counts its tests.
pub(super) fn run(command: &mut Command, log: &Path) -> Result<Tally> {
    let (status, output) = process::log_to(command, log)?;
    let tally = count(&output);
    ensure!(status.success() || tally.failed != 0, "the tests do not build, or crashed");
    ensure!(tally.passed + tally.failed != 0, "there is no test");
    Ok(tally)
}

/// Adds up the lines `test result: ok. 12 passed; 0 failed; ...`.
fn count(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines().filter(|line| line.starts_with("test result: ")) {
        tally.passed += number_before(line, " passed;");
        tally.failed += number_before(line, " failed;");
    }
    tally
}

fn number_before(line: &str, word: &str) -> u64 {
    let number = line.split_once(word).and_then(|(before, _)| before.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_programs_are_added() {
        let output = "\
running 2 tests
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: FAILED. 10 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out
";
        assert_eq!(count(output), Tally { passed: 12, failed: 3, note: String::new() });
    }

    #[test]
    fn odd_lines_count_nothing() {
        assert_eq!(count("test result: ok. many passed; few failed;\ntest result: \n"), Tally::default());
    }
}
