//! Who is answered what, over a real socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as Client;
use std::sync::Mutex;
use std::time::Instant;

use router::{DropReason, PortId, Snapshot};

use super::super::client::{self, ClientError};
use super::super::sample;
use super::*;
use crate::counters::{Counter, ThreadCounter};

#[test]
fn every_answer() {
    let folder = tempfile::tempdir().unwrap();
    let view = sample::view(folder.path());
    let block = view.counters.block(0, PortId(0));
    block.add(Counter::Received, 3);
    block.add(Counter::DeliveredVm, 1);
    block.dropped(DropReason::HostUnknown);
    view.counters.thread(1).add(ThreadCounter::Frames, 7);
    let server = serve(Board::new(view)).unwrap();
    let dir = folder.path();

    let stats: api::Stats = client::get(dir, "/v1/stats").unwrap();
    let names: Vec<_> = stats.ports.iter().map(|port| port.port.name.as_str()).collect();
    assert_eq!(names, ["acme/web1.0", "acme/web2.0", "globex/api.0", "uplink:lab"]);
    let counts = &stats.ports[0].counts;
    assert_eq!((counts.received, counts.balance, counts.drops["host.unknown"]), (3, 1, 1));
    assert_eq!(stats.totals, *counts);
    assert_eq!(stats.pid, std::process::id());
    let states: Vec<_> = stats.ports.iter().map(|port| port.state).collect();
    assert_eq!(states, [api::State::Up, api::State::Attached, api::State::Down, api::State::Up]);

    let drops: api::Drops = client::get(dir, "/v1/drops").unwrap();
    assert_eq!(drops.drops.len(), 1);
    assert_eq!(drops.drops[0].meaning, DropReason::HostUnknown.meaning());

    let threads: api::Threads = client::get(dir, "/v1/threads").unwrap();
    let frames: Vec<_> = threads.workers.iter().map(|worker| worker.counts.frames).collect();
    assert_eq!((frames, threads.pid), (vec![0, 7], std::process::id()));

    // A worker would have seated the tenants; nobody has.
    let flows: api::Flows = client::get(dir, "/v1/flows").unwrap();
    assert_eq!((flows.flows, flows.tenants), (0, Vec::new()));
    assert!(flows.capacity > 0);

    let ports: api::Ports = client::get(dir, "/v1/ports").unwrap();
    assert_eq!(ports.ports[0].addresses[0], "10.1.0.11");
    assert!(ports.ports[0].socket.as_ref().unwrap().ends_with("/acme/web1.0.sock"));
    assert!(ports.ports[0].features.contains(&"HOST_TSO4".to_owned()));

    let vm: api::Vm = client::get(dir, "/v1/vm/acme/web1").unwrap();
    assert_eq!((vm.nics.len(), vm.nics[0].counts.received), (1, 3));
    let missing = client::get::<api::Vm>(dir, "/v1/vm/acme/none").unwrap_err();
    assert!(matches!(missing, ClientError::NoSuch(why) if why == "no such VM"));

    let routes: api::Routes = client::get(dir, "/v1/routes/acme?lookup=10.1.0.12").unwrap();
    assert_eq!(routes.routes[0].next_hop.as_deref(), Some("acme/web2.0"));
    let missing = client::get::<api::Routes>(dir, "/v1/routes/none").unwrap_err();
    assert!(matches!(missing, ClientError::NoSuch(_)));
    let bad = client::get::<api::Routes>(dir, "/v1/routes/acme?lookup=x").unwrap_err();
    assert!(matches!(bad, ClientError::Answer { .. }));

    server.stop();
    assert!(!dir.join(socket::SOCKET).exists());
    let gone = client::get::<api::Stats>(dir, "/v1/stats").unwrap_err();
    assert!(matches!(gone, ClientError::NotRunning(_)));
}

