//! The plugin's records, from its socket.
//!
//! A thread of its own reads them, so that the machine is not held up while it is watched. The machine may end without the plugin
//! having come that far: [`Listener::finish`] makes sure that nobody waits for it.

use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use stage2_trace_events::{Happening, Record, record};
use tempfile::TempDir;

/// A socket that a plugin is to connect to, and who reads from it.
pub(super) struct Listener<C> {
    socket: PathBuf,
    reader: JoinHandle<Result<C>>,
    /// Holds the socket: the path of a socket has to be short, so it is not in the run's folder.
    _folder: TempDir,
}

impl<C: Send + 'static> Listener<C> {
    /// Waits for a plugin, on a thread of its own, and shows each record to `look`, which keeps what it makes of them in
    /// `collection`.
    pub(super) fn start(mut collection: C, look: fn(&mut C, &Record) -> Result<()>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("trace");
        let listener = UnixListener::bind(&socket).context("cannot make the trace's socket")?;
        let reader = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            read(BufReader::with_capacity(1 << 18, stream), |record| look(&mut collection, record))?;
            Ok(collection)
        });
        Ok(Self { socket, reader, _folder: folder })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What was made of the records, once the machine has ended.
    ///
    /// # Errors
    ///
    /// The stream is incomplete or broken, or `look` has failed.
    pub(super) fn finish(self) -> Result<C> {
        // If the plugin never connected, this does, and says nothing.
        drop(UnixStream::connect(&self.socket));
        self.reader.join().map_err(|_| anyhow!("the trace's reader panicked"))?
    }
}

/// Reads until the end that the stream itself announces.
fn read(mut stream: impl Read, mut look: impl FnMut(&Record) -> Result<()>) -> Result<()> {
    let mut bytes = [0; record::BYTES];
    for count in 0u64.. {
        match stream.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(anyhow!("the trace breaks off after {count} records"));
            }
            Err(error) => return Err(error).context("cannot read the trace"),
        }
        let record = Record::from_bytes(bytes)?;
        if let Happening::End { records } = record.what {
            ensure!(records == count, "{count} records of {records} have arrived");
            return Ok(());
        }
        look(&record)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ERET: Record = Record { cpu: 1, pc: 2, what: Happening::Executed { opcode: 0xd69f_03e0, operand: 0 } };

    fn end(records: u64) -> Record {
        Record { cpu: 0, pc: 0, what: Happening::End { records } }
    }

    fn read_all(records: &[Record]) -> Result<usize> {
        let bytes: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
        let mut seen = Vec::new();
        read(&bytes[..], |record| {
            seen.push(*record);
            Ok(())
        })?;
        assert_eq!(seen[..], records[..seen.len()]);
        Ok(seen.len())
    }

    #[test]
    fn a_stream_is_read_to_the_end_it_announces() {
        assert_eq!(read_all(&[ERET, ERET, end(2)]).unwrap(), 2);
    }

    #[test]
    fn a_stream_that_was_cut_off_or_lost_something_is_an_error() {
        assert!(read_all(&[ERET, ERET]).unwrap_err().to_string().contains("breaks off after 2"));
        assert!(read_all(&[ERET, end(2)]).unwrap_err().to_string().contains("1 records of 2"));
        assert!(read(&[0; record::BYTES][..], |_| Ok(())).is_err());
    }

    #[test]
    fn nobody_waits_for_a_plugin_that_never_came() {
        let listener = Listener::start((), |(), _| Ok(())).unwrap();
        assert!(listener.finish().unwrap_err().to_string().contains("breaks off after 0"));
    }

    #[test]
    fn what_was_made_of_the_records_comes_back() {
        let listener = Listener::start(Vec::new(), |seen, record| {
            seen.push(*record);
            Ok(())
        });
        let listener = listener.unwrap();
        let mut stream = UnixStream::connect(listener.socket()).unwrap();
        stream.write_all(&ERET.to_bytes()).unwrap();
        stream.write_all(&end(1).to_bytes()).unwrap();
        assert_eq!(listener.finish().unwrap(), [ERET]);
    }
}
