//! One boot of an EL2 image under QEMU: started, watched until it ends, its logs kept.
//!
//! The run's folder is QEMU's working directory and holds, afterwards: `guest.log` (the guest's
//! console), `defmt.bin` and `hypervisor.log` (the image's log, raw and decoded), `events.jsonl`
//! (what the image reported), `qemu.log` (QEMU's own complaints) and `command.txt`.

pub(crate) mod arguments;
mod defmt_log;
mod ending;
pub(crate) mod events;
mod tail;
pub(crate) mod watchdog;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::arguments::Machine;
pub(crate) use self::ending::Ending;
use self::events::Event;
use self::tail::Tail;
use self::watchdog::{Limits, Watchdog};
use crate::process;

/// How often the machine is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// A finished boot.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) ending: Ending,
    pub(crate) events: Vec<Event>,
    pub(crate) elapsed: Duration,
    pub(crate) logs: Logs,
}

impl Boot {
    /// What the image said in trouble: its panic, or the last error it logged.
    pub(crate) fn last_words(&self) -> Option<String> {
        let panic = self.events.iter().find_map(|event| match event {
            Event::Panic(panic) => Some(format!("CPU {} {}", panic.cpu, panic.message.replace('\n', " "))),
            _ => None,
        });
        panic.or_else(|| self.logs.last_error())
    }
}

/// Where a run keeps its files.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    pub(crate) folder: PathBuf,
}

impl Logs {
    /// Makes the folder, or empties it of an earlier run's files.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder: folder.to_path_buf() })
    }

    pub(crate) fn guest(&self) -> PathBuf {
        self.folder.join(arguments::GUEST_LOG)
    }

    pub(crate) fn hypervisor(&self) -> PathBuf {
        self.folder.join("hypervisor.log")
    }

    fn defmt(&self) -> PathBuf {
        self.folder.join("defmt.bin")
    }

    fn events(&self) -> PathBuf {
        self.folder.join("events.jsonl")
    }

    fn qemu(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// The guest's console, as far as it is text.
    pub(crate) fn read_guest(&self) -> String {
        read_text(&self.guest())
    }

    /// The last error the image logged.
    fn last_error(&self) -> Option<String> {
        let log = read_text(&self.hypervisor());
        log.lines().rfind(|line| line.contains("ERROR")).map(str::to_owned)
    }

    /// QEMU's first complaint.
    pub(crate) fn emulator_complaint(&self) -> Option<String> {
        read_text(&self.qemu()).lines().find(|line| !line.trim().is_empty()).map(str::to_owned)
    }
}

/// A file that is not there is empty: the machine may have died before it was made.
fn read_text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Boots the machine and waits for its end, telling `observer` every event as it comes.
///
/// # Errors
///
/// QEMU cannot be started, the image wrote an event that is none, or a log cannot be kept. What
/// the image and its guest did wrong is no error here but in the [`Boot`].
pub(crate) fn boot(machine: &Machine, logs: Logs, limits: Limits, mut observer: impl FnMut(&Event)) -> Result<Boot> {
    let started = Instant::now();
    let mut events = Vec::new();
    let ending = watch(machine, &logs, limits, |event| {
        observer(&event);
        events.push(event);
    });
    // Whatever happened: the log tells why.
    defmt_log::decode(&machine.image, &logs.defmt(), &logs.hypervisor())
        .context("cannot decode the hypervisor's log")?;
    Ok(Boot { ending: ending?, events, elapsed: started.elapsed(), logs })
}

/// Runs the machine to its end.
fn watch(machine: &Machine, logs: &Logs, limits: Limits, mut observer: impl FnMut(Event)) -> Result<Ending> {
    let mut running = Running::start(machine, logs)?;
    let mut tail = Tail::new(logs.events());
    let mut watchdog = Watchdog::new(limits, Instant::now());
    loop {
        // The state is read before the files: what was written before the end is not missed.
        let ended = running.poll()?;
        for line in tail.lines()? {
            observer(events::parse(&line)?);
        }
        if let Some(ending) = ended {
            return Ok(ending);
        }
        let console = fs::metadata(logs.guest()).map_or(0, |file| file.len());
        if let Some(hang) = watchdog.observe(Instant::now(), tail.offset() + console) {
            return Ok(Ending::Hung(hang));
        }
        thread::sleep(INTERVAL);
    }
}

