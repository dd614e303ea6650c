//! The answer to `GET /v1/mirrors`.

use serde::{Deserialize, Serialize};

/// What became of the mirrors of the topology file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrors {
    /// In the order of the file.
    pub mirrors: Vec<Mirror>,
}

/// One of [`Mirrors`]. It counts from the start of the daemon's process: a planned restart begins at zero, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Whose it is.
    pub tenant: String,
    /// Its name in the file.
    pub name: String,
    /// Whose frames: `vm:web1`, `network:db`.
    pub from: Vec<String>,
    /// Where the copies go: the path of a file, or `vm:ids.0`.
    pub to: String,
    /// Copies that arrived there.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames for whose copy there was no room.
    pub missed: u64,
    /// Why none are made now; null: all is well.
    pub error: Option<String>,
}
