//! Tests: whole connections, from a front end's socket to the device.

mod bench;

use std::collections::HashMap;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use router::PortId;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::message::FrontendReq;

use bench::*;

use super::{By, ListenPort, Listeners, Role, SessionConfig, Settled, StoppedPort};
use crate::handover::Inherited;
use crate::handover::collect::Collected;
use crate::handover::inherited::PortLeft;

#[test]
fn a_front_end_attaches_leaves_and_comes_again() {
    let bench = Bench::new();
    for _ in 0..20 {
        let front_end = boot(&bench.path);
        assert_eq!(bench.hear(), "attached");
        assert_eq!([bench.hear(), bench.hear()], ["start 0", "start 1"]);
        assert_eq!(front_end.get_vring_base(1).unwrap(), 12);
        assert_eq!(bench.hear(), "stop 1");
        assert!(front_end.set_vring_num(0, 128).is_err());
        assert!(bench.hear().starts_with("refused: the size may not change"));
        // The next one connects at once: it waits until this one's ring is stopped.
        drop(front_end);
        let next = boot(&bench.path);
        let gone = "detached 3: the front end closed the connection";
        assert_eq!([bench.hear(), bench.hear()], ["stop 0", gone]);
        assert_eq!([bench.hear(), bench.hear(), bench.hear()], ["attached", "start 0", "start 1"]);
        drop(next);
        assert_eq!([bench.hear(), bench.hear(), bench.hear()], ["stop 0", "stop 1", gone]);
    }
}

#[test]
fn one_front_end_owns_a_socket() {
    let bench = Bench::new();
    let mut owner = bench.connect();
    assert_eq!(ask(&mut owner, FrontendReq::GET_QUEUE_NUM), Some(2));
    let mut successor = bench.connect();
    assert_eq!(ask(&mut successor, FrontendReq::GET_QUEUE_NUM), Some(2));
    for _ in 0..400 {
        assert_eq!(ask(&mut bench.connect(), FrontendReq::GET_QUEUE_NUM), None);
    }
    assert_eq!(ask(&mut owner, FrontendReq::GET_QUEUE_NUM), Some(2));
    assert_eq!(ask(&mut successor, FrontendReq::GET_QUEUE_NUM), Some(2));
    drop(owner);
    let detached = || bench.hear().split(':').next().unwrap().to_owned();
    assert_eq!([bench.hear(), bench.hear(), detached()], ["attached", "attached", "detached 3"]);
    // The successor is the owner now, and another one may follow.
    let mut next = bench.connect();
    assert_eq!(ask(&mut next, FrontendReq::GET_QUEUE_NUM), Some(2));
    assert_eq!(ask(&mut bench.connect(), FrontendReq::GET_QUEUE_NUM), None);
    drop((successor, next));
    assert_eq!([bench.hear(), detached(), detached()], ["attached", "detached 3", "detached 3"]);
    bench.serves_again();
}

#[test]
fn broken_streams_end_their_connection_only() {
    let bench = Bench::new();
    let zeros = [0; 64];
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("four bytes", vec![1, 0, 0, 0], "in the middle"),
        ("no payload", request(FrontendReq::SET_FEATURES, 1, 8), "in the middle"),
        ("version 0", [request(FrontendReq::GET_FEATURES, 0, 0), zeros.to_vec()].concat(), "version 0"),
        ("a reply", request(FrontendReq::GET_FEATURES, 5, 0), "flags"),
        ("4 GiB", request(FrontendReq::SET_FEATURES, 1, u32::MAX), "longer than"),
        (
            "too long for it",
            [request(FrontendReq::SET_FEATURES, 1, 9), zeros[..9].to_vec()].concat(),
            "9 bytes",
        ),
    ];
    for (what, bytes, why) in cases {
        let mut stream = bench.connect();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The end may come as a reset, as there are bytes that nobody read.
        let _ = stream.read_to_end(&mut Vec::new());
        assert_eq!(bench.hear(), "attached", "{what}");
        let end = bench.hear();
        assert!(end.starts_with("detached 3") && end.contains(why), "{what}: {end}");
    }
    bench.serves_again();
}

