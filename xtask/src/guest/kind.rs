//! Which guest: the one in the image, Debian, or any arm64 Linux image.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// A guest that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guest {
    /// The small guest that is part of the hypervisor's image.
    Builtin,
    /// Debian's installer kernel with a workload in init's place.
    Debian,
    /// A kernel and an initrd of the user's, which run unchanged.
    Image { kernel: PathBuf, initrd: PathBuf },
}

impl Guest {
    /// The guest that `--guest` and `--initrd` ask for.
    pub(crate) fn choose(name: &str, initrd: Option<&Path>) -> Result<Self> {
        match (name, initrd) {
            ("builtin", None) => Ok(Self::Builtin),
            ("debian", None) => Ok(Self::Debian),
            ("builtin" | "debian", Some(_)) => {
                bail!("--initrd goes with an image of your own: --guest IMAGE")
            }
            (_, None) => bail!("a guest image needs an initrd: --initrd FILE"),
            (kernel, Some(initrd)) => {
                let kernel = absolute(Path::new(kernel))?;
                check_image(&kernel)?;
                Ok(Self::Image { kernel, initrd: absolute(initrd)? })
            }
        }
    }

    /// As `--guest` has it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Builtin => "builtin".to_owned(),
            Self::Debian => "debian".to_owned(),
            Self::Image { kernel, .. } => kernel.display().to_string(),
        }
    }
}

/// QEMU runs in another folder than we do.
fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot read {}", path.display()))
}

/// Offset and value of the magic number in the header of an arm64 Image.
const MAGIC: (usize, &[u8; 4]) = (56, b"ARM\x64");

/// An error unless the file is an arm64 Linux `Image`.
fn check_image(path: &Path) -> Result<()> {
    let mut header = [0; 64];
    File::open(path)
        .with_context(|| format!("cannot read the guest kernel {}", path.display()))?
        .read_exact(&mut header)
        .with_context(|| format!("{} is too short for an arm64 Image", path.display()))?;
    let (offset, magic) = MAGIC;
    ensure!(
        header[offset..].starts_with(magic),
        "{} is not an arm64 Image (an uncompressed Linux kernel)",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn two_guests_need_no_files() {
        assert_eq!(Guest::choose("builtin", None).unwrap(), Guest::Builtin);
        assert_eq!(Guest::choose("debian", None).unwrap(), Guest::Debian);
    }

    #[test]
    fn impossible_guests_are_refused_with_one_line() {
        let missing = Some(Path::new("/nowhere/initrd"));
        for (name, initrd, line) in [
            ("builtin", missing, "--guest IMAGE"),
            ("debian", missing, "--guest IMAGE"),
            ("/nowhere/Image", None, "--initrd FILE"),
            ("/nowhere/Image", missing, "cannot read /nowhere/Image"),
        ] {
            let text = format!("{:#}", Guest::choose(name, initrd).unwrap_err());
            assert!(text.contains(line), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn only_an_arm64_image_passes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Image");
        assert!(check_image(&path).is_err());
        fs::write(&path, b"short").unwrap();
        assert!(check_image(&path).is_err());
        let mut image = vec![0; 64];
        fs::write(&path, &image).unwrap();
        assert!(check_image(&path).is_err());
        image[56..60].copy_from_slice(b"ARM\x64");
        fs::write(&path, &image).unwrap();
        assert!(check_image(&path).is_ok());
    }
}
