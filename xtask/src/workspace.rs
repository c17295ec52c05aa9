//! Where things are: the repository, and what the tool keeps under its target folder.

use std::env;
use std::path::{Path, PathBuf};

use crate::cargo::TARGET;

/// The repository's root and its target folder.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// The workspace this tool was built from; its target folder is Cargo's own choice.
    pub(crate) fn locate() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf();
        // A relative CARGO_TARGET_DIR counts from where cargo was called, which is where we are.
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => env::current_dir().unwrap_or_default().join(folder),
            None => root.join("target"),
        };
        Self { root, target }
    }

    /// A release build of one of the bare-metal binaries.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.target.join(TARGET).join("release").join(name)
    }

    /// The folder of one run: logs, events, report.
    pub(crate) fn run_folder(&self, name: &str) -> PathBuf {
        self.target.join("stage2-run").join(name)
    }

    /// The folder with the output of each step of `cargo xtask test`.
    pub(crate) fn test_folder(&self) -> PathBuf {
        self.target.join("stage2-test")
    }

    /// What was downloaded, kept between runs.
    pub(crate) fn cache_folder(&self) -> PathBuf {
        self.target.join("stage2-cache")
    }
}
