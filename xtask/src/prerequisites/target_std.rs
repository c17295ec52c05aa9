//! The standard library for the EL2 target. Three ways, in this order:
//!
//! 1. rustup's toolchain has it already;
//! 2. `rustup target add`;
//! 3. Debian's rustc with its sources: `core` and `alloc` are built along with the image.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::apt;
use crate::cargo::{self, TARGET};
use crate::process;
use crate::workspace::Workspace;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_RUSTDOC: &str = "/usr/bin/rustdoc";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";
const DEBIAN_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/Cargo.lock";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "rust-web-clippy"];

/// How the images are compiled.
#[derive(Debug, Clone)]
pub(crate) enum TargetStd {
    /// The toolchain that built us has the target.
    Toolchain,
    /// Debian's compiler builds `core` and `alloc` itself, linking with this linker.
    Debian { linker: PathBuf },
}

impl TargetStd {
    /// Finds a way to compile for the target, installing what it takes.
    pub(crate) fn ensure(workspace: &Workspace) -> Result<Self> {
        if toolchain_has_target(workspace)? {
            return Ok(Self::Toolchain);
        }
        println!("Adding {TARGET} with rustup: the images run on it.");
        let added = process::read(Command::new("rustup").args(["target", "add", TARGET]));
        if added.is_ok() && toolchain_has_target(workspace)? {
            return Ok(Self::Toolchain);
        }
        Self::debian(workspace).with_context(|| format!("no standard library for {TARGET}"))
    }

    fn debian(workspace: &Workspace) -> Result<Self> {
        let there = [DEBIAN_RUSTC, DEBIAN_CLIPPY, DEBIAN_SOURCES];
        if !there.iter().all(|path| PathBuf::from(path).exists()) {
            apt::install(&DEBIAN_PACKAGES, "rustup could not add the target, so its library is built from source")?;
        }
        Ok(Self::Debian { linker: find_linker(workspace)? })
    }

    /// The version of the compiler that makes the images: with another one they are others.
    pub(crate) fn compiler(&self, workspace: &Workspace) -> Result<String> {
        let program = match self {
            Self::Toolchain => "rustc",
            Self::Debian { .. } => DEBIAN_RUSTC,
        };
        let version = process::read(Command::new(program).current_dir(&workspace.root).arg("--version"))?;
        Ok(version.trim().to_owned())
    }

    /// `cargo SUBCOMMAND --target ...` for the EL2 target.
    pub(crate) fn cargo(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut command = match self {
            // Debian's clippy comes as its own program; it calls the cargo that runs us.
            Self::Debian { .. } if subcommand == "clippy" => {
                let mut clippy = Command::new(DEBIAN_CLIPPY);
                cargo::isolate(&mut clippy, workspace);
                clippy
            }
            _ => cargo::cargo(workspace),
        };
        command.args([subcommand, "--target", TARGET]).env("DEFMT_LOG", "info");
        if let Self::Debian { linker } = self {
            command
                .arg("-Zbuild-std=core,alloc")
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", DEBIAN_RUSTC)
                .env("RUSTDOC", DEBIAN_RUSTDOC)
                .env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER", linker);
        }
        command
    }
}

fn toolchain_has_target(workspace: &Workspace) -> Result<bool> {
    let folder = rustc_print(workspace, &["target-libdir", "--target", TARGET])?;
    Ok(PathBuf::from(folder).exists())
}

/// Debian's rustc comes without `rust-lld`: rustup's will do, or Debian's lld.
fn find_linker(workspace: &Workspace) -> Result<PathBuf> {
    // `.../lib/rustlib/HOST/lib`; the linker lies in `.../lib/rustlib/HOST/bin`.
    let libraries = PathBuf::from(rustc_print(workspace, &["target-libdir"])?);
    let rust_lld = libraries.with_file_name("bin").join("rust-lld");
    if rust_lld.exists() {
        return Ok(rust_lld);
    }
    if process::capture(Command::new("ld.lld").arg("--version")).is_err() {
        apt::install(&["lld"], "the images need a linker for AArch64")?;
    }
    Ok("ld.lld".into())
}

fn rustc_print(workspace: &Workspace, what: &[&str]) -> Result<String> {
    let mut command = Command::new("rustc");
    command.current_dir(&workspace.root).arg("--print").args(what);
    let answer = process::read(&mut command)?.trim().to_owned();
    ensure!(!answer.is_empty(), "`{}` said nothing", process::describe(&command));
    Ok(answer)
}
