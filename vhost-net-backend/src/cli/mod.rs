//! Command lines of the two binaries.
