//! Frames with numbers: whoever receives them knows which are missing, which came twice and which are damaged.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etherparse::{Icmpv4Type, PacketBuilder, TransportSlice};

/// Bytes in front of the pattern: flow and number.
const FRONT: usize = 16;
/// Without an arrival for so long a window is lost. A daemon that is away makes that long, too: then it is too early, and
/// the frames wait in the vring.
const STALL: Duration = Duration::from_millis(300);
/// UDP ports of flow 0, source and destination; the others follow.
pub(crate) const PORTS: (u16, u16) = (20_000, 30_000);

/// What the frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// UDP from `from` to `to`.
    Udp,
    /// Echo requests from `from` to `to`; what is received are the replies, which bring the same numbers back.
    Echo,
}

/// Frames of one sender to one receiver.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: u16,
    pub(crate) kind: Kind,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    /// Frames that may be under way; none: it is not held back.
    pub(crate) window: Option<u64>,
    /// Longest payload.
    pub(crate) longest: usize,
    sent: AtomicU64,
    /// Numbers below this are not waited for any more.
    given_up: AtomicU64,
    log: Mutex<Log>,
}

/// What arrived.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// A bit for each number.
    seen: Vec<u64>,
    /// One more than the highest number.
    pub(crate) next: u64,
    pub(crate) received: u64,
    pub(crate) duplicates: u64,
    pub(crate) corrupt: u64,
    /// Last arrival.
    pub(crate) moved: Option<Instant>,
    /// First arrival since it was taken.
    pub(crate) first: Option<Instant>,
}

impl Flow {
    pub(crate) fn new(id: u16, from: Ipv4Addr, to: Ipv4Addr, window: Option<u64>, longest: usize) -> Self {
        Self {
            id,
            kind: Kind::Udp,
            from,
            to,
            window,
            longest,
            sent: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }

    /// The same as echo requests.
    pub(crate) fn echo(self) -> Self {
        Self { kind: Kind::Echo, ..self }
    }

    /// Whose vrings its frames come in by.
    pub(crate) fn receiver(&self) -> Ipv4Addr {
        match self.kind {
            Kind::Udp => self.to,
            Kind::Echo => self.from,
        }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers used so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// How many frames may be sent now.
    pub(crate) fn room(&self) -> u64 {
        let mut log = self.log();
        let since = self.given_up.load(Ordering::SeqCst).max(log.next);
        let under_way = self.sent().saturating_sub(since);
        let room = self.window.map_or(1, |window| window.saturating_sub(under_way));
        if room == 0 && log.moved.is_some_and(|moved| moved.elapsed() > STALL) {
            // A whole window was lost: go on behind it.
            self.given_up.store(self.sent(), Ordering::SeqCst);
            log.moved = Some(Instant::now());
        }
        room
    }

    /// The payload of the next frame; [`Self::count`] it once it is sent.
    pub(crate) fn payload(&self) -> Vec<u8> {
        payload(self.id, self.sent(), self.longest)
    }

    pub(crate) fn count(&self) {
        self.sent.fetch_add(1, Ordering::SeqCst);
    }

    /// The next frame whole, as a guest sends it.
    pub(crate) fn frame(&self, source: [u8; 6], router: [u8; 6]) -> Vec<u8> {
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2(source, router).ipv4(self.from.octets(), self.to.octets(), 64);
        let (payload, number) = (self.payload(), u16::try_from(self.sent() % 65_536).unwrap_or(0));
        // Cannot fail: a vector takes it, and it is short.
        let _ = match self.kind {
            Kind::Udp => packet.udp(PORTS.0 + self.id, PORTS.1 + self.id).write(&mut frame, &payload),
            Kind::Echo => packet.icmpv4_echo_request(self.id, number).write(&mut frame, &payload),
        };
        frame
    }

    /// Looks at what arrived.
    pub(crate) fn take(&self, bytes: &[u8]) {
        let mut log = self.log();
        let number = bytes.get(8..FRONT).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        match number.filter(|n| *n < self.sent() + 1 && bytes == payload(self.id, *n, self.longest)) {
            Some(number) => log.note(number),
            None => log.corrupt += 1,
        }
        let now = Instant::now();
        log.moved = Some(now);
        log.first.get_or_insert(now);
    }
}

impl Log {
    fn note(&mut self, number: u64) {
        let (word, bit) = (usize::try_from(number / 64).unwrap_or(0), 1 << (number % 64));
        self.seen.resize(self.seen.len().max(word + 1), 0);
        self.received += 1;
        if let Some(seen) = self.seen.get_mut(word) {
            self.duplicates += u64::from(*seen & bit != 0);
            *seen |= bit;
        }
        self.next = self.next.max(number + 1);
    }

    /// Numbers of that range that did not arrive.
    pub(crate) fn missing(&self, from: u64, to: u64) -> u64 {
        let seen = |n: &u64| {
            let word = usize::try_from(n / 64).ok().and_then(|word| self.seen.get(word));
            word.is_some_and(|word| word >> (n % 64) & 1 != 0)
        };
        u64::try_from((from..to).filter(|n| !seen(n)).count()).unwrap_or(0)
    }
}

/// Flow and number, and a pattern and a length that only this number has.
fn payload(id: u16, number: u64, longest: usize) -> Vec<u8> {
    let mut bytes = vec![0; 6];
    bytes.extend(id.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    let step = usize::try_from(number % 1009).unwrap_or(0) * 37;
    let len = FRONT + step % (longest - FRONT).max(1);
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        state = state.rotate_left(7).wrapping_mul(0xd134_2543_de82_ef95);
        bytes.extend(state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Flow and payload of a frame as a guest receives it; none if it is something else.
pub(crate) fn open(frame: &[u8]) -> Option<(u16, &[u8])> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => Some((udp.destination_port().checked_sub(PORTS.1)?, udp.payload())),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else { return None };
            Some((echo.id, icmp.payload()))
        }
        Some(_) | None => None,
    }
}

#[test]
fn losses_doubles_and_damage_are_seen() {
    let flow = Flow::new(3, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, Some(10), 300);
    let mut frames = Vec::new();
    for _ in 0..10 {
        frames.push(flow.payload());
        flow.count();
    }
    assert_eq!(flow.room(), 0);
    for i in [0, 1, 1, 3, 9] {
        flow.take(&frames[i]);
    }
    let mut damaged = frames[4].clone();
    *damaged.last_mut().unwrap() ^= 1;
    flow.take(&damaged);
    flow.take(&frames[5][..20]);
    let log = flow.log();
    assert_eq!((log.received, log.duplicates, log.corrupt, log.next), (5, 1, 2, 10));
    assert_eq!((log.missing(0, 10), log.missing(0, 4), log.missing(9, 12)), (6, 1, 2));
}
