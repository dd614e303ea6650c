//! What all programs here do with a target's answer.

#![forbid(unsafe_code)]

/// Lets a defect be seen by the fuzzer, as the crash that it waits for.
///
/// # Panics
/// When the target found something wrong.
pub fn hold<E: std::fmt::Debug>(found: Result<(), E>) {
    if let Err(error) = found {
        panic!("{error:?}");
    }
}
