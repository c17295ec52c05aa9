//! What a checker finds wrong.

use core::fmt;
use std::string::String;
use std::vec::Vec;

use super::Event;

/// The kinds of things that must never happen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A frame was given back that some TLB still leads to.
    FrameFreedWhileCached,
    /// A frame was mapped elsewhere while some TLB still leads to it from where it was.
    FrameReusedWhileCached,
    /// A table was given back that a walk of the hardware may still use.
    TableFreedWhileCached,
    /// A table was given back that a reader may still be looking at.
    TableFreedWhileRead,
    /// Software looked at, or stored to, a table that was given back.
    FreedTableUsed,
    /// A page was given back that nobody had.
    FreedTwice,
    /// Two translations of one address that must not be live at once were: no break before make.
    ConflictingTranslations,
    /// What stood in for an entry was taken away while some TLB still holds the entry.
    SettledWhileCached,
    /// A descriptor of a linked table was stored by a CPU that did not hold its lock.
    StoredWithoutLock,
    /// A walk may find a table as it was in its former life.
    PublishedUnprepared,
    /// One VMID stood for two trees.
    VmidInUseTwice,
    /// A frame was mapped in two places.
    FrameMappedTwice,
    /// A TLBI was issued before the VMID it is for was synchronized.
    ContextNotSynchronized,
    /// A page is copied, clean, while some TLB still lets a store pass unseen.
    WriteLost,
    /// A CPU faults for ever on an entry that is stricter than the tables.
    FaultsForEver,
    /// A guest reads from memory what was never cleaned out of the caches.
    StaleMemory,
    /// Something that was given out was not given back.
    Leaked,
    /// A lock was given back by who did not hold it, or taken while another held it.
    LockNotExclusive,
}

/// One thing that was wrong, and what led to it.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What kind of thing.
    pub kind: Kind,
    /// What exactly.
    pub what: String,
    /// The events that led to it, each with its number and its CPU, the last one last.
    pub trail: Vec<(u64, u16, Event)>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}: {}", self.kind, self.what)?;
        for (number, cpu, event) in &self.trail {
            writeln!(f, "  {number:>6} cpu {cpu}: {event:x?}")?;
        }
        Ok(())
    }
}
