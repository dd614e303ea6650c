//! A front end's messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::hold(tests::fuzz::session::run(data)));
