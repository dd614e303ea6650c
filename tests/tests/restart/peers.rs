//! Who sends and receives: fake guests, which connect again whenever the daemon is gone, and a host behind the uplink.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use router::vnet::VnetHeader;
use rustix::net::RecvFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tests::Netns;
use vhost_net_backend::demo_guest::{FakeNic, GuestError, Replay};

use super::numbered::{Flow, PORTS, open};

/// How long a daemon may be away.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two frames of a flow that is not held back.
const PACE: Duration = Duration::from_millis(1);

/// One fake guest.
pub(crate) struct Guest {
    pub(crate) nic: FakeNic,
    pub(crate) path: PathBuf,
    pub(crate) mac: [u8; 6],
    pub(crate) router: [u8; 6],
    pub(crate) replay: Replay,
    pub(crate) out: Vec<Arc<Flow>>,
    pub(crate) into: Vec<Arc<Flow>>,
    /// Times that it connected again.
    pub(crate) reattached: Arc<AtomicU64>,
}

impl Guest {
    /// Until `stop`; the frames still under way are received then.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Result<()> {
        loop {
            let received = self.receive()?;
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            let sent = self.send()?;
            if self.is_alone()? {
                self.reattach()?;
            } else if !received && !sent {
                match self.nic.wait(Duration::from_millis(1)) {
                    Ok(_) | Err(GuestError::Closed) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    fn receive(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some((_, frame)) = self.nic.receive()? {
            any = true;
            // Advertisements and the like are not ours.
            let Some((id, payload)) = open(&frame) else { continue };
            let flow = self.into.iter().find(|flow| flow.id == id);
            flow.with_context(|| format!("flow {id} is somebody else's"))?.take(payload);
        }
        Ok(any)
    }

    fn send(&mut self) -> Result<bool> {
        let mut any = false;
        for flow in &self.out {
            for _ in 0..flow.room().min(32) {
                let frame = flow.frame(self.mac, self.router);
                if !self.nic.queue(0, &frame, VnetHeader::default())? {
                    break;
                }
                flow.count();
                any = true;
            }
        }
        self.nic.flush(0)?;
        Ok(any)
    }

    fn is_alone(&mut self) -> Result<bool> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(self.nic.front_end().socket(), &mut [0; 1], flags) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => Ok(true),
            Ok(_) => bail!("the daemon says something unasked"),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// As a VMM: tries until somebody listens. A daemon that is killed while we talk is no different.
    fn reattach(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.nic.reattach(&self.path, self.replay) {
                Ok(()) => break,
                Err(error @ GuestError::OtherFeatures { .. }) => return Err(error.into()),
                Err(error) if Instant::now() > end => return Err(error.into()),
                Err(_) => thread::sleep(PACE),
            }
        }
        self.reattached.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The host behind the uplink: one UDP socket for each flow that it receives; answers go the way back.
pub(crate) struct Far {
    sockets: Vec<(UdpSocket, Arc<Flow>)>,
    back: Vec<(UdpSocket, Arc<Flow>)>,
}

impl Far {
    pub(crate) fn new(netns: &Netns, into: &[Arc<Flow>], back: &[Arc<Flow>]) -> Result<Self> {
        let bind = |port: u16| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_nonblocking(true)?;
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20)?;
            Ok(socket)
        };
        let open = |flows: &[Arc<Flow>], port: u16| -> Result<Vec<_>> {
            flows.iter().map(|flow| Ok((bind(port + flow.id)?, Arc::clone(flow)))).collect()
        };
        // A socket stays in the namespace that its thread was in.
        thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<Self> {
                let file = File::open(format!("/run/netns/{}", netns.name()))?;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(Self { sockets: open(into, PORTS.1)?, back: open(back, PORTS.0)? })
            });
            made.join().map_err(|_| anyhow!("the thread that opens sockets panicked"))?
        })
    }

    pub(crate) fn run(self, stop: &AtomicBool) -> Result<()> {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::SeqCst) {
            for (socket, flow) in &self.sockets {
                while let Ok((len, _)) = socket.recv_from(&mut buffer) {
                    flow.take(buffer.get(..len).unwrap_or_default());
                }
            }
            for (socket, flow) in &self.back {
                // While the daemon is away there is no way to them: that number is lost, which nobody counts.
                let to = SocketAddr::from((flow.to, PORTS.1 + flow.id));
                let _ = socket.send_to(&flow.payload(), to);
                flow.count();
            }
            thread::sleep(PACE);
        }
        Ok(())
    }
}
