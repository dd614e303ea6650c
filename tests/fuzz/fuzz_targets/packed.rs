//! Packed vrings.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::hold(tests::fuzz::packed::run(data)));
