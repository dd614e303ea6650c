//! What a flood leaves to others, through the daemon.
//!
//! Four guests send to four others over one worker, all from one thread on the other core. In the first half all send the
//! same frames: what the victim gets then is its fair rate. In the second half the other three flood, each [`Flood`] in
//! its way, and the victim goes on as before. Every ring is filled again and again, so that it is full whenever the
//! worker looks; how often the generator found the victim's full is part of the result.

mod pairs;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use router::VnetHeader;
use router::vnet::{GSO_TCPV4, NEEDS_CSUM};

use self::pairs::{Pair, Sent, measure};
use super::card::Card;
use super::frames::GATEWAY;
use super::{BACKEND_CORE, Mode, backend};
use crate::Process;
use crate::wait::wait_for;

/// Pairs of guests; the first is the victim and its receiver.
const PAIRS: u8 = 4;
/// Payload of a frame like the victim's.
const PLAIN: usize = 958;
/// Frames of a turn of a victim whose receiver is flooded: less than its share.
const FEW: u16 = 4;
const START: Duration = Duration::from_secs(30);

/// How the others flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Frames of 60 bytes.
    Small,
    /// The same, to an address that nobody has: each asks for an ICMP error.
    Unroutable,
    /// Frames of 60,000 bytes, to be cut into segments of 36.
    Segments,
    /// Frames like the victim's, and a million kicks a second that nobody asked for.
    Kicks,
    /// Chains too short for a vnet header.
    MalformedChains,
    /// Frames of 60 bytes that are no packets.
    MalformedPackets,
    /// Frames of 60 bytes to the victim's receiver, which cannot take them all. The victim sends few; fair is what it sent.
    Receiver,
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The victim's million frames a second while all send the same, and beside the flood.
    pub mpps: [f64; 2],
    /// Share of looks at which the generator found the victim's ring full, for both.
    pub full: [f64; 2],
    /// The others' million frames a second that the daemon took, for both.
    pub others: [f64; 2],
    /// Kicks a second beyond those that the daemon asked for.
    pub kicks: f64,
}

impl Flood {
    /// All, in the order of the table.
    pub const ALL: [Self; 7] = [
        Self::Small,
        Self::Unroutable,
        Self::Segments,
        Self::Kicks,
        Self::MalformedChains,
        Self::MalformedPackets,
        Self::Receiver,
    ];

    /// As on the command line and in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Unroutable => "unroutable",
            Self::Segments => "segments",
            Self::Kicks => "kicks",
            Self::MalformedChains => "malformed-chains",
            Self::MalformedPackets => "malformed-packets",
            Self::Receiver => "receiver",
        }
    }

    /// The frame that guest `n` floods with, and the length of its chains.
    fn frame(self, n: u8) -> Result<Sent> {
        let plain = VnetHeader::default();
        Ok(match self {
            Self::Small => Sent::whole(plain, &udp(n, 30 + n, 18)?),
            Self::Unroutable => Sent::whole(plain, &udp(n, 200, 18)?),
            Self::Receiver => Sent::whole(plain, &udp(n, 30, 18)?),
            Self::Kicks => Sent::whole(plain, &udp(n, 30 + n, PLAIN)?),
            Self::MalformedChains => Sent::whole(plain, &udp(n, 30 + n, 18)?).cut_to(4),
            Self::MalformedPackets => {
                let mut frame = udp(n, 30 + n, 18)?;
                // Behind the Ethernet header: an IPv4 header of another version and an impossible length.
                frame.iter_mut().skip(14).for_each(|byte| *byte = 0xff);
                Sent::whole(plain, &frame)
            }
            Self::Segments => {
                let vnet = VnetHeader {
                    flags: NEEDS_CSUM,
                    gso_type: GSO_TCPV4,
                    hdr_len: 54,
                    gso_size: 36,
                    csum_start: 34,
                    csum_offset: 16,
                    ..VnetHeader::default()
                };
                let mut frame = Vec::new();
                ip(n, 30 + n).tcp(1, 2, 3, 4).write(&mut frame, &[7; 60_000])?;
                Sent::whole(vnet, &frame)
            }
        })
    }

    /// Starts the daemon and eight guests, and measures for `duration` without and with the flood.
    ///
    /// # Errors
    /// The daemon does not start, ends, or moves nothing.
    pub fn run(self, duration: Duration) -> Result<Outcome> {
        let folder = tempfile::Builder::new().prefix("vmf").tempdir()?;
        let mut daemon = start(folder.path())?;
        let socket = |name: &str, n: u8| folder.path().join(format!("run/bench/{name}{n}.0.sock"));
        let sender = |n: u8| {
            let mode = if self == Self::Segments && n > 0 { Mode::TSO } else { Mode::SPLIT };
            Card::sender(&socket("a", n), &mode)
        };
        let mut senders = (0..PAIRS).map(sender).collect::<Result<Vec<_>>>()?;
        let receiver = |n| Card::receiver(&socket("b", n), &Mode::SPLIT);
        let mut receivers = (0..PAIRS).map(receiver).collect::<Result<Vec<_>>>()?;
        let mut pairs = Vec::new();
        for (n, (sender, receiver)) in (0..).zip(senders.iter_mut().zip(&mut receivers)) {
            let ([rx, _], [_, tx]) = (receiver.start()?, sender.start()?);
            let sent = Sent::whole(VnetHeader::default(), &udp(n, 30 + n, PLAIN)?);
            pairs.push(Pair::new(tx, rx, sent, 10 + n));
        }
        if let (Self::Receiver, Some(victim)) = (self, pairs.first_mut()) {
            victim.burst = FEW;
        }
        let fair = measure(&mut pairs, duration, false)?;
        for (n, pair) in (0..).zip(&mut pairs).skip(1) {
            pair.sent = self.frame(n)?;
        }
        let left = measure(&mut pairs, duration, self == Self::Kicks)?;
        daemon.still_runs()?;
        ensure!(fair.mpps > 0.0, "the victim's frames do not arrive\n{}", daemon.log());
        Ok(Outcome {
            mpps: [if self == Self::Receiver { left.sent } else { fair.mpps }, left.mpps],
            full: [fair.full, left.full],
            others: [fair.others, left.others],
            kicks: left.kicks,
        })
    }
}

fn ip(from: u8, to: u8) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([0x52, 0x54, 0, 0, 0, 10 + from], GATEWAY).ipv4(
        [10, 0, 0, 10 + from],
        [10, 0, 0, to],
        64,
    )
}

/// From guest `from` to the address that ends in `to`.
fn udp(from: u8, to: u8, payload: usize) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    ip(from, to).udp(1, 2).write(&mut frame, &vec![7; payload])?;
    Ok(frame)
}

fn start(folder: &Path) -> Result<Process> {
    let nic = |name: &str, n: u8, host: u8| {
        format!(
            "[[tenant.bench.vm.{name}{n}.nic]]\nnetwork = \"lan\"\nmac = \"52:54:00:00:00:{host:02x}\"\naddresses = [\"10.0.0.{host}\"]\n"
        )
    };
    let nics: String =
        (0..PAIRS).map(|n| format!("{}{}", nic("a", n, 10 + n), nic("b", n, 30 + n))).collect();
    let topology = format!(
        "version = 1\n[router]\ncpus = [{BACKEND_CORE}]\n[tenant.bench.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n{nics}"
    );
    let mut process = backend::run(&topology, folder)?;
    let last = folder.join(format!("run/bench/b{}.0.sock", PAIRS - 1));
    wait_for("the daemon's sockets", START, || {
        process.still_runs()?;
        Ok(last.exists().then_some(()))
    })?;
    Ok(process)
}
