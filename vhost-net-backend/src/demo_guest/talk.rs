//! What a guest does on the network: ping, UDP, TCP.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::phy::Device;
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress};

use super::stack::{Stack, udp_buffer};
use super::{GuestError, stack};

/// How long a pong or a datagram may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Half of what a default receive ring holds: smoltcp has no congestion control to find that out by itself.
const TCP_BUFFER: usize = 1 << 20;
/// Bytes after which the content of a stream repeats: a prime, so that no lost or doubled segment goes unseen.
const PERIOD: u64 = 65_521;

/// How a ping went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ping {
    /// Echo requests sent.
    pub sent: u16,
    /// Replies that came with the right content.
    pub received: u16,
    /// Shortest and longest round trip.
    pub fastest: Duration,
    /// Longest round trip.
    pub slowest: Duration,
}

/// Which end of a TCP connection a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Waits for a connection on that port.
    Listen(u16),
    /// Connects to that address and port; tries again while nobody listens there.
    Connect(IpAddr, u16),
}

/// How a TCP stream went, seen from one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes that the other end acknowledged.
    pub sent: u64,
    /// Bytes received, every one with the right content.
    pub received: u64,
    /// From the connection's start to the last byte either way.
    pub elapsed: Duration,
}

impl Transfer {
    /// Bytes a second, both directions together.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let micros = self.elapsed.as_micros().max(1);
        u64::try_from(u128::from(self.sent + self.received) * 1_000_000 / micros).unwrap_or(u64::MAX)
    }
}

impl Stack {
    /// Sends `count` echo requests with `size` bytes of content, each after the reply to the one before.
    ///
    /// # Errors
    /// The card failed. A missing reply is not an error: it is missing in the result.
    pub fn ping(&mut self, to: IpAddr, count: u16, size: usize) -> Result<Ping, GuestError> {
        self.ping_patiently(to, count, size, PATIENCE)
    }

