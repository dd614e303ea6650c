//! Listeners on a socket of their own, a device that tells what it is told, and front ends.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use router::PortId;
use vhost::vhost_user::message::{FrontendReq, VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::port::{Device, Negotiated};
use crate::vhost_user::features::Experimental;
use crate::vhost_user::test_front_end::{FrontEnd, MEMORY, Recorder, USER};
use crate::vhost_user::{
    Attach, By, End, Hangup, LinkOrders, Links, ListenPort, Listeners, Ports, Role, SessionConfig,
    SessionError,
};
use crate::vring::{RingError, RingLog, RingSetup};

/// Whoever may use the control socket.
pub(super) const OPERATOR: By = By { uid: 0, owner: false };

/// What happens at the ports, as it happens.
pub(super) struct Daemon(Mutex<mpsc::Sender<String>>, pub(super) Mutex<Option<Hangup>>);

impl Ports for Daemon {
    fn attach(&self, attach: Attach) -> Box<dyn Device + Send> {
        let ours = i32::try_from(std::process::id()).unwrap();
        assert_eq!((attach.peer.pid, attach.peer.uid), (ours, rustix::process::getuid().as_raw()));
        *self.1.lock().unwrap() = Some(attach.hangup);
        self.say("attached".to_owned());
        Box::new(Telling(self.0.lock().unwrap().clone(), Recorder::default()))
    }

    fn refused(&self, _: PortId, error: &SessionError) {
        self.say(format!("refused: {error}"));
    }

    fn detached(&self, port: PortId, end: &End) {
        self.say(format!("detached {}: {end}", port.0));
    }

    fn link(&self, _: PortId, up: bool) {
        if !up {
            self.say("link down".to_owned());
        }
    }
}

impl Daemon {
    fn say(&self, what: String) {
        let _ = self.0.lock().unwrap().send(what);
    }
}

/// A recorder that also tells the test.
struct Telling(mpsc::Sender<String>, Recorder);

impl Device for Telling {
    fn start(&mut self, index: usize, setup: RingSetup, enabled: bool) -> Result<(), RingError> {
        let _ = self.0.send(format!("start {index}"));
        self.1.start(index, setup, enabled)
    }

    fn stop(&mut self, index: usize) -> Option<u32> {
        let _ = self.0.send(format!("stop {index}"));
        self.1.stop(index).map(|base| base + 7)
    }

    fn announce(&mut self) {
        self.1.announce();
    }

    fn idle(&mut self) {
        self.1.idle();
    }

    fn enable(&mut self, index: usize, enabled: bool) {
        self.1.enable(index, enabled);
    }

    fn set_call(&mut self, index: usize, call: Option<std::os::fd::OwnedFd>) {
        self.1.set_call(index, call);
    }

    fn set_log(&mut self, index: usize, log: RingLog) {
        self.1.set_log(index, log);
    }

    fn status(&mut self, status: &Negotiated) {
        self.1.status(status);
    }
}

pub(super) struct Bench {
    pub(super) listeners: Option<Listeners>,
    pub(super) daemon: Arc<Daemon>,
    pub(super) heard: mpsc::Receiver<String>,
    pub(super) path: PathBuf,
    pub(super) role: Role,
    pub(super) links: Links,
    pub(super) dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_role(Role::Server)
    }

    pub(super) fn with_role(role: Role) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme").join("web1.0.sock");
        let (tell, heard) = mpsc::channel();
        let daemon = Arc::new(Daemon(Mutex::new(tell), Mutex::default()));
        let (links, orders) = Links::new().unwrap();
        let mut bench = Self { listeners: None, daemon, heard, path, role, links, dir };
        bench.start(orders);
        bench
    }

    pub(super) fn start(&mut self, orders: LinkOrders) {
        let (daemon, group) = (self.daemon.clone(), Some("no-such-group"));
        let prepared = Listeners::prepare(vec![self.port()], group, daemon, HashMap::new(), orders);
        self.listeners = Some(prepared.unwrap().start().unwrap());
    }

    /// For the listeners that come next.
    pub(super) fn orders(&mut self) -> LinkOrders {
        let (links, orders) = Links::new().unwrap();
        self.links = links;
        orders
    }

    pub(super) fn set_link(&self, port: u32, up: bool) -> std::io::Result<()> {
        self.links.set(PortId(port), &self.port().name, up, OPERATOR)
    }

    pub(super) fn set_link_by(&self, by: By, up: bool) -> std::io::Result<()> {
        self.links.set(PortId(3), &self.port().name, up, by)
    }

    pub(super) fn port(&self) -> ListenPort {
        let config = SessionConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            pairs: 1,
            experimental: Experimental::default(),
        };
        let (name, path) = ("acme/web1.0".to_owned(), self.path.clone());
        let down_mark = self.dir.path().join("web1.0.down");
        ListenPort { id: PortId(3), name, path, role: self.role, config, down_mark }
    }

    pub(super) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    pub(super) fn hear(&self) -> String {
        self.heard.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// The port must take a new front end and talk to it.
    pub(super) fn serves_again(&self) {
        let mut stream = self.connect();
        assert_eq!(ask(&mut stream, FrontendReq::GET_QUEUE_NUM), Some(2));
        assert_eq!(self.hear(), "attached");
        drop(stream);
        assert!(self.hear().starts_with("detached"));
    }
}

pub(super) fn request(code: FrontendReq, flags: u32, size: u32) -> Vec<u8> {
    [u32::from(code), flags, size].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Sends a request without payload; `None` when the connection ended.
pub(super) fn ask(stream: &mut UnixStream, code: FrontendReq) -> Option<u64> {
    let mut reply = [0; 20];
    stream.write_all(&request(code, 1, 0)).ok()?;
    stream.read_exact(&mut reply).ok()?;
    Some(u64::from_ne_bytes(*reply.last_chunk().unwrap()))
}

pub(super) fn start_ring(front_end: &Frontend, index: usize, event: &EventFd) {
    let at = USER + 0x1_0000 * u64::try_from(index + 1).unwrap();
    let config = VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 0,
        desc_table_addr: at,
        used_ring_addr: at + 0x8000,
        avail_ring_addr: at + 0x4000,
        log_addr: None,
    };
    front_end.set_vring_num(index, 256).unwrap();
    front_end.set_vring_addr(index, &config).unwrap();
    front_end.set_vring_base(index, 5).unwrap();
    front_end.set_vring_call(index, event).unwrap();
    front_end.set_vring_kick(index, event).unwrap();
}

pub(super) fn boot(path: &Path) -> Frontend {
    negotiate(Frontend::connect(path, 2).unwrap())
}

pub(super) fn negotiate(mut front_end: Frontend) -> Frontend {
    front_end.set_owner().unwrap();
    let features = front_end.get_features().unwrap();
    let protocol = front_end.get_protocol_features().unwrap();
    assert!(protocol.contains(Protocol::CONFIG | Protocol::CONFIGURE_MEM_SLOTS | Protocol::MTU));
    front_end.set_protocol_features(protocol).unwrap();
    front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(front_end.get_queue_num().unwrap(), 2);
    let (_, mac) = front_end.get_config(0, 6, VhostUserConfigFlags::empty(), &[0; 6]).unwrap();
    assert_eq!(mac, [2, 0, 0, 0, 0, 1]);
    front_end.set_features(features).unwrap();
    let memory = FrontEnd::new(1).memory();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    front_end.add_mem_region(&region).unwrap();
    let event = EventFd::new(0).unwrap();
    for index in 0..2 {
        start_ring(&front_end, index, &event);
        front_end.set_vring_enable(index, true).unwrap();
    }
    front_end
}