#[test]
fn the_offload_matrix_follows_from_what_was_negotiated() {
    let folder = tempfile::tempdir().unwrap();
    let view = sample::view(folder.path());
    // web1 has everything, web2 only a receive checksum; the uplink takes TSO4.
    sample::running(&view, 1, 1 << 1);
    sample::running(&view, 3, 1 << 1 | 1 << 7 | 1);
    let found = offloads::offloads(&view, Some("acme"));
    let line = |p: &api::Pair| (p.from.clone(), p.to.clone(), p.checksum, p.tso4, p.tso6);
    use api::Treatment::{None, Segment, Whole};
    let text =
        |from: &str, to: &str, checksum, tso4, tso6| (from.to_owned(), to.to_owned(), checksum, tso4, tso6);
    let wanted = [
        text("acme/web1.0", "acme/web2.0", Whole, Segment, Segment),
        text("acme/web2.0", "acme/web1.0", None, None, None),
    ];
    assert_eq!(found.pairs.iter().map(line).collect::<Vec<_>>(), wanted);
    // globex has the uplink, and no VM that runs.
    assert_eq!(offloads::offloads(&view, Some("globex")).pairs, []);
    sample::running(&view, 2, 1 << 11 | 1 << 12);
    let found = offloads::offloads(&view, Some("globex"));
    let wanted = [
        text("globex/api.0", "uplink:lab", None, Whole, Segment),
        text("uplink:lab", "globex/api.0", api::Treatment::Checksum, None, None),
    ];
    assert_eq!(found.pairs.iter().map(line).collect::<Vec<_>>(), wanted);
}

#[test]
fn only_owners_write() {
    let folder = tempfile::tempdir().unwrap();
    let _server = serve(Board::new(sample::view(folder.path()))).unwrap();
    let answer = raw(folder.path(), "POST /v1/stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    for (caller, daemon, wanted) in [(0, 7, true), (7, 7, true), (8, 7, false)] {
        assert_eq!(may_write(caller, daemon), wanted);
    }
}

/// What a client of that user is answered.
fn asked(view: &View, uid: u32, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let served = tokio::spawn(Api::new(Board::new(view.clone())).answer(server, uid));
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        served.await.unwrap();
        answer
    })
}

#[test]
fn a_link_is_changed_by_those_who_may_and_by_a_clear_word() {
    let folder = tempfile::tempdir().unwrap();
    let view = sample::view(folder.path());
    let daemon = rustix::process::geteuid().as_raw();
    let down = r#"{"link":"down"}"#;
    for (uid, nic, body, wanted, why) in [
        (daemon + 1, "acme/web1/0", down, 403, "only root"),
        (daemon, "acme/web1/1", down, 404, "did you mean acme/web1.0?"),
        (daemon, "acme/%1b%5bx/0", down, 404, "packet-stats lists them"),
        (daemon, "acme/web1/0", "down", 400, "the body is not"),
        (daemon, "acme/web1/0", r#"{"link":"unknown"}"#, 400, "the body is not"),
        // There is no listening thread in this sample.
        (daemon, "acme/web1/0", down, 503, "the daemon is stopping"),
    ] {
        let length = body.len();
        let answer = asked(
            &view,
            uid,
            &format!(
                "PUT /v1/link/{nic} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            ),
        );
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")) && answer.contains(why), "{nic}: {answer}");
        assert!(!answer.contains('\x1b'), "{answer}");
    }
    view.ports.get(2).unwrap().status.lock().unwrap().shut = true;
    let links: Vec<_> = answers::stats(&view).ports.iter().map(|port| port.link).collect();
    assert_eq!(links, [api::Link::Up, api::Link::Up, api::Link::Down, api::Link::Up]);
}

#[test]
fn clients_that_say_nothing_do_not_stop_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let _server = serve(Board::new(sample::view(folder.path()))).unwrap();
    let path = folder.path().join(socket::SOCKET);
    let silent: Vec<_> = (0..CLIENTS + 50).map(|_| Client::connect(&path).unwrap()).collect();
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(2 * http::HEADER_BYTES));
    let _ = Client::connect(&path).unwrap().write_all(long.as_bytes());
    let start = Instant::now();
    let answer = raw(folder.path(), "GET /v1/stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(start.elapsed() < 4 * http::HEADER_TIME, "{:?}", start.elapsed());
    drop(silent);
}

#[test]
fn a_poisoned_lock_does_not_stop_the_answers() {
    let folder = tempfile::tempdir().unwrap();
    let view = sample::view(folder.path());
    let ports = view.ports.clone();
    let _ = std::thread::spawn(move || {
        let _held = ports.get(0).unwrap().status.lock().unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(Mutex::is_poisoned(&view.ports.get(0).unwrap().status));
    assert_eq!(answers::stats(&view).ports[0].state, api::State::Up);
    assert_eq!(view.ports.iter().count(), Snapshot::build(&view.topology, &[]).ids_end());
}

fn raw(run_dir: &std::path::Path, request: &str) -> String {
    let mut stream = Client::connect(run_dir.join(socket::SOCKET)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
