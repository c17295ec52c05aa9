//! Under `cfg(loom)`: loom's atomics, and a lock that loom schedules.

pub(super) use super::checked_lock::{Lock, LockGuard};
pub(super) use super::loom_cell::Cell;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};
