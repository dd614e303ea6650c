//! What is handed over: records, each a line of JSON and the descriptors that it is about.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::vhost_user::SavedSession;

/// Changes whenever a record means something else; records of another version are dropped.
pub const VERSION: u32 = 1;
/// Most descriptors of a record: the kernel passes no more with one message (SCM_MAX_FD, unix(7)).
pub const MAX_FDS: usize = 253;
/// Most bytes of a record. A NIC with 16 queue pairs and 32 regions needs about 12 KiB.
pub const MAX_BYTES: usize = 64 * 1024;

/// A place in the list of descriptors that came with the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdRef(usize);

/// The descriptors of one record.
#[derive(Debug, Default)]
pub struct Fds(Vec<Option<OwnedFd>>);

/// One thing that is handed over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Record {
    /// Whose counters these are.
    Counters(SavedCounters),
    /// An uplink's device, which would go with its last queue.
    Tap(SavedTap),
    /// A NIC's socket and connection.
    Port(Box<SavedPort>),
}

/// The stats file goes on under the same boot id.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedCounters {
    /// 32 hexadecimal digits.
    pub boot_id: String,
    /// When counting began, nanoseconds after 1970.
    pub started: u64,
    /// The stats file; its name may be gone.
    pub stats: FdRef,
}

/// The queues of one tap device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTap {
    /// Interface name.
    pub device: String,
    /// One for each worker, in their order.
    pub queues: Vec<FdRef>,
}

/// One NIC.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPort {
    /// `acme/web1.0`.
    pub name: String,
    /// Where its socket is.
    pub path: PathBuf,
    /// The socket that listens there, unless the VMM does.
    pub listener: Option<FdRef>,
    /// The connected VMM.
    pub connection: Option<SavedConnection>,
}

/// A VMM's connection. Messages that were not read yet are still in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedConnection {
    /// The socket.
    pub stream: FdRef,
    /// Connections to this port until now, this one included.
    pub connects: u64,
    /// What was negotiated.
    pub session: SavedSession,
}

/// Why something that was handed over is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Another version of this program wrote it.
    #[error("it has version {0}, this program reads {VERSION}")]
    Version(u32),
    /// It is no record.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It names a descriptor that did not come, or names one twice.
    #[error("descriptor {0} is missing")]
    Fd(usize),
    /// The kernel refused, or cut it short.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    version: u32,
    record: R,
}

/// Read before anything else: whatever a later version adds, it has this.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Record {
    /// As it is sent.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        Ok(serde_json::to_vec(&Envelope { version: VERSION, record: self })?)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// It is of another version, or no record.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        Ok(serde_json::from_slice::<Envelope<Self>>(bytes)?.record)
    }
}

impl Fds {
    /// Those that came with a record.
    #[must_use]
    pub fn received(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Adds one, and says where it is.
    pub fn put(&mut self, fd: OwnedFd) -> FdRef {
        self.0.push(Some(fd));
        FdRef(self.0.len() - 1)
    }

    /// Takes one out.
    ///
    /// # Errors
    /// It is not there, or was taken already.
    pub fn take(&mut self, at: FdRef) -> Result<OwnedFd, FormatError> {
        self.0.get_mut(at.0).and_then(Option::take).ok_or(FormatError::Fd(at.0))
    }

    /// All of them, for sending.
    #[must_use]
    pub fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().flatten().map(AsFd::as_fd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_other_versions_are_not() {
        let record = Record::Tap(SavedTap { device: "vmr0".to_owned(), queues: vec![FdRef(0), FdRef(1)] });
        let text = String::from_utf8(record.encode().unwrap()).unwrap();
        assert_eq!(text, r#"{"version":1,"record":{"tap":{"device":"vmr0","queues":[0,1]}}}"#);
        assert!(matches!(Record::decode(text.as_bytes()), Ok(Record::Tap(tap)) if tap.queues.len() == 2));
        let next = text.replace("\"version\":1", "\"version\":2").replace("tap", "later");
        assert!(matches!(Record::decode(next.as_bytes()), Err(FormatError::Version(2))));
        for wrong in ["", "{}", "[1]", &text[..20], &text.replace("queues", "queue")] {
            assert!(matches!(Record::decode(wrong.as_bytes()), Err(FormatError::Json(_))), "{wrong}");
        }
    }

    #[test]
    fn a_descriptor_is_taken_once() {
        let mut fds = Fds::default();
        let at = fds.put(tempfile::tempfile().unwrap().into());
        assert!(fds.take(at).is_ok());
        assert!(fds.take(at).is_err() && fds.take(FdRef(1)).is_err());
    }
}
