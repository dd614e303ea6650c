//! Linux as a reference for offloads: a tap that takes unfinished frames, bridged to one that takes only finished ones.
//!
//! What a driver would leave to be done goes into the first tap behind a vnet header. The second has every offload
//! switched off, so the kernel must segment and sum up in software before it hands the frames over; a bridge in between
//! changes no byte. All of it is in a namespace of its own.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use router::VnetHeader;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vhost_net_backend::sys::open_tap;

use crate::Netns;

/// How long a frame may take through the bridge.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// Room for any frame behind its vnet header.
const LARGEST: usize = 66 * 1024;

/// The two taps.
#[derive(Debug)]
pub struct Kernel {
    unfinished: OwnedFd,
    finished: OwnedFd,
    _netns: Netns,
}

impl Kernel {
    /// Makes the namespace, the bridge and the taps.
    ///
    /// # Errors
    /// Without root, or without a bridge in the kernel.
    pub fn new() -> Result<Self> {
        let netns = Netns::new()?;
        // Nothing but the test's own frames may come out.
        netns.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
        let [unfinished, finished] = taps(&netns, ["from0", "to0"])?;
        netns.run("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        for device in ["from0", "to0"] {
            netns.run(&format!("ip link set {device} mtu 65521 master br0 txqueuelen 4096"))?;
        }
        netns.run("ethtool -K to0 tx off sg off tso off gso off")?;
        for device in ["from0", "to0", "br0"] {
            netns.run(&format!("ip link set {device} up"))?;
        }
        Ok(Self { unfinished, finished, _netns: netns })
    }

    /// Gives the kernel a frame; `false` if it refuses that kind of vnet header.
    ///
    /// # Errors
    /// Any other refusal.
    pub fn give(&self, vnet: VnetHeader, frame: &[u8]) -> Result<bool> {
        let bytes = [&vnet.to_bytes(), frame].concat();
        match rustix::io::write(&self.unfinished, &bytes) {
            Ok(written) => {
                ensure!(written == bytes.len(), "{written} of {} bytes", bytes.len());
                Ok(true)
            }
            Err(Errno::INVAL) => Ok(false),
            Err(error) => Err(error).context("writing into the tap"),
        }
    }

    /// Takes what the kernel made of it: `count` frames, fewer if no more come, and whatever is there beyond.
    ///
    /// # Errors
    /// A frame is still unfinished.
    pub fn take(&self, count: usize) -> Result<Vec<Vec<u8>>> {
        let (mut frames, mut buffer) = (Vec::new(), vec![0; LARGEST]);
        loop {
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let patience = if frames.len() < count { &PATIENCE } else { &at_once };
            if poll(&mut [PollFd::new(&self.finished, PollFlags::IN)], Some(patience))? == 0 {
                return Ok(frames);
            }
            let read = rustix::io::read(&self.finished, &mut buffer)?;
            let (vnet, frame) = buffer
                .get(..read)
                .and_then(<[u8]>::split_first_chunk::<{ VnetHeader::LEN }>)
                .context("no header")?;
            let [flags, gso_type, ..] = vnet;
            ensure!((*flags, *gso_type) == (0, 0), "the kernel did not finish it: {vnet:?}");
            frames.push(frame.to_vec());
        }
    }
}

/// Taps of that namespace, opened by a thread that goes there.
fn taps<const N: usize>(netns: &Netns, names: [&'static str; N]) -> Result<[OwnedFd; N]> {
    let space = File::open(format!("/run/netns/{}", netns.name()))?;
    let thread = std::thread::spawn(move || -> Result<Vec<OwnedFd>> {
        use std::os::fd::AsFd as _;
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
        names.iter().map(|name| Ok(open_tap(name, 1)?)).collect()
    });
    let opened = thread.join().map_err(|_| anyhow::anyhow!("the thread that opens taps panicked"))??;
    <[OwnedFd; N]>::try_from(opened).map_err(|_| anyhow::anyhow!("not every tap was opened"))
}
