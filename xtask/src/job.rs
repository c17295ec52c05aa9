//! The main job: the hypervisor with a guest, booted once and judged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::guest::console::Console;
use crate::guest::{Guest, Workload, debian_initrd};
use crate::machine::arguments::{Machine, Tracer, blob_mib, place_blobs};
use crate::machine::events::Event;
use crate::machine::watchdog::Limits;
use crate::machine::{self, Boot, Logs};
use crate::prerequisites::{DebianGuest, Qemu, TargetStd};
use crate::process;
use crate::progress::ProgressLine;
use crate::report::{self, Host, Report};
use crate::verdict::{self, Evidence, Expected, Failure, Floor};
use crate::workspace::Workspace;

/// The image of the main job.
const IMAGE: &str = "hypervisor";
/// RAM for the hypervisor itself: image, tables, metadata, spare frames.
const OWN_MIB: u64 = 256;
/// Least RAM in which Debian's initrd unpacks: tmpfs takes half of what Linux has.
const DEBIAN_MINIMUM_MIB: u64 = 448;
/// From here on a Debian run has had the time to show what it must.
const FULL_RUN_SECONDS: u64 = 20;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Names the folder with the logs.
    pub(crate) name: String,
    pub(crate) guest: Guest,
    pub(crate) cpu: String,
    pub(crate) vcpus: u32,
    /// The guest's; each kind of guest has its default.
    pub(crate) memory_mib: Option<u64>,
    pub(crate) seconds: u64,
    pub(crate) seed: u64,
    /// How stores are tracked; the library chooses if this does not.
    pub(crate) tracking: Option<Tracking>,
    /// Whether RAM is mapped by 2 MiB blocks where it can be.
    pub(crate) blocks: bool,
}

/// How the dirty log learns of stores: the library's ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tracking {
    /// By permission faults, on any CPU
    WriteProtect,
    /// By the hardware, on CPUs that manage dirty state
    Hardware,
    /// By a fault in each table, and then by the hardware
    Adaptive,
}

impl Tracking {
    /// As the image and `--tracking` have it.
    fn name(self) -> &'static str {
        match self {
            Self::WriteProtect => "write-protect",
            Self::Hardware => "hardware",
            Self::Adaptive => "adaptive",
        }
    }
}

/// A job that was run, well or badly.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) report: Report,
    pub(crate) failures: Vec<Failure>,
    pub(crate) folder: PathBuf,
}

/// Builds the EL2 images, with Cargo's output on our terminal.
pub(crate) fn build_images(workspace: &Workspace, target: &TargetStd) -> Result<()> {
    let mut command = target.cargo(workspace, "build");
    command.args(["--release", "--package", "stage2-tests-qemu"]);
    process::show(&mut command).context("cannot build the EL2 images")
}

