//! Other programs: started, waited for, and turned into one clear line when they fail.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, ensure};

/// The command as one would type it, for messages.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs it with its output on our terminal; an error unless it exits with 0.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{}`", describe(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", describe(command));
    Ok(())
}

/// Runs it and keeps its output; an error if it cannot be started, whatever its exit code.
pub(crate) fn capture(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", describe(command)))
}

/// Runs it quietly and gives its standard output; an error, with the last line it complained
/// with, unless it exits with 0.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = capture(command)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{}` failed ({}): {}",
        describe(command),
        output.status,
        complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing"),
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it with both output streams at the end of the file `log`; gives what they said.
pub(crate) fn log_to(command: &mut Command, log: &Path) -> Result<(ExitStatus, String)> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(file, "$ {}", describe(command))?;
    let start = file.metadata()?.len();
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    let mut reader = File::open(log)?;
    reader.seek(SeekFrom::Start(start))?;
    let mut output = Vec::new();
    reader.read_to_end(&mut output)?;
    Ok((status, String::from_utf8_lossy(&output).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_is_one_line_with_the_last_complaint() {
        let error = read(&mut shell("echo first >&2; echo last >&2; exit 3")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("last") && !text.contains("\nfirst"), "{text}");
        assert!(read(&mut Command::new("/no/such/program")).is_err());
        assert_eq!(read(&mut shell("echo good")).unwrap(), "good\n");
    }

    #[test]
    fn a_log_collects_commands_but_each_gets_its_own_output() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        log_to(&mut shell("echo one"), &log).unwrap();
        let (status, output) = log_to(&mut shell("echo two >&2; exit 1"), &log).unwrap();
        assert_eq!((status.code(), output.as_str()), (Some(1), "two\n"));
        assert!(fs::read_to_string(&log).unwrap().contains("one\n$ sh -c"));
    }
}
