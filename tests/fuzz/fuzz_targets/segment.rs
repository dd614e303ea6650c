//! Vnet headers, segments and fragments.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::hold(tests::fuzz::segment::run(data)));
