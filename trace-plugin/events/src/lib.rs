//! What the trace plugin tells its reader.
//!
//! - [`instruction`]: which of EL2's instructions are told, known by their encodings;
//! - [`record`]: one thing that happened, and how it travels: 24 bytes;
//! - [`mark`]: what the image itself tells a tracer.
//!
//! The image, the plugin and the reader use this crate, so that there is one place in which each format is written.

#![no_std]

pub mod instruction;
pub mod mark;
pub mod record;

pub use mark::Mark;
pub use record::{Happening, Record};