impl Job {
    /// A Debian run of the usual size.
    pub(crate) fn debian(name: &str, cpu: &str, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            guest: Guest::Debian,
            cpu: cpu.to_owned(),
            vcpus: 3,
            memory_mib: None,
            seconds: FULL_RUN_SECONDS,
            seed,
            tracking: None,
            blocks: true,
        }
    }

    /// Boots the image, which must have been built, and judges the run. The report is kept with
    /// the logs.
    ///
    /// # Errors
    ///
    /// The host failed. What went wrong on the machine is
    /// in [`Finished::failures`].
    pub(crate) fn execute(&self, workspace: &Workspace, qemu: &Qemu) -> Result<Finished> {
        self.execute_traced(workspace, qemu, None)
    }

    /// The same, with a tracer in the machine.
    pub(crate) fn execute_traced(
        &self,
        workspace: &Workspace,
        qemu: &Qemu,
        tracer: Option<Tracer>,
    ) -> Result<Finished> {
        let logs = Logs::create(&workspace.run_folder(&self.name))?;
        let files = self.guest_files(workspace, &logs.folder)?;
        let machine = Machine { tracer, ..self.machine(workspace, qemu, files.as_ref())? };
        // Traced, the CPUs take turns: less is done, in more time.
        let (patience, expected) = match machine.tracer {
            Some(_) => (4, Expected { floor: Floor::default(), ..self.expected() }),
            None => (1, self.expected()),
        };
        let limits = Limits {
            silence: patience * Duration::from_secs(30),
            total: patience * Duration::from_secs(180 + 3 * self.seconds),
        };
        let mut line = ProgressLine::new(format!("{} on {}", self.guest.name(), self.cpu));
        let boot = machine::boot(&machine, logs, limits, |event| line.show(event))?;
        drop(line);
        self.judge(&boot, qemu, &expected)
    }

    /// An error if the job is impossible as asked for.
    pub(crate) fn check(&self, qemu: &Qemu) -> Result<()> {
        qemu.check_cpu(&self.cpu)?;
        ensure!(
            self.guest != Guest::Debian || self.memory_mib() >= DEBIAN_MINIMUM_MIB,
            "Debian's initrd needs a guest of {DEBIAN_MINIMUM_MIB} MiB or more"
        );
        Ok(())
    }

    /// Kernel and initrd, for a guest that has any.
    fn guest_files(&self, workspace: &Workspace, folder: &Path) -> Result<Option<GuestFiles>> {
        match &self.guest {
            Guest::Builtin => Ok(None),
            Guest::Debian => {
                let debian = DebianGuest::ensure(workspace)?;
                let initrd = folder.join("initrd");
                let workload = Workload { seconds: self.seconds, seed: self.seed };
                debian_initrd(&debian.initrd, workload, &initrd)?;
                Ok(Some(GuestFiles { kernel: debian.kernel, initrd }))
            }
            Guest::Image { kernel, initrd } => Ok(Some(GuestFiles { kernel: kernel.clone(), initrd: initrd.clone() })),
        }
    }

    fn machine(&self, workspace: &Workspace, qemu: &Qemu, files: Option<&GuestFiles>) -> Result<Machine> {
        let files: Vec<&Path> = files.iter().flat_map(|files| [files.kernel.as_path(), &files.initrd]).collect();
        // The replica is as large as the guest.
        let memory_mib = 2 * self.memory_mib() + OWN_MIB + blob_mib(&files)?;
        let blobs = place_blobs(&files, memory_mib)?;
        let mut arguments = vec![
            IMAGE.to_owned(),
            format!("guest={}", if blobs.is_empty() { "builtin" } else { "linux" }),
            format!("vcpus={}", self.vcpus),
            format!("memory={}", self.memory_mib()),
            format!("seconds={}", self.seconds),
            format!("seed={}", self.seed),
            format!("blocks={}", u8::from(self.blocks)),
        ];
        arguments.extend(self.tracking.map(|tracking| format!("tracking={}", tracking.name())));
        for (name, blob) in ["kernel", "initrd"].iter().zip(&blobs) {
            arguments.push(format!("{name}={:#x}:{:#x}", blob.address, blob.length));
        }
        Ok(Machine {
            emulator: qemu.program.clone(),
            image: workspace.image(IMAGE),
            cpu: self.cpu.clone(),
            // The last one keeps house.
            cpus: self.vcpus + 1,
            memory_mib,
            arguments,
            blobs,
            tracer: None,
            icount: false,
        })
    }

    fn judge(&self, boot: &Boot, qemu: &Qemu, expected: &Expected) -> Result<Finished> {
        let console = match self.guest {
            Guest::Builtin => Console::default(),
            _ => Console::read(&boot.logs.read_guest()),
        };
        let image_report = boot.events.iter().rev().find_map(|event| match event {
            Event::Report(report) => Some(report.clone()),
            _ => None,
        });
        let reported = image_report.is_some();
        let mut report = Report::new(image_report, boot.ending);
        report.add_console(&console);
        let evidence = Evidence {
            ending: boot.ending,
            report: reported.then_some(&report),
            guest_trouble: console.trouble,
            last_words: boot.last_words(),
            emulator_complaint: boot.logs.emulator_complaint(),
        };
        let failures = verdict::judge(&evidence, expected);
        let host = Host {
            emulator: format!("QEMU {}", qemu.version),
            cpu: self.cpu.clone(),
            guest: self.guest.name(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib(),
            seconds: self.seconds,
            seed: self.seed,
            blocks: self.blocks,
            wall_seconds: (10.0 * boot.elapsed.as_secs_f64()).round() / 10.0,
        };
        let lines: Vec<String> = failures.iter().map(Failure::to_string).collect();
        report.add_host(&host, &lines)?;
        let folder = boot.logs.folder.clone();
        report::write(&folder.join("report.json"), &report)?;
        Ok(Finished { report, failures, folder })
    }

    fn expected(&self) -> Expected {
        let full = self.guest == Guest::Debian && self.seconds >= FULL_RUN_SECONDS;
        let floor = match full {
            true => Floor {
                dirty_rounds: 100,
                tables_freed: 1000,
                equal: 3,
                blocks_kept: if self.blocks { 0.99 } else { 0.0 },
            },
            false => Floor::default(),
        };
        let checks = !matches!(self.guest, Guest::Image { .. });
        Expected { vcpus: self.vcpus, checks, floor }
    }

    fn memory_mib(&self) -> u64 {
        self.memory_mib.unwrap_or(match self.guest {
            Guest::Builtin => 256,
            Guest::Debian | Guest::Image { .. } => 512,
        })
    }
}