fn send_fds(stream: &UnixStream, bytes: &[u8], count: usize) {
    let file = std::fs::File::open("/dev/null").unwrap();
    let fds = vec![file.as_fd(); count];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn descriptors_that_nobody_wants_are_closed() {
    let bench = Bench::new();
    bench.serves_again();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for (count, why) in [(1, "with 1 file"), (32, "with 32 file"), (33, "more file"), (253, "more file")] {
        let mut stream = bench.connect();
        send_fds(&stream, &request(FrontendReq::SET_OWNER, 1, 0), count);
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        drop(stream);
        assert_eq!(bench.hear(), "attached");
        let end = bench.hear();
        assert!(end.contains(why), "{count}: {end}");
    }
    bench.serves_again();
    let after = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let deadline = Instant::now() + Duration::from_secs(5);
    while after() > before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(after() <= before, "{before} descriptors before, {} after", after());
}

#[test]
fn slow_front_ends_are_dropped_in_time() {
    let (loris, deaf) = (Bench::new(), Bench::new());
    let start = Instant::now();
    let mut stream = loris.connect();
    stream.write_all(&[1, 0, 0]).unwrap();
    let flood = deaf.connect();
    flood.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let ask = request(FrontendReq::GET_FEATURES, 1, 0);
    while (&flood).write_all(&ask).is_ok() {}
    let ends = [&loris, &deaf].map(|bench| [bench.hear(), bench.hear()]);
    assert!(ends[0][1].contains("did not finish a message"), "{ends:?}");
    assert!(ends[1][1].contains("did not finish taking an answer"), "{ends:?}");
    let took = start.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(10), "{took:?}");
    loris.serves_again();
    deaf.serves_again();
}

#[test]
fn a_device_can_hang_up() {
    let bench = Bench::new();
    let mut stream = bench.connect();
    assert_eq!(ask(&mut stream, FrontendReq::GET_QUEUE_NUM), Some(2));
    bench.daemon.1.lock().unwrap().take().unwrap().hang_up();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!([bench.hear(), bench.hear()], ["attached", "detached 3: the front end closed the connection"]);
    bench.serves_again();
}

#[test]
fn stopping_stops_rings_and_removes_sockets() {
    let mut bench = Bench::new();
    let _front_end = boot(&bench.path);
    bench.listeners.take().unwrap().stop();
    let heard: Vec<_> = bench.heard.try_iter().collect();
    assert_eq!(heard[..5], ["attached", "start 0", "start 1", "stop 0", "stop 1"]);
    assert!(heard[5].starts_with("detached 3"));
    assert!(!bench.path.exists());
}

