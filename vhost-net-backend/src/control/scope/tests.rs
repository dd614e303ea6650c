//! Whatever the owner of a tenant asks, nothing in the answer is another's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use router::{DropReason, PortId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::server::OwnersApi;
use super::super::{api, sample};
use super::{LastSaid, SAID, SAY_EVERY};
use crate::counters::Counter;
use crate::daemon::{Board, View};

/// Two neighbours of acme, with names, addresses and MACs that stand nowhere else: one behind the same uplink, one peered.
const TOPOLOGY: &str = r#"
version = 1
[uplink.wan]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24"]
[tenant.acme]
uplinks = ["wan"]
owner = { uid = 1001 }
quota = { iops = 100 }
[tenant.acme.network.lan]
subnets = ["10.1.0.0/24"]
[tenant.acme.vm.web1]
nic = [{ network = "lan", addresses = ["10.1.0.11"] }]
[tenant.zorg]
uplinks = ["wan"]
owner = { uid = 1002 }
quota = { iops = 100 }
[tenant.zorg.network.zorgnet]
subnets = ["10.99.0.0/24"]
[tenant.zorg.vm.zorgvm]
nic = [{ network = "zorgnet", addresses = ["10.99.0.99"], mac = "52:54:00:99:99:99" }]
[tenant.yoyo.network.yoyonet]
subnets = ["10.88.0.0/24"]
[tenant.yoyo.vm.web11]
nic = [{ network = "yoyonet", addresses = ["10.88.0.88"], mac = "52:54:00:88:88:88" }]
[peering.pp]
between = ["acme/lan", "yoyo/yoyonet"]
allow = [{ proto = "tcp", ports = ["88"], from = "acme/lan" }]
"#;
/// The last is the frames that zorg sent.
const OTHERS: [&str; 8] = ["zorg", "yoyo", "web11", "10.99.", "10.88.0.0", "99:99", "88:88", "777777"];

fn view(folder: &tempfile::TempDir) -> View {
    let view = sample::view_of(folder.path(), TOPOLOGY);
    for port in 0..4 {
        sample::running(&view, port, 1 | 1 << 1 | 1 << 7 | 1 << 11);
    }
    view.counters.block(0, PortId(0)).add(Counter::Received, 3);
    for _ in 0..2 {
        view.counters.block(0, PortId(0)).dropped(DropReason::HostUnknown);
    }
    view.counters.block(0, PortId(1)).add(Counter::Received, 777_777);
    view.counters.block(0, PortId(2)).dropped(DropReason::SourceAddress);
    view
}

/// Status and body of the answer to user `uid` at acme's socket.
fn ask(view: &View, uid: u32, request: &str, body: &str) -> (u16, String) {
    ask_of(OwnersApi::new(Board::new(view.clone())), uid, request, body)
}

fn ask_of(api: OwnersApi, uid: u32, request: &str, body: &str) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let served = tokio::spawn(api.answer(server, uid, "acme".into()));
        let length = body.len();
        let head =
            format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        client.write_all((head + body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        served.await.unwrap();
        answer
    });
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[test]
fn no_answer_names_another() {
    let folder = tempfile::tempdir().unwrap();
    let view = view(&folder);
    let cases = [
        ("GET /v1/stats", 200),
        ("GET /v1/ports", 200),
        ("GET /v1/drops", 200),
        ("GET /v1/flows", 200),
        ("GET /v1/offloads", 200),
        ("GET /v1/offloads?tenant=acme", 200),
        ("GET /v1/offloads?tenant=zorg", 403),
        ("GET /v1/routes/acme", 200),
        ("GET /v1/routes/acme?lookup=10.88.0.88", 200),
        ("GET /v1/routes/acme?lookup=10.99.0.99", 200),
        ("GET /v1/routes/zorg", 403),
        ("GET /v1/routes/nobody", 403),
        ("GET /v1/vm/acme/web1", 200),
        ("GET /v1/vm/acme/web11", 404),
        ("GET /v1/vm/zorg/zorgvm", 403),
        ("GET /v1/vm/nobody/x", 403),
        ("PUT /v1/link/acme/web10/0", 404),
        ("PUT /v1/link/zorg/zorgvm/0", 403),
        ("GET /v1/own/zorg", 403),
        ("GET /v1/threads", 403),
        ("GET /v1/trace?from=acme/web1.0&to=10.88.0.88&protocol=icmp", 403),
        ("GET /v1/trace/live", 403),
        ("GET /v1/capture", 403),
        ("PUT /v1/confirm", 403),
        ("GET /v1/nothing", 403),
        ("DELETE /v1/stats", 405),
    ];
    for (request, wanted) in cases {
        let (status, body) = ask(&view, 1001, request, r#"{"link":"down"}"#);
        assert_eq!(status, wanted, "{request}: {body}");
        // What the owner has said itself may come back.
        for other in OTHERS.iter().filter(|other| !request.contains(**other)) {
            assert!(!body.contains(other), "{request}: {other} in {body}");
        }
    }
}

#[test]
fn an_owner_sees_its_own_and_strangers_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let view = view(&folder);
    let stats: api::Stats = serde_json::from_str(&ask(&view, 1001, "GET /v1/stats", "").1).unwrap();
    let names: Vec<_> = stats.ports.iter().map(|port| port.port.name.as_str()).collect();
    assert_eq!((names, stats.totals.received, stats.unenforced.len()), (vec!["acme/web1.0"], 3, 1));
    let drops: api::Drops = serde_json::from_str(&ask(&view, 1001, "GET /v1/drops", "").1).unwrap();
    assert_eq!((drops.drops.len(), drops.drops[0].count), (1, 2));
    let found = ask(&view, 1001, "GET /v1/routes/acme?lookup=10.88.0.88", "").1;
    let routes: api::Routes = serde_json::from_str(&found).unwrap();
    let route = &routes.routes[0];
    assert_eq!((route.to.as_str(), route.next_hop.as_deref()), ("10.88.0.88", Some("another tenant")));
    for (uid, wanted) in [(0, 200), (1002, 403), (64_055, 403)] {
        let (status, body) = ask(&view, uid, "GET /v1/stats", "");
        assert_eq!(status, wanted, "{uid}: {body}");
    }
    // Whose turn it is, is asked before anything else. There is no listening thread in this sample.
    let api = OwnersApi::new(Board::new(view));
    let link = |_| ask_of(api.clone(), 1001, "PUT /v1/link/acme/web1/0", r#"{"link":"down"}"#).0;
    assert_eq!([0, 1].map(link), [503, 429]);
}

#[test]
fn an_owner_who_asks_often_silences_no_other() {
    let (said, now) = (LastSaid(Default::default()), Instant::now());
    let [acme, zorg]: [Arc<str>; 2] = ["acme".into(), "zorg".into()];
    let soon = now + SAY_EVERY - Duration::from_millis(1);
    for (tenant, at, wanted) in [
        (&acme, now, true),
        (&acme, now, false),
        (&zorg, now, true),
        (&acme, soon, false),
        (&acme, now + SAY_EVERY, true),
        (&zorg, now + SAY_EVERY, true),
    ] {
        assert_eq!(said.may_say(tenant, at), wanted, "{tenant}");
    }
    for other in 0..2 * SAID {
        said.may_say(&format!("t{other}").into(), now + SAY_EVERY);
    }
    assert_eq!(said.0.lock().unwrap().len(), SAID);
}
