//! A host with addresses behind a card: smoltcp's interface and sockets, stepped by whoever owns it.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use topology::{Mac, Topology};

use super::device::{Heard, NicDevice};
use super::nic::NicCounters;
use super::{FakeNic, GuestError, NicOptions};

/// The UDP port on which every guest sends back what it gets (RFC 862).
pub const ECHO_PORT: u16 = 7;

/// Who a guest is.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its card's MAC.
    pub mac: Mac,
    /// Its addresses, each with the prefix length of its subnet.
    pub addresses: Vec<IpNet>,
    /// Its default gateways, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Largest layer-3 packet, bytes.
    pub mtu: u16,
    /// What its card is like.
    pub nic: NicOptions,
}

impl Host {
    /// The guest that the first NIC of `tenant/vm` describes: its addresses, its link-local one if it has IPv6, and the
    /// gateways of its network.
    #[must_use]
    pub fn of(topology: &Topology, tenant: &str, vm: &str) -> Option<Self> {
        let tenant = topology.tenants.iter().find(|t| t.name == tenant)?;
        let nic = tenant.vms.iter().find(|v| v.name == vm)?.nics.first()?;
        let network = tenant.networks.get(nic.network)?;
        let subnets = || {
            let v4 = network.subnets4.iter().copied().map(IpNet::from);
            v4.chain(network.subnets6.iter().copied().map(IpNet::from))
        };
        let in_subnet = |address: IpAddr| {
            let len = subnets().find(|s| s.contains(&address))?.prefix_len();
            IpNet::new(address, len).ok()
        };
        let v4 = nic.addresses4.iter().copied().map(IpAddr::from);
        let routed = v4.chain(nic.addresses6.iter().copied().map(IpAddr::from)).filter_map(in_subnet);
        let local = IpNet::new(IpAddr::from(nic.mac.link_local()), 64).ok();
        let local = local.filter(|_| !nic.addresses6.is_empty());
        let addresses = routed.chain(local).collect();
        let first = |v6: bool| network.gateways.iter().copied().find(|g| g.is_ipv6() == v6);
        Some(Self {
            mac: nic.mac,
            addresses,
            gateways: first(false).into_iter().chain(first(true)).collect(),
            mtu: nic.mtu,
            nic: NicOptions { pairs: usize::from(nic.queues), ..NicOptions::default() },
        })
    }

    /// Its address of one family, link-local ones aside.
    #[must_use]
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        let routed =
            |a: &IpAddr| a.is_ipv6() == v6 && !matches!(a, IpAddr::V6(v6) if v6.is_unicast_link_local());
        self.addresses.iter().map(IpNet::addr).find(routed)
    }

    /// Its gateway of one family.
    #[must_use]
    pub fn gateway(&self, v6: bool) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|g| g.is_ipv6() == v6)
    }
}

/// A running guest. It answers ARP, neighbour solicitations, pings and UDP on [`ECHO_PORT`] whenever it is polled.
pub struct Stack {
    host: Host,
    pub(super) device: NicDevice,
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    echo: SocketHandle,
    started: Instant,
    next_port: u16,
}

