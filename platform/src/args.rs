//! The arguments of the run: `key=value` words behind the program's name, by semihosting's SYS_GET_CMDLINE.

use core::{mem::MaybeUninit, str};

use arrayvec::ArrayString;
use semihosting::sys::arm_compat::sys_get_cmdline_uninit;
use spin::Once;

const CAPACITY: usize = 2048;

static LINE: Once<ArrayString<CAPACITY>> = Once::new();

/// The argument line as the host gave it; empty if it gave none, or none that is UTF-8 of less than 2 KiB.
fn line() -> &'static str {
    LINE.call_once(|| {
        let mut buffer = [MaybeUninit::uninit(); CAPACITY];
        let bytes = sys_get_cmdline_uninit(&mut buffer).unwrap_or_default();
        str::from_utf8(bytes).ok().and_then(|text| ArrayString::from(text).ok()).unwrap_or_default()
    })
}

/// All arguments in their order. A word without `=` has an empty value.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    line().split_ascii_whitespace().skip(1).map(|word| word.split_once('=').unwrap_or((word, "")))
}

/// The value of the first argument `key`.
pub fn get(key: &str) -> Option<&'static str> {
    all().find(|&(name, _)| name == key).map(|(_, value)| value)
}

/// The value of argument `key` as a number, decimal or with `0x` hexadecimal; `default` if it is not given.
///
/// # Errors
///
/// [`NotANumber`] when it is given and is neither.
pub fn number(key: &str, default: u64) -> Result<u64, NotANumber> {
    get(key).map_or(Ok(default), parse)
}

/// Reads a number, decimal or with `0x` hexadecimal.
///
/// # Errors
///
/// [`NotANumber`] when it is neither.
pub fn parse(text: &'static str) -> Result<u64, NotANumber> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| NotANumber(text))
}

/// An argument that should be a number: its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub struct NotANumber(pub &'static str);
