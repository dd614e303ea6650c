//! What did the operator ask for?

#![forbid(unsafe_code)]

pub mod mac;
pub mod model;
pub mod place;

pub use mac::Mac;
pub use model::*;
pub use place::Place;