impl Stack {
    /// Attaches `host` to the socket at `path`.
    ///
    /// # Errors
    /// The daemon refused it, or the host has more addresses than smoltcp holds.
    pub fn connect(path: &Path, host: Host) -> Result<Self, GuestError> {
        let own = host.addresses.iter().map(IpNet::addr).collect();
        let mut device = NicDevice::connect(path, host.nic.clone(), host.mtu, own)?;
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(host.mac.0)));
        // Initial sequence numbers and ports: guests of one test should not share them.
        config.random_seed = host.mac.0.iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        configure(&mut interface, &host)?;
        let mut sockets = SocketSet::new(Vec::new());
        let mut echo = udp::Socket::new(udp_buffer(), udp_buffer());
        echo.bind(ECHO_PORT).map_err(|error| GuestError::Stack(error.to_string()))?;
        let echo = sockets.add(echo);
        Ok(Self { host, device, interface, sockets, echo, started: Instant::now(), next_port: 49_152 })
    }

    /// Who it is.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its card.
    pub fn nic(&mut self) -> &mut FakeNic {
        &mut self.device.nic
    }

    /// What its card counted.
    #[must_use]
    pub fn counters(&self) -> NicCounters {
        self.device.nic.counters()
    }

    /// What it heard.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.device.heard()
    }

    /// Takes in what came and sends what is due, without waiting.
    ///
    /// # Errors
    /// The card failed.
    pub fn poll(&mut self) -> Result<(), GuestError> {
        let now = self.now();
        self.interface.poll(now, &mut self.device, &mut self.sockets);
        let echo = self.sockets.get_mut::<udp::Socket<'_>>(self.echo);
        let mut answered = false;
        while echo.can_recv() && echo.can_send() {
            let Ok((payload, from)) = echo.recv().map(|(payload, from)| (payload.to_vec(), from)) else {
                break;
            };
            answered |= echo.send_slice(&payload, from.endpoint).is_ok();
        }
        if answered {
            self.interface.poll(now, &mut self.device, &mut self.sockets);
        }
        self.device.nic.flush(0)?;
        self.device.check()
    }

    /// Polls, then waits until a frame comes or smoltcp has something to do, but no longer than `longest`.
    ///
    /// # Errors
    /// The card failed or the daemon hung up.
    pub fn step(&mut self, longest: Duration) -> Result<(), GuestError> {
        self.poll()?;
        self.idle(longest)
    }

    /// Waits as [`Self::step`] does, for whoever has just polled and looked.
    fn idle(&mut self, longest: Duration) -> Result<(), GuestError> {
        let now = self.now();
        let due = self.interface.poll_delay(now, &self.sockets).map(Duration::from);
        let wait = due.map_or(longest, |due| due.min(longest));
        if !wait.is_zero() {
            self.device.wait(wait)?;
        }
        Ok(())
    }

    /// Steps until `done` has an answer.
    ///
    /// # Errors
    /// It had none within `time_out` (the error says what was awaited), or the card failed.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        time_out: Duration,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, GuestError>,
    ) -> Result<T, GuestError> {
        let end = Instant::now() + time_out;
        loop {
            self.poll()?;
            if let Some(answer) = done(self)? {
                return Ok(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(GuestError::TimeOut { what: what.to_owned(), waited: time_out });
            }
            self.idle(left)?;
        }
    }

    /// A local port that was not used lately.
    pub(super) fn port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
        self.next_port
    }

    /// The time as smoltcp counts it.
    pub(super) fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    /// Quits as an orderly VMM does.
    ///
    /// # Errors
    /// The daemon refused it.
    pub fn stop(self) -> Result<(), GuestError> {
        self.device.nic.stop().map(drop)
    }
}

fn configure(interface: &mut Interface, host: &Host) -> Result<(), GuestError> {
    let mut full = false;
    interface.update_ip_addrs(|addresses| {
        for net in &host.addresses {
            // smoltcp files a neighbour advertisement under its sender instead of its target (RFC 4861, section
            // 7.2.5), so a router's answers for other hosts are lost on it. No routed prefix is on-link for it then.
            let on_link = match net.addr() {
                IpAddr::V6(v6) if !v6.is_unicast_link_local() => 128,
                IpAddr::V4(_) | IpAddr::V6(_) => net.prefix_len(),
            };
            full |= addresses.push(IpCidr::new(IpAddress::from(net.addr()), on_link)).is_err();
        }
    });
    for gateway in &host.gateways {
        let routes = interface.routes_mut();
        full |= match gateway {
            IpAddr::V4(v4) => routes.add_default_ipv4_route(*v4).is_err(),
            IpAddr::V6(v6) => routes.add_default_ipv6_route(*v6).is_err(),
        };
    }
    if full { Err(GuestError::Stack("more addresses or routes than smoltcp holds".into())) } else { Ok(()) }
}

pub(super) fn udp_buffer() -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 128 * 1024])
}
