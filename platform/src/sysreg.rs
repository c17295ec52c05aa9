//! System registers by name: for those crate aarch64-cpu lacks, or has under a feature the assembler must know.

/// Reads a system register, named as the assembler names it. No register read here has a side effect.
macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading this register changes nothing; the caller has checked that it exists.
        unsafe {
            core::arch::asm!(
                concat!("mrs {}, ", $register),
                out(reg) value,
                options(nomem, nostack, preserves_flags),
            );
        }
        value
    }};
}

/// Writes a system register. The expansion is an unsafe operation: the caller states why the value is right.
macro_rules! write {
    ($register:literal, $value:expr) => {
        core::arch::asm!(
            concat!("msr ", $register, ", {}"),
            in(reg) $value,
            options(nostack, preserves_flags),
        )
    };
}

pub(crate) use {read, write};

/// The four-bit field of an ID register that starts at bit `low`.
pub(crate) const fn field(register: u64, low: u32) -> u64 {
    (register >> low) & 0xf
}
