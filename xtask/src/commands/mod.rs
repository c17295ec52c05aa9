//! The commands, one module each: clap arguments and a `run`.

pub(crate) mod bench;
pub(crate) mod fuzz;
pub(crate) mod mutants;
pub(crate) mod run;
pub(crate) mod soak;
pub(crate) mod test;
pub(crate) mod trace;
