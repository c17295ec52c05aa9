//! Debian's package manager.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Installs packages as root, or by `sudo`, after telling the user `why`.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    let names = packages.join(" ");
    println!("Installing {names} with apt-get: {why}.");
    with_fresh_lists(|| {
        let mut command = as_root("apt-get")?;
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        process::read(&mut command).map(drop)
    })
    .with_context(|| format!("cannot install {names} ({why})"))
}

/// Downloads one package, without installing it, into `folder`; returns the file.
pub(crate) fn download(package: &str, folder: &Path, why: &str) -> Result<PathBuf> {
    println!("Downloading {package} with apt-get: {why}.");
    with_fresh_lists(|| {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).args(["download", package]);
        process::read(&mut command).map(drop)
    })
    .with_context(|| format!("cannot download {package} ({why})"))?;
    downloaded(folder, package)
}

fn downloaded(folder: &Path, package: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get downloaded no {package}")
}

/// Downloads one package out of `suite`, of the mirror that apt uses already, into `folder`; returns the file. The system's own
/// lists and sources stay as they are: apt is given a folder of its own for them.
pub(crate) fn download_from(suite: &str, package: &str, folder: &Path, why: &str) -> Result<PathBuf> {
    println!("Downloading {package} from {suite} with apt-get: {why}.");
    let state = folder.join("apt");
    for part in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(state.join(part))?;
    }
    let sources = state.join("suite.sources");
    let signed = if Path::new(KEYRING).exists() { format!("Signed-By: {KEYRING}\n") } else { String::new() };
    fs::write(&sources, format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{signed}", mirror()?))?;
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(folder);
        for (option, value) in [
            ("Dir::State", state.as_path()),
            ("Dir::State::status", Path::new("/var/lib/dpkg/status")),
            ("Dir::Cache", state.as_path()),
            ("Dir::Etc::SourceList", sources.as_path()),
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            // No user of its own for downloads: he could not write here.
            ("APT::Sandbox::User", Path::new("")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        process::read(command.args(arguments)).map(drop)
    };
    apt_get(&["update"])
        .and_then(|()| apt_get(&["download", package]))
        .with_context(|| format!("cannot download {package} from {suite} ({why})"))?;
    downloaded(folder, package)
}

/// Debian's keys, where a suite's sources do not name others.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror of the main suite that apt uses.
fn mirror() -> Result<String> {
    let format = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"];
    let targets = process::read(Command::new("apt-get").args(format))?;
    let mut main = targets.lines().filter_map(|line| {
        let [uri, release, "main"] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        // Not updates, not security.
        (!release.contains('-')).then(|| uri.to_owned())
    });
    main.next().context("apt has no sources of a Debian suite")
}

/// Does it; if that fails, updates the package lists (which may be missing or old) and does it
/// once more.
fn with_fresh_lists(action: impl Fn() -> Result<()>) -> Result<()> {
    action().or_else(|_| {
        process::read(as_root("apt-get")?.arg("update"))?;
        action()
    })
}

fn as_root(program: &str) -> Result<Command> {
    // The owner of our own process's entry is our effective user.
    let user = fs::metadata("/proc/self").context("no /proc: not a Linux host")?.uid();
    let mut command = if user == 0 {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", program]);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}
