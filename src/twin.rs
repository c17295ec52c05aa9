//! Twins: the protocol without one of its parts, for tests that must then fail.
//!
//! Each constant is `true` in every build but the one that is compiled to show that the part is needed. A twin is chosen by a
//! `--cfg` of the compiler, never by a feature, so that no dependent can switch it on.

/// Rule 5: the parent is compared once the table is locked.
pub(crate) const RECHECK: bool = !cfg!(twin_no_recheck);
/// Rule 8: what was unlinked waits until no reader holds it up.
pub(crate) const GRACE_PERIOD: bool = !cfg!(twin_no_grace);
/// Rule 3: a table descriptor is cleared with the child's lock held, too.
pub(crate) const CHILD_LOCK: bool = !cfg!(twin_no_child_lock);
