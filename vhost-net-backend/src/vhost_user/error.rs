//! Why a front end's message was refused.

use vhost::vhost_user::message::FrontendReq;

use crate::guest_memory::MemoryError;
use crate::vring::RingError;

/// A message that cannot be obeyed, with what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The header's version bits are not 1.
    #[error("message version {0} is not 1")]
    Version(u32),
    /// The header has the reply flag, or a flag that is not defined.
    #[error("message flags {0:#x} are not those of a request")]
    Flags(u32),
    /// Longer than any message can be.
    #[error("a message of {0} bytes is longer than 4096")]
    TooLong(u32),
    /// No such request.
    #[error("request {0} is unknown")]
    UnknownRequest(u32),
    /// A request that belongs to a feature which is not offered.
    #[error("{0:?} belongs to a feature that is not offered")]
    NotOffered(FrontendReq),
    /// The payload has the wrong size for its request.
    #[error("{request:?} came with {size} bytes")]
    Size {
        /// Which request.
        request: FrontendReq,
        /// Bytes of its payload.
        size: usize,
    },
    /// More or fewer file descriptors than the request needs.
    #[error("a message came with {0} file descriptors")]
    Fds(usize),
    /// Feature bits that were never offered.
    #[error("feature bits {0:#x} were not offered")]
    Features(u64),
    /// Protocol feature bits that were never offered.
    #[error("protocol feature bits {0:#x} were not offered")]
    ProtocolFeatures(u64),
    /// SET_VRING_ENABLE without protocol features.
    #[error("no protocol features were negotiated")]
    NoProtocolFeatures,
    /// The device's state could not be transferred.
    #[error("the device's state: {0}")]
    DeviceState(&'static str),
    /// A request that belongs to a protocol feature which the front end did not take.
    #[error("protocol feature {0} was not negotiated")]
    NotNegotiated(&'static str),
    /// This may not change while a vring runs.
    #[error("{0} may not change while vring {1} runs")]
    Running(&'static str, usize),
    /// No vring has that number.
    #[error("there is no vring {0}")]
    NoSuchRing(u64),
    /// An argument is out of its range.
    #[error("{0} {1} is out of range")]
    Range(&'static str, u64),
    /// A part of the vring is not inside guest memory, or misaligned, or overlaps another one.
    #[error("the {0} at {1:#x} is outside guest memory, misaligned or overlaps another area")]
    RingArea(&'static str, u64),
    /// A vring was started before that was known.
    #[error("vring {1} has no {0} yet")]
    Missing(&'static str, usize),
    /// SET_VRING_KICK without an eventfd asks for polling.
    #[error("vring {0} came without a kick: poll mode is not offered")]
    PollMode(usize),
    /// A kick, call or error descriptor that is not an eventfd.
    #[error("the file descriptor is not a plain eventfd but {0}")]
    NotEventFd(String),
    /// A memory region was refused.
    #[error("{0}")]
    Memory(#[from] MemoryError),
    /// The file is another tenant's guest memory.
    #[error("the memory file is in use by another tenant")]
    ForeignMemory,
    /// The memory file was truncated, or has no memory to give.
    #[error("a page of guest memory is gone")]
    MemoryGone,
    /// The ring could not be started.
    #[error("{0}")]
    Ring(#[from] RingError),
    /// The configuration space is read-only.
    #[error("the configuration space cannot be written")]
    ReadOnlyConfig,
    /// A session of the last daemon that cannot go on in this one.
    #[error("the session that was handed over {0}")]
    HandedOver(&'static str),
    /// A file descriptor could not be duplicated or set up.
    #[error("cannot set up a file descriptor")]
    Fd(#[source] std::io::Error),
}
