//! The machine and QEMU's command line for it.
//!
//! RAM begins at [`RAM_BASE`]; QEMU puts its device tree there and the image lies above. Guest
//! blobs go to the top of RAM, each at the next 2 MiB boundary below the last; the image learns
//! their addresses from its arguments.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the `virt` machine's RAM begins.
const RAM_BASE: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;
/// Blobs begin at multiples of a level 2 block.
const BLOB_ALIGNMENT: u64 = 2 * MIB;

/// The guest's console, in the run's folder.
pub(super) const GUEST_LOG: &str = "guest.log";

/// A machine that is ready to boot.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) emulator: PathBuf,
    /// The ELF file.
    pub(crate) image: PathBuf,
    pub(crate) cpu: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    /// The image's semihosting command line: the program's name, then `key=value`s.
    pub(crate) arguments: Vec<String>,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) tracer: Option<Tracer>,
    /// Time is the number of instructions: they can be counted exactly. The CPUs take turns then, too.
    pub(crate) icount: bool,
}

/// A plugin that tells what EL2 does. The CPUs take turns then, in one thread: what they did has one order.
#[derive(Debug, Clone)]
pub(crate) struct Tracer {
    pub(crate) plugin: PathBuf,
    pub(crate) told: Told,
}

/// What the plugin tells.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// Everything that happens, to the socket it connects to.
    Events(PathBuf),
    /// What is executed in the windows that the image opens, at the end, in this file.
    Counts(PathBuf),
}

/// A file put into RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) file: PathBuf,
    pub(crate) address: u64,
    pub(crate) length: u64,
}

impl Machine {
    /// QEMU's arguments; file names without a folder are relative to the run's folder.
    pub(crate) fn command_line(&self) -> Vec<OsString> {
        let threads = if self.tracer.is_some() || self.icount { "single" } else { "multi" };
        let options = [
            ("-M", "virt,virtualization=on,gic-version=3,its=off".to_owned()),
            ("-cpu", cpu_option(&self.cpu)),
            ("-smp", self.cpus.to_string()),
            ("-m", format!("{}M", self.memory_mib)),
            ("-accel", format!("tcg,thread={threads}")),
            ("-serial", format!("file:{GUEST_LOG}")),
            ("-semihosting-config", semihosting_option(&self.arguments)),
        ];
        // Without `-nodefaults` QEMU looks for a network card's boot ROM, which may be missing.
        let mut line: Vec<OsString> = vec!["-nodefaults".into(), "-no-reboot".into()];
        line.extend(["-display".into(), "none".into()]);
        for (name, value) in options {
            line.extend([name.into(), value.into()]);
        }
        line.extend(["-kernel".into(), self.image.clone().into()]);
        if self.icount {
            // One nanosecond each.
            line.extend(["-icount".into(), "shift=0".into()]);
        }
        if let Some(Tracer { plugin, told }) = &self.tracer {
            let (name, place) = match told {
                Told::Events(socket) => ("socket", socket),
                Told::Counts(file) => ("counts", file),
            };
            let [plugin, place] = [plugin, place].map(|path| escape(&path.display().to_string()));
            line.extend(["-plugin".into(), format!("{plugin},{name}={place}").into()]);
        }
        for blob in &self.blobs {
            let file = escape(&blob.file.display().to_string());
            let loader = format!("loader,file={file},addr={:#x},force-raw=on", blob.address);
            line.extend(["-device".into(), loader.into()]);
        }
        line
    }
}

/// Lays files out at the top of a RAM of `memory_mib`, the first of them lowest.
///
/// # Errors
///
/// A file cannot be read, or they do not fit.
pub(crate) fn place_blobs(files: &[&Path], memory_mib: u64) -> Result<Vec<Blob>> {
    let mut end = RAM_BASE + memory_mib * MIB;
    let mut blobs = Vec::new();
    for file in files.iter().rev() {
        let length = file_length(file)?;
        let address = end
            .checked_sub(length)
            .map(|address| address - address % BLOB_ALIGNMENT)
            .filter(|&address| address > RAM_BASE)
            .with_context(|| format!("{} does not fit into {memory_mib} MiB", file.display()))?;
        blobs.push(Blob { file: file.to_path_buf(), address, length });
        end = address;
    }
    blobs.reverse();
    Ok(blobs)
}