/// The VMM's socket, which waits at most that long for us.
fn vmm_listens(path: &Path) -> UnixListener {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn accept_within(listener: &UnixListener, limit: Duration) -> Option<UnixStream> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

#[test]
fn the_router_connects_to_a_vmm_that_listens_and_comes_back() {
    let mut bench = Bench::with_role(Role::Client { owner: None });
    std::thread::sleep(Duration::from_millis(150));
    let listener = vmm_listens(&bench.path);
    for _ in 0..5 {
        let stream = accept_within(&listener, Duration::from_secs(2)).expect("nobody connected");
        let front_end = negotiate(Frontend::from_stream(stream, 2));
        assert_eq!([bench.hear(), bench.hear(), bench.hear()], ["attached", "start 0", "start 1"]);
        assert!(accept_within(&listener, Duration::from_millis(300)).is_none(), "one connection at a time");
        drop(front_end);
        assert_eq!([bench.hear(), bench.hear()], ["stop 0", "stop 1"]);
        assert!(bench.hear().starts_with("detached 3"));
    }
    // The VMM goes, and another one takes its place.
    drop(listener);
    std::fs::remove_file(&bench.path).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let listener = vmm_listens(&bench.path);
    let stream = accept_within(&listener, Duration::from_secs(2)).expect("nobody connected");
    // What may have connected to the first socket's backlog is over.
    let _front_end = negotiate(Frontend::from_stream(stream, 2));
    bench.listeners.take().unwrap().stop();
    assert!(bench.path.exists(), "the socket is the VMM's");
}

#[test]
fn a_vmm_that_drops_every_connection_is_asked_once_a_second() {
    let bench = Bench::with_role(Role::Client { owner: None });
    let listener = vmm_listens(&bench.path);
    let start = Instant::now();
    let mut taken = 0;
    while let Some(_stream) =
        accept_within(&listener, Duration::from_millis(2500).saturating_sub(start.elapsed()))
    {
        taken += 1;
    }
    // 0, 0.1, 0.3, 0.7, 1.5 and 2.5 s.
    assert!((3..=6).contains(&taken), "{taken} connections in 2.5 s");
    drop(bench);
}

#[test]
fn a_link_that_is_down_lets_nobody_in_until_it_is_up() {
    let mut bench = Bench::new();
    let _front_end = boot(&bench.path);
    bench.set_link(3, false).unwrap();
    let heard = [bench.hear(), bench.hear(), bench.hear()];
    assert_eq!(heard, ["attached", "start 0", "start 1"]);
    let mut heard: Vec<_> = (0..4).map(|_| bench.hear()).collect();
    heard.sort();
    assert_eq!(heard[1..], ["link down", "stop 0", "stop 1"]);
    assert!(heard[0].starts_with("detached 3"), "{heard:?}");
    // Where the VMM looks there is nobody; who finds the socket all the same is hung up on.
    assert!(UnixStream::connect(&bench.path).is_err());
    let mut finder = UnixStream::connect(bench.path.with_file_name(".web1.0.sock")).unwrap();
    assert_eq!(finder.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(bench.set_link(4, false).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    // The id of another port by now.
    let other = bench.links.set(PortId(3), "acme/web9.0", true, OPERATOR);
    assert_eq!(other.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    // It is down in the next daemon, too, whose socket's file goes with it.
    bench.listeners.take().unwrap().stop();
    assert!(!bench.path.exists() && !bench.path.with_file_name(".web1.0.sock").exists());
    let orders = bench.orders();
    bench.start(orders);
    assert_eq!(bench.hear(), "link down");
    assert!(UnixStream::connect(&bench.path).is_err());
    bench.set_link(3, true).unwrap();
    bench.serves_again();
    bench.listeners.take().unwrap().stop();
    assert!(bench.set_link(3, true).is_err(), "nobody obeys any more");
}

#[test]
fn an_owner_does_not_open_what_the_operator_shut() {
    let mut bench = Bench::new();
    let owner = By { uid: 1001, owner: true };
    let may_open = |bench: &Bench| match bench.set_link_by(owner, true) {
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
            assert!(UnixStream::connect(&bench.path).is_err());
            false
        }
        Ok(()) => UnixStream::connect(&bench.path).is_ok(),
    };
    for (orders, wanted) in [
        (vec![(owner, false)], true),
        (vec![(OPERATOR, false)], false),
        (vec![(OPERATOR, false), (owner, false)], false),
        (vec![(owner, false), (OPERATOR, false)], false),
        (vec![(owner, false), (OPERATOR, true), (owner, false)], true),
    ] {
        for (by, up) in &orders {
            bench.set_link_by(*by, *up).unwrap();
        }
        // Also in the next daemon.
        bench.listeners.take().unwrap().stop();
        let next = bench.orders();
        bench.start(next);
        assert_eq!(may_open(&bench), wanted, "{orders:?}");
        bench.set_link_by(OPERATOR, true).unwrap();
        assert!(may_open(&bench), "it is up");
    }
}

#[test]
fn the_router_does_not_connect_while_the_link_is_down() {
    let mut bench = Bench::with_role(Role::Client { owner: None });
    let listener = vmm_listens(&bench.path);
    let stream = accept_within(&listener, Duration::from_secs(2)).expect("nobody connected");
    let front_end = negotiate(Frontend::from_stream(stream, 2));
    bench.set_link(3, false).unwrap();
    assert!(front_end.get_features().is_err(), "hung up on");
    assert!(accept_within(&listener, Duration::from_millis(1500)).is_none(), "it connects all the same");
    bench.listeners.take().unwrap().stop();
    let orders = bench.orders();
    bench.start(orders);
    assert!(accept_within(&listener, Duration::from_millis(500)).is_none(), "the next daemon connects");
    bench.set_link(3, true).unwrap();
    assert!(accept_within(&listener, Duration::from_secs(2)).is_some(), "it does not connect any more");
    assert!(bench.path.exists(), "the socket is the VMM's");
}

#[test]
fn ports_come_go_and_offer_something_else() {
    let bench = Bench::new();
    let front_end = boot(&bench.path);
    assert_eq!([bench.hear(), bench.hear(), bench.hear()], ["attached", "start 0", "start 1"]);
    let other = |id, name: &str| {
        let path = bench.dir.path().join(name).join("db1.0.sock");
        let down_mark = bench.dir.path().join(format!("{name}.down"));
        ListenPort { id: PortId(id), name: format!("{name}/db1.0"), path, down_mark, ..bench.port() }
    };
    let (second, blocked) = (other(4, "acme"), other(5, "globex"));
    // Its socket is there, and nobody is let in; it goes again, also with one that cannot be made.
    bench.links.prepare(vec![second.clone()]).unwrap();
    let mut early = UnixStream::connect(&second.path).unwrap();
    early.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(ask(&mut early, FrontendReq::GET_QUEUE_NUM), None);
    bench.links.abandon();
    assert!(!second.path.exists());
    std::fs::create_dir_all(blocked.path.parent().unwrap()).unwrap();
    std::fs::write(&blocked.path, "in the way").unwrap();
    assert!(bench.links.prepare(vec![second.clone(), blocked]).is_err() && !second.path.exists());
    assert!(front_end.get_features().is_ok(), "nothing has changed");
    // One comes, and the other one has another MTU: whoever connects meanwhile waits.
    bench.links.prepare(vec![second.clone()]).unwrap();
    bench.links.detach(vec![PortId(3)]).unwrap();
    assert!(front_end.get_features().is_err(), "its connection ended");
    let mut heard = [bench.hear(), bench.hear(), bench.hear()];
    heard.sort();
    assert!(heard[0].starts_with("detached 3") && heard[1..] == ["stop 0", "stop 1"], "{heard:?}");
    let (mut waits, mut new) = (bench.connect(), UnixStream::connect(&second.path).unwrap());
    assert!(bench.heard.recv_timeout(Duration::from_millis(200)).is_err());
    let config = SessionConfig { mtu: 9000, ..bench.port().config };
    let changed = vec![ListenPort { config, ..bench.port() }];
    bench.links.settle(Settled { gone: Vec::new(), changed }).unwrap();
    for stream in [&mut waits, &mut new] {
        assert_eq!(ask(stream, FrontendReq::GET_QUEUE_NUM), Some(2));
        assert_eq!(bench.hear(), "attached");
    }
    // It goes, and the other one stays as it is.
    let goes = |heard: &str| {
        bench.links.detach(vec![PortId(4)]).unwrap();
        bench.links.settle(Settled { gone: vec![PortId(4)], changed: Vec::new() }).unwrap();
        assert!(bench.hear().starts_with(heard) && !second.path.exists());
    };
    goes("detached 4");
    assert_eq!(ask(&mut new, FrontendReq::GET_QUEUE_NUM), None);
    assert_eq!(ask(&mut waits, FrontendReq::GET_QUEUE_NUM), Some(2));
    // A link that an operator took down is down when the port is back.
    let comes = || {
        bench.links.prepare(vec![second.clone()]).unwrap();
        bench.links.settle(Settled::default()).unwrap();
    };
    comes();
    bench.links.set(PortId(4), &second.name, false, OPERATOR).unwrap();
    goes("link down");
    comes();
    assert_eq!(bench.hear(), "link down");
    assert!(UnixStream::connect(&second.path).is_err(), "it lets VMMs in");
}

/// Everything of a daemon that stopped, as the next one reads it.
fn handed_over(stopped: Vec<StoppedPort>) -> HashMap<String, PortLeft> {
    let mut collected = Collected::default();
    stopped.into_iter().for_each(|port| collected.port(port, 3));
    Inherited::read(&collected.finish()).ports
}

#[test]
fn a_connection_goes_on_in_the_next_daemon() {
    let mut bench = Bench::new();
    let front_end = boot(&bench.path);
    assert_eq!([bench.hear(), bench.hear(), bench.hear()], ["attached", "start 0", "start 1"]);
    for _ in 0..3 {
        let stopped = bench.listeners.take().unwrap().park();
        assert_eq!(bench.hear(), "stop 1", "the guest may not send any more");
        assert!(bench.heard.try_recv().is_err(), "and still receives");
        let left = handed_over(stopped);
        assert_eq!(bench.hear(), "stop 0");
        assert!(bench.path.exists(), "the socket stays");
        let prepared =
            Listeners::prepare(vec![bench.port()], None, bench.daemon.clone(), left, bench.orders()).unwrap();
        assert_eq!([bench.hear(), bench.hear()], ["attached", "start 0"]);
        assert!(bench.heard.try_recv().is_err(), "nobody sends before everybody can receive");
        bench.listeners = Some(prepared.start().unwrap());
        assert_eq!(bench.hear(), "start 1");
    }
    // Each stop went 7 further; the base began at 5 and is read by the VMM over its old connection.
    assert_eq!(front_end.get_vring_base(1).unwrap(), 5 + 4 * 7);
    assert_eq!(bench.hear(), "stop 1");
    assert!(front_end.set_vring_num(0, 128).is_err(), "acknowledgements are still negotiated");
    assert!(bench.hear().starts_with("refused"));
    drop(front_end);
    assert_eq!(bench.hear(), "stop 0");
    assert!(bench.hear().starts_with("detached 3: the front end closed"));
    bench.serves_again();
}

#[test]
fn a_session_that_does_not_fit_is_closed() {
    let mut bench = Bench::new();
    let front_end = boot(&bench.path);
    let heard = [bench.hear(), bench.hear(), bench.hear()];
    assert_eq!(heard, ["attached", "start 0", "start 1"]);
    let left = handed_over(bench.listeners.take().unwrap().park());
    let mut port = bench.port();
    port.config.mtu = 1400;
    let prepared = Listeners::prepare(vec![port], None, bench.daemon.clone(), left, bench.orders()).unwrap();
    bench.listeners = Some(prepared.start().unwrap());
    assert!(front_end.get_features().is_err(), "closed");
    let heard: Vec<_> = bench.heard.try_iter().collect();
    assert!(!heard.iter().any(|what| what.starts_with("start")), "{heard:?}");
    drop(front_end);
    bench.serves_again();
}

#[test]
fn a_slow_vmm_does_not_hold_the_others_up() {
    let mut bench = Bench::new();
    let mut loris = bench.connect();
    assert_eq!(ask(&mut loris, FrontendReq::GET_QUEUE_NUM), Some(2));
    loris.write_all(&[1, 0, 0]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    let stopped = bench.listeners.take().unwrap().park();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(stopped[0].connection.is_none() && stopped[0].listener.is_some());
    assert_eq!(loris.read(&mut [0]).unwrap(), 0, "closed");
}
