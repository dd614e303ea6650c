//! Cases to come.

use super::Case;

/// None yet.
pub const CASES: &[Case] = &[];