/// A QEMU that does not outlive us.
struct Running(Child);

impl Running {
    fn start(machine: &Machine, logs: &Logs) -> Result<Self> {
        let complaints = File::create(logs.qemu())?;
        let mut command = Command::new(&machine.emulator);
        command
            .args(machine.command_line())
            .current_dir(&logs.folder)
            .stdin(Stdio::null())
            .stdout(complaints.try_clone()?)
            .stderr(complaints);
        fs::write(logs.folder.join("command.txt"), process::describe(&command) + "\n")?;
        let child = command.spawn().with_context(|| format!("cannot start {}", machine.emulator.display()))?;
        Ok(Self(child))
    }

    fn poll(&mut self) -> Result<Option<Ending>> {
        Ok(self.0.try_wait()?.map(ending_of))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ending_of(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, signal) => Ending::Signalled(signal.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::watchdog::Hang;
    use super::*;

    /// A shell script in QEMU's place. The image is no ELF file: nothing is logged in these tests.
    fn boot_script(script: &str, limits: Limits) -> Result<Boot> {
        boot_script_in(&tempfile::tempdir().unwrap(), script, limits)
    }

    fn boot_script_in(folder: &TempDir, script: &str, limits: Limits) -> Result<Boot> {
        let emulator = folder.path().join("qemu");
        fs::write(&emulator, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&emulator, fs::Permissions::from_mode(0o755)).unwrap();
        let machine = Machine {
            emulator,
            image: "none".into(),
            cpu: "max".into(),
            cpus: 1,
            memory_mib: 64,
            arguments: Vec::new(),
            blobs: Vec::new(),
            tracer: None,
            icount: false,
        };
        let logs = Logs::create(&folder.path().join("run")).unwrap();
        boot(&machine, logs, limits, |_| ())
    }

    const LIMITS: Limits = Limits { silence: Duration::from_secs(20), total: Duration::from_secs(20) };

    #[test]
    fn every_event_is_seen_even_one_written_just_before_the_end() {
        let boot = boot_script(
            r#"echo '{"event":"progress","phase":"boot","seconds":1}' > events.jsonl
               sleep 0.3
               echo '{"event":"report","outcome":"powered-off"}' >> events.jsonl"#,
            LIMITS,
        )
        .unwrap();
        assert_eq!(boot.ending, Ending::Exited(0));
        assert_eq!(boot.events.len(), 2);
    }

    #[test]
    fn exit_codes_and_signals_are_told_apart() {
        assert_eq!(boot_script("exit 2", LIMITS).unwrap().ending, Ending::Exited(2));
        assert_eq!(boot_script("kill -9 $$", LIMITS).unwrap().ending, Ending::Signalled(9));
    }

    #[test]
    fn a_panic_leaves_its_words_on_one_line() {
        let script = r#"printf '%s\n' '{"event":"panic","cpu":2,"message":"panicked at a.rs:\nwhy"}' > events.jsonl
            exit 2"#;
        let boot = boot_script(script, LIMITS).unwrap();
        assert_eq!(boot.ending, Ending::Exited(2));
        assert_eq!(boot.last_words().unwrap(), "CPU 2 panicked at a.rs: why");
    }

    #[test]
    fn a_silent_machine_is_ended() {
        let silence = Duration::from_millis(300);
        let boot = boot_script("exec sleep 20", Limits { silence, ..LIMITS }).unwrap();
        assert_eq!(boot.ending, Ending::Hung(Hang::Silent(silence)));
        assert!(boot.elapsed < Duration::from_secs(10));
    }

    #[test]
    fn an_event_that_is_none_is_an_error() {
        let error = boot_script("echo nonsense > events.jsonl; exec sleep 20", LIMITS).unwrap_err();
        assert!(format!("{error:#}").contains("nonsense"), "{error:#}");
    }

    #[test]
    fn the_emulators_complaint_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo 'unable to find CPU model' >&2; exit 1";
        let boot = boot_script_in(&folder, script, LIMITS).unwrap();
        assert_eq!(boot.ending, Ending::Exited(1));
        assert_eq!(boot.logs.emulator_complaint().unwrap(), "unable to find CPU model");
    }
}