    /// As [`Self::ping`], waiting `patience` for each reply.
    ///
    /// # Errors
    /// As [`Self::ping`].
    pub fn ping_patiently(
        &mut self,
        to: IpAddr,
        count: u16,
        size: usize,
        patience: Duration,
    ) -> Result<Ping, GuestError> {
        let ident = self.port();
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4 * (size + 64)]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(ident)).map_err(refused)?;
        let handle = self.sockets.add(socket);
        let mut ping = Ping::default();
        let result =
            (0..count).try_for_each(|seq| self.ping_once(handle, to, ident, seq, size, patience, &mut ping));
        self.sockets.remove(handle);
        result.map(|()| ping)
    }

    #[expect(clippy::too_many_arguments, reason = "one round of the loop above, which has them all at hand")]
    fn ping_once(
        &mut self,
        handle: SocketHandle,
        to: IpAddr,
        ident: u16,
        seq_no: u16,
        size: usize,
        patience: Duration,
        ping: &mut Ping,
    ) -> Result<(), GuestError> {
        let content = content(u64::from(seq_no), size);
        let request = self.echo_request(to, ident, seq_no, &content);
        let target = IpAddress::from(to);
        self.sockets.get_mut::<icmp::Socket<'_>>(handle).send_slice(&request, target).map_err(refused)?;
        ping.sent += 1;
        let start = Instant::now();
        let answer = self.until("echo reply", patience, |stack| {
            let socket = stack.sockets.get_mut::<icmp::Socket<'_>>(handle);
            while let Ok((packet, from)) = socket.recv() {
                if from == target && is_reply(packet, ident, seq_no, &content) {
                    return Ok(Some(start.elapsed()));
                }
            }
            Ok(None)
        });
        match answer {
            Ok(time) => {
                ping.fastest = if ping.received == 0 { time } else { ping.fastest.min(time) };
                ping.slowest = ping.slowest.max(time);
                ping.received += 1;
                Ok(())
            }
            Err(GuestError::TimeOut { .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn echo_request(&self, to: IpAddr, ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
        let checksum = self.device.capabilities().checksum;
        match to {
            IpAddr::V4(_) => {
                let repr = Icmpv4Repr::EchoRequest { ident, seq_no, data };
                let mut bytes = vec![0; repr.buffer_len()];
                repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksum);
                bytes
            }
            IpAddr::V6(to) => {
                let repr = Icmpv6Repr::EchoRequest { ident, seq_no, data };
                let mut bytes = vec![0; repr.buffer_len()];
                let from = self.interface.get_source_address_ipv6(&to);
                repr.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(&mut bytes), &checksum);
                bytes
            }
        }
    }

    /// Sends `count` datagrams of `size` bytes to the other guest's echo port, and counts those that come back whole.
    ///
    /// # Errors
    /// The card failed, or a datagram is larger than the socket holds.
    pub fn udp_echo(&mut self, to: IpAddr, count: u16, size: usize) -> Result<u16, GuestError> {
        let port = self.port();
        let mut socket = udp::Socket::new(udp_buffer(), udp_buffer());
        socket.bind(port).map_err(refused)?;
        let handle = self.sockets.add(socket);
        let mut returned = 0;
        for round in 0..count {
            let content = content(u64::from(round), size);
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.send_slice(&content, (to, stack::ECHO_PORT)).map_err(refused)?;
            let answer = self.until("UDP echo", PATIENCE, |stack| {
                let socket = stack.sockets.get_mut::<udp::Socket<'_>>(handle);
                let whole = |(payload, _): (&[u8], _)| payload == content;
                Ok(socket.recv().ok().map(whole))
            });
            match answer {
                Ok(whole) => returned += u16::from(whole),
                Err(GuestError::TimeOut { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        self.sockets.remove(handle);
        Ok(returned)
    }

    /// One TCP connection: sends `send` bytes and expects `receive`, at the same time, and checks every byte.
    ///
    /// # Errors
    /// Wrong content, an early end, or not done within `time_out`.
    pub fn tcp(
        &mut self,
        end: End,
        send: u64,
        receive: u64,
        time_out: Duration,
    ) -> Result<Transfer, GuestError> {
        let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.sockets.add(socket);
        let result = self.converse(handle, end, send, receive, time_out);
        self.sockets.remove(handle);
        result
    }

    fn converse(
        &mut self,
        handle: SocketHandle,
        end: End,
        send: u64,
        receive: u64,
        time_out: Duration,
    ) -> Result<Transfer, GuestError> {
        self.until("TCP connection", time_out, |stack| stack.open(handle, end))?;
        let start = Instant::now();
        let mut sent = 0;
        let mut received = 0;
        let outcome = self.until("TCP stream", time_out, |stack| {
            let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(handle);
            while sent < send && socket.can_send() {
                sent += socket.send(|room| put(room, sent, send)).map_err(refused)?;
            }
            while socket.can_recv() {
                received += socket.recv(|bytes| check(bytes, received)).map_err(refused)??;
            }
            let acknowledged = sent == send && socket.send_queue() == 0;
            if acknowledged && received >= receive {
                return Ok(Some(start.elapsed()));
            }
            if socket.is_open() {
                return Ok(None);
            }
            Err(GuestError::Stack(format!("connection ended after {sent} bytes sent, {received} received")))
        });
        let elapsed = outcome.map_err(|error| {
            let GuestError::TimeOut { waited, .. } = error else {
                return error;
            };
            let what =
                format!("the end of a TCP stream: {sent} of {send} sent, {received} of {receive} received");
            GuestError::TimeOut { what, waited }
        })?;
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).close();
        // Say goodbye properly if the other end does; the bytes are all there either way.
        let _ = self.until("TCP close", Duration::from_millis(500), |stack| {
            let state = stack.sockets.get::<tcp::Socket<'_>>(handle).state();
            Ok(matches!(state, tcp::State::Closed | tcp::State::TimeWait).then_some(()))
        });
        if received > receive {
            return Err(GuestError::Stack(format!("{received} bytes received, {receive} expected")));
        }
        Ok(Transfer { sent, received, elapsed })
    }

    /// Opens the connection, and again while the other end refuses.
    fn open(&mut self, handle: SocketHandle, end: End) -> Result<Option<()>, GuestError> {
        let port = self.port();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.may_send() || socket.may_recv() {
            return Ok(Some(()));
        }
        if !socket.is_open() {
            match end {
                End::Listen(port) => socket.listen(port).map_err(refused)?,
                End::Connect(to, to_port) => {
                    let context = self.interface.context();
                    socket.connect(context, (to, to_port), port).map_err(refused)?;
                }
            }
        }
        Ok(None)
    }
}

/// One period of the content of every stream.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..PERIOD).map(byte_at).collect());

fn byte_at(at: u64) -> u8 {
    let [_, _, _, byte, ..] = at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    byte
}

/// The content of a stream from offset `at` on: as much as there is up to the end of the period.
fn pattern(at: u64) -> &'static [u8] {
    let start = usize::try_from(at % PERIOD).unwrap_or_default();
    PATTERN.get(start..).unwrap_or_default()
}

/// `len` bytes of content.
fn content(at: u64, len: usize) -> Vec<u8> {
    PATTERN.iter().cycle().skip(usize::try_from(at % PERIOD).unwrap_or_default()).take(len).copied().collect()
}

/// Fills `room` with the stream from offset `at`, as far as `end`. Returns the bytes put there, twice as smoltcp wants.
fn put(room: &mut [u8], at: u64, end: u64) -> (usize, u64) {
    let source = pattern(at);
    let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(room.len()).min(source.len());
    if let (Some(room), Some(source)) = (room.get_mut(..len), source.get(..len)) {
        room.copy_from_slice(source);
    }
    (len, u64::try_from(len).unwrap_or_default())
}

/// Compares what came at offset `at`. Returns the bytes looked at, twice as smoltcp wants.
fn check(bytes: &[u8], at: u64) -> (usize, Result<u64, GuestError>) {
    let wanted = pattern(at);
    let len = bytes.len().min(wanted.len());
    if bytes.get(..len) == wanted.get(..len) {
        return (len, Ok(u64::try_from(len).unwrap_or_default()));
    }
    let wrong = bytes.iter().zip(wanted).position(|(byte, wanted)| byte != wanted).unwrap_or_default();
    (len, Err(GuestError::Stack(format!("wrong content {wrong} bytes after offset {at} of a stream"))))
}

fn is_reply(packet: &[u8], ident: u16, seq: u16, content: &[u8]) -> bool {
    // Type 0 and 129 (RFC 792, RFC 4443), code, checksum, identifier, sequence number, content. smoltcp checked the rest.
    let (id, seq) = (ident.to_be_bytes(), seq.to_be_bytes());
    matches!(packet, [0 | 129, 0, _, _, i0, i1, s0, s1, rest @ ..]
        if [*i0, *i1] == id && [*s0, *s1] == seq && rest == content)
}

fn refused(error: impl std::fmt::Debug) -> GuestError {
    GuestError::Stack(format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_hold_what_was_put_in_and_nothing_else() {
        let end = 3 * PERIOD + 17;
        let mut at = 0;
        while at < end {
            let mut room = [0; 4000];
            let (len, put) = put(&mut room, at, end);
            assert_eq!(u64::try_from(len).unwrap(), put);
            let (looked, result) = check(&room[..len], at);
            assert_eq!((looked, result.unwrap()), (len, put));
            assert_eq!(content(at, len), &room[..len]);
            if len > 0 {
                room[len - 1] ^= 0x40;
                assert!(check(&room[..len], at).1.is_err());
                assert!(check(&room[..len], at + 1).1.is_err());
            }
            at += put;
        }
        assert_eq!(at, end);
    }

    #[test]
    fn replies_are_those_to_the_request() {
        let reply = [0, 0, 9, 9, 1, 2, 0, 3, b'x', b'y'];
        assert!(is_reply(&reply, 0x0102, 3, b"xy"));
        for (ident, seq, content) in
            [(0x0103, 3, &b"xy"[..]), (0x0102, 4, b"xy"), (0x0102, 3, b"xz"), (0x0102, 3, b"x")]
        {
            assert!(!is_reply(&reply, ident, seq, content));
        }
        assert!(
            !is_reply(&[8, 0, 9, 9, 1, 2, 0, 3, b'x', b'y'], 0x0102, 3, b"xy"),
            "a request is not a reply"
        );
    }
}
