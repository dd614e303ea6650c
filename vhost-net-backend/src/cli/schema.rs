//! `vmrouter schema`: the JSON schema of topology files.

use super::packet_stats::json;
use super::{Failure, Page};

/// The page.
///
/// # Errors
/// Never for our own schema.
pub fn page() -> Result<Page, Failure> {
    json(&topology::schema()).map(Page::of)
}
