//! `packet-stats`: where did every packet go?

fn main() {}
