//! Records in the queue of a socket: what the carriers carry.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::format::{Fds, FormatError, MAX_BYTES, MAX_FDS, Record};

/// Bytes of queue to ask for; the kernel gives at most net.core.wmem_max.
const QUEUE: usize = 4 << 20;

/// Parts being filled.
#[derive(Debug)]
pub struct Parts {
    /// The end that is written: of the last part.
    writer: Option<OwnedFd>,
    parts: Vec<OwnedFd>,
    queue: usize,
}

impl Default for Parts {
    fn default() -> Self {
        Self { writer: None, parts: Vec::new(), queue: QUEUE }
    }
}

impl Parts {
    /// Adds a record with its descriptors, in a new part if the last one is full.
    ///
    /// # Errors
    /// The kernel refuses this record; those before it stay.
    pub fn add(&mut self, record: &Record, fds: &Fds) -> Result<(), FormatError> {
        let bytes = record.encode()?;
        let fds = fds.borrow();
        if bytes.len() > MAX_BYTES || fds.len() > MAX_FDS {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        if let Some(writer) = &self.writer {
            match send(writer, &bytes, &fds) {
                Err(Errno::AGAIN | Errno::NOBUFS) => {}
                sent => return Ok(sent.map_err(io::Error::from)?),
            }
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (writer, reader) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(io::Error::from)?;
        // As much as it gives: what does not fit goes into the next part.
        let _ = set_socket_send_buffer_size(&writer, self.queue);
        send(&writer, &bytes, &fds).map_err(io::Error::from)?;
        self.writer = Some(writer);
        self.parts.push(reader);
        Ok(())
    }

    /// All of them.
    #[must_use]
    pub fn finish(self) -> Vec<OwnedFd> {
        self.parts
    }
}

/// Everything in one part.
#[must_use]
pub fn read(part: &OwnedFd) -> Vec<Result<(Record, Fds), FormatError>> {
    let mut records = Vec::new();
    if socket_type(part) != Ok(SocketType::SEQPACKET) {
        return vec![Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no queue of records").into())];
    }
    loop {
        match receive(part) {
            Ok(Some((bytes, fds))) => records.push(Record::decode(&bytes).map(|record| (record, fds))),
            Ok(None) => return records,
            Err(error) => {
                records.push(Err(error.into()));
                return records;
            }
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)).map(|_| ())
}

/// The next message; none when there are no more. Whoever wrote them has finished.
fn receive(part: &OwnedFd) -> io::Result<Option<(Vec<u8>, Fds)>> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(part.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
    });
    let received = match received {
        Ok(received) if received.bytes == 0 => return Ok(None),
        Err(Errno::AGAIN) => return Ok(None),
        received => received?,
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a record was cut short"));
    }
    bytes.truncate(received.bytes);
    Ok(Some((bytes, Fds::received(fds))))
}

#[cfg(test)]
mod tests {
    use super::super::format::SavedTap;
    use super::*;

    fn record(i: usize, fds: &mut Fds, count: usize) -> Record {
        let queues = (0..count).map(|_| fds.put(tempfile::tempfile().unwrap().into())).collect();
        Record::Tap(SavedTap { device: format!("{i:0>2000}"), queues })
    }

    #[test]
    fn any_number_of_records_comes_back_with_its_descriptors() {
        let mut parts = Parts { queue: 128 * 1024, ..Parts::default() };
        for i in 0..1000 {
            let mut fds = Fds::default();
            let record = record(i, &mut fds, if i == 500 { 253 } else { 2 });
            parts.add(&record, &fds).unwrap();
        }
        let parts = parts.finish();
        assert!(parts.len() > 1 && parts.len() < 100, "{} parts", parts.len());
        let mut next = 0;
        for part in &parts {
            for found in read(part) {
                let (Record::Tap(tap), mut fds) = found.unwrap() else { panic!("another record") };
                assert_eq!(tap.device.parse::<usize>().unwrap(), next);
                assert_eq!(tap.queues.len(), if next == 500 { 253 } else { 2 });
                tap.queues.into_iter().for_each(|at| drop(fds.take(at).unwrap()));
                next += 1;
            }
            assert!(read(part).is_empty(), "what was read is gone");
        }
        assert_eq!(next, 1000);
    }

    #[test]
    fn what_does_not_fit_costs_itself_only() {
        let mut parts = Parts::default();
        let mut fds = Fds::default();
        let good = record(1, &mut fds, 1);
        parts.add(&good, &fds).unwrap();
        let mut many = Fds::default();
        let bad = record(2, &mut many, 254);
        assert!(parts.add(&bad, &many).is_err());
        parts.add(&good, &fds).unwrap();
        assert_eq!(read(&parts.finish()[0]).len(), 2);
    }

    #[test]
    fn other_descriptors_are_no_parts() {
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (garbage, writer) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::io::write(&writer, b"{\"version\": 7}").unwrap();
        rustix::io::write(&writer, b"not JSON").unwrap();
        drop(writer);
        for (what, fd, wanted) in [
            ("a file", tempfile::tempfile().unwrap().into(), 1),
            ("a stream", OwnedFd::from(stream), 1),
            ("garbage", garbage, 2),
        ] {
            let found = read(&fd);
            assert!(found.len() == wanted && found.iter().all(Result::is_err), "{what}: {found:?}");
        }
    }
}
