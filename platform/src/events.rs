//! What the run tells the host's tool: `events.jsonl` in QEMU's working directory, one JSON object a line.

use semihosting::{
    fs::File,
    io::{self, Write},
};
use serde::Serialize;
use spin::Mutex;

/// The longest line.
const CAPACITY: usize = 8192;

struct Writer {
    /// Opened by the first event.
    file: Option<File>,
    line: [u8; CAPACITY],
}

static WRITER: Mutex<Writer> = Mutex::new(Writer { file: None, line: [0; CAPACITY] });

/// Why an event was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub enum Error {
    /// Its line is longer than 8 KiB.
    TooLong,
    /// The host does not open or write the file.
    Host,
}

/// Writes one event. Lines of several CPUs do not mix.
///
/// # Errors
///
/// [`Error::TooLong`] when its line is longer than 8 KiB, [`Error::Host`] when the host refuses.
pub fn emit(event: &impl Serialize) -> Result<(), Error> {
    WRITER.lock().write(event)
}

/// [`emit`] for a panic: gives up after a while, as it may be this CPU itself that was just writing an event.
pub(crate) fn emit_last(event: &impl Serialize) {
    const TRIES: usize = 1_000_000;
    if let Some(mut writer) = (0..TRIES).find_map(|_| WRITER.try_lock()) {
        // Nobody is left to hear of an error.
        let _ = writer.write(event);
    }
}

impl Writer {
    fn write(&mut self, event: &impl Serialize) -> Result<(), Error> {
        let (newline, room) = self.line.split_last_mut().ok_or(Error::TooLong)?;
        *newline = b'\n';
        let length = serde_json_core::to_slice(event, room).map_err(|_| Error::TooLong)?;
        self.line[length] = b'\n';
        self.append(length + 1).map_err(|_| Error::Host)
    }

    fn append(&mut self, length: usize) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(c"events.jsonl")?),
        };
        file.write_all(&self.line[..length])
    }
}