/// MiB that hold these files, each rounded up to the blobs' alignment.
pub(crate) fn blob_mib(files: &[&Path]) -> Result<u64> {
    let mut total = 0;
    for file in files {
        total += file_length(file)?.next_multiple_of(BLOB_ALIGNMENT) / MIB;
    }
    Ok(total)
}

fn file_length(file: &Path) -> Result<u64> {
    let metadata = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(metadata.len())
}

/// Under `max` Linux signs its return addresses, and QEMU's model of the architected cipher
/// (QARMA) makes it boot three to four times slower than with an implementation-defined one.
fn cpu_option(cpu: &str) -> String {
    match cpu {
        "max" => "max,pauth-impdef=on".to_owned(),
        other => other.to_owned(),
    }
}

fn semihosting_option(arguments: &[String]) -> String {
    let mut option = "enable=on,target=native".to_owned();
    for argument in arguments {
        option += ",arg=";
        option += &escape(argument);
    }
    option
}

/// QEMU splits option strings at commas; a doubled one stands for itself.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            emulator: "qemu-system-aarch64".into(),
            image: "/t/hypervisor".into(),
            cpu: "cortex-a72".into(),
            cpus: 4,
            memory_mib: 1024,
            arguments: vec!["hypervisor".into(), "guest=linux".into(), "seed=1".into()],
            blobs: vec![Blob { file: "/a,b/linux".into(), address: 0x7c00_0000, length: 5 }],
            tracer: None,
            icount: false,
        }
    }

    fn words(machine: &Machine) -> String {
        let line = machine.command_line();
        line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_command_line_is_complete() {
        assert_eq!(
            words(&machine()),
            "-nodefaults -no-reboot -display none \
             -M virt,virtualization=on,gic-version=3,its=off -cpu cortex-a72 -smp 4 -m 1024M \
             -accel tcg,thread=multi -serial file:guest.log \
             -semihosting-config enable=on,target=native,arg=hypervisor,arg=guest=linux,arg=seed=1 \
             -kernel /t/hypervisor \
             -device loader,file=/a,,b/linux,addr=0x7c000000,force-raw=on"
        );
    }

    #[test]
    fn a_traced_machine_has_one_thread_for_all_cpus() {
        let tracer = Tracer { plugin: "/t/a,b.so".into(), told: Told::Events("/tmp/trace".into()) };
        let line = words(&Machine { tracer: Some(tracer), ..machine() });
        assert!(line.contains(" -accel tcg,thread=single "), "{line}");
        assert!(line.contains(" -plugin /t/a,,b.so,socket=/tmp/trace "), "{line}");
    }

    #[test]
    fn a_machine_that_counts_has_one_thread_for_all_cpus() {
        let line = words(&Machine { icount: true, ..machine() });
        assert!(line.contains(" -accel tcg,thread=single ") && line.contains(" -icount shift=0"), "{line}");
    }

    #[test]
    fn max_uses_the_fast_pointer_authentication() {
        let line = words(&Machine { cpu: "max".into(), ..machine() });
        assert!(line.contains("-cpu max,pauth-impdef=on "));
    }

    #[test]
    fn blobs_fill_ram_from_the_top() {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, initrd) = (folder.path().join("linux"), folder.path().join("initrd"));
        fs::write(&kernel, vec![0; 3 << 20]).unwrap();
        fs::write(&initrd, vec![0; 5]).unwrap();
        let files = [kernel.as_path(), initrd.as_path()];
        let blobs = place_blobs(&files, 64).unwrap();
        assert_eq!(blobs[0], Blob { file: kernel.clone(), address: 0x43a0_0000, length: 3 << 20 });
        assert_eq!(blobs[1], Blob { file: initrd.clone(), address: 0x43e0_0000, length: 5 });
        assert_eq!(blob_mib(&files).unwrap(), 6);
    }

    #[test]
    fn blobs_that_do_not_fit_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("linux");
        fs::write(&file, vec![0; 3 << 20]).unwrap();
        assert!(place_blobs(&[&file], 3).is_err());
        assert!(place_blobs(&[&folder.path().join("none")], 64).is_err());
    }
}
