//! The end of the run, and its code, seen by the host as QEMU's exit code.

/// How the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub enum ExitCode {
    /// All is well.
    Good = 0,
    /// A violation was seen, or a claim failed.
    Violation = 1,
    /// A panic; also what the panic handler uses.
    Panic = 2,
    /// The arguments make no sense.
    BadArguments = 3,
}

/// Ends the run: the machine stops at once, all CPUs with it.
pub fn exit(code: ExitCode) -> ! {
    semihosting::process::exit(code as i32)
}
