//! The image's log, from raw defmt frames to text.
//!
//! The frames are decoded after the end, whatever the end was: a crash leaves at most a cut-off
//! frame, and a damaged one is passed over where the encoding allows it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use defmt_decoder::{DecodeError, Table};

/// Decodes `frames` against the ELF file `image` into the text file `log`. No frames, no lines.
pub(super) fn decode(image: &Path, frames: &Path, log: &Path) -> Result<()> {
    let mut log = BufWriter::new(File::create(log)?);
    let frames = fs::read(frames).unwrap_or_default();
    if frames.is_empty() {
        return Ok(log.flush()?);
    }
    let elf = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let table = Table::parse(&elf)?.ok_or_else(|| anyhow!("{} has no .defmt section", image.display()))?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(&frames);
    loop {
        match decoder.decode() {
            Ok(frame) => writeln!(log, "{}", frame.display(false))?,
            Err(DecodeError::UnexpectedEof) => break,
            Err(DecodeError::Malformed) => {
                writeln!(log, "(a damaged frame)")?;
                if !table.encoding().can_recover() {
                    break;
                }
            }
        }
    }
    Ok(log.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frames_give_an_empty_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("hypervisor.log");
        decode(Path::new("none"), &folder.path().join("none"), &log).unwrap();
        assert_eq!(fs::read(log).unwrap(), b"");
    }

    #[test]
    fn an_image_without_defmt_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (image, frames) = (folder.path().join("elf"), folder.path().join("defmt.bin"));
        fs::write(&image, b"no elf file").unwrap();
        fs::write(&frames, b"\x01\x02").unwrap();
        assert!(decode(&image, &frames, &folder.path().join("log")).is_err());
    }
}