struct GuestFiles {
    kernel: PathBuf,
    initrd: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn workspace(folder: &Path) -> Workspace {
        Workspace { root: folder.to_path_buf(), target: folder.join("target") }
    }

    fn qemu() -> Qemu {
        Qemu { program: "qemu".into(), version: "7.2.0".to_owned() }
    }

    #[test]
    fn the_builtin_guest_needs_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = workspace(folder.path());
        let job = Job { guest: Guest::Builtin, ..Job::debian("test", "cortex-a72", 9) };
        assert!(job.guest_files(&workspace, folder.path()).unwrap().is_none());
        let machine = job.machine(&workspace, &qemu(), None).unwrap();
        assert_eq!(
            machine.arguments,
            ["hypervisor", "guest=builtin", "vcpus=3", "memory=256", "seconds=20", "seed=9", "blocks=1"]
        );
        assert_eq!((machine.cpus, machine.memory_mib), (4, 2 * 256 + OWN_MIB));
    }

    #[test]
    fn how_memory_is_mapped_and_logged_is_told_to_the_image() {
        let folder = tempfile::tempdir().unwrap();
        for tracking in Tracking::value_variants() {
            let value = tracking.to_possible_value().unwrap();
            assert_eq!(value.get_name(), tracking.name(), "the option has the image's words");
            let job = Job { blocks: false, tracking: Some(*tracking), ..Job::debian("test", "max", 1) };
            let machine = job.machine(&workspace(folder.path()), &qemu(), None).unwrap();
            assert_eq!(machine.arguments[6..], ["blocks=0".to_owned(), format!("tracking={}", tracking.name())]);
        }
    }

    #[test]
    fn only_a_full_run_with_blocks_has_to_show_that_they_are_kept() {
        let full = Job::debian("test", "max", 1);
        assert_eq!(full.expected().floor.blocks_kept, 0.99);
        assert_eq!(Job { blocks: false, ..full.clone() }.expected().floor.blocks_kept, 0.0);
        assert_eq!(Job { seconds: 5, ..full }.expected().floor, Floor::default());
    }

    #[test]
    fn a_kernel_and_an_initrd_are_told_to_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = workspace(folder.path());
        let (kernel, initrd) = (folder.path().join("linux"), folder.path().join("initrd"));
        fs::write(&kernel, [0; 100]).unwrap();
        fs::write(&initrd, [0; 10]).unwrap();
        let files = GuestFiles { kernel, initrd };
        let job = Job::debian("test", "max", 1);
        let machine = job.machine(&workspace, &qemu(), Some(&files)).unwrap();
        // 2 * 512 + 256 + 2 * 2 MiB of RAM, from 1 GiB on.
        assert_eq!(machine.arguments[1], "guest=linux");
        assert_eq!(machine.arguments[7..], ["kernel=0x90000000:0x64", "initrd=0x90200000:0xa"]);
    }
}
