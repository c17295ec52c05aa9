//! What went wrong, in words: for images whose errors have no reader but a person.

use alloc::{format, string::String};
use core::fmt::Debug;

/// Turns what went wrong into words.
pub trait OrSay<T> {
    /// The value, or `what` was tried and how it failed.
    ///
    /// # Errors
    ///
    /// Those words.
    fn or_say(self, what: &str) -> Result<T, String>;
}

impl<T, E: Debug> OrSay<T> for Result<T, E> {
    fn or_say(self, what: &str) -> Result<T, String> {
        self.map_err(|error| format!("{what}: {error:?}"))
    }
}

impl<T> OrSay<T> for Option<T> {
    fn or_say(self, what: &str) -> Result<T, String> {
        self.ok_or_else(|| what.into())
    }
}

/// Fails with what `what` was and should have been, if it was not.
///
/// # Errors
///
/// Those words.
pub fn expect<T: PartialEq + Debug>(what: &str, is: T, should: T) -> Result<(), String> {
    if is == should { Ok(()) } else { Err(format!("{what} is {is:x?}, not {should:x?}")) }
}
