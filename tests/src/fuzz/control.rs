//! Requests to the control socket, and to that of a tenant's owner, by way of the HTTP server that the daemon has, over a pipe
//! in memory.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use anyhow::{Context as _, Result, ensure};
use router::snapshot::PortIds;
use router::{Meters, PortId, Snapshot};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use vhost_net_backend::control::{Api, OwnersApi};
use vhost_net_backend::counters::{Counter, Counters};
use vhost_net_backend::daemon::{Board, View};
use vhost_net_backend::health::Health;
use vhost_net_backend::port::{Negotiated, Peer, PortShared, PortTable, RingStatus};
use vhost_net_backend::vhost_user::Links;

use super::input::Input;

const TOPOLOGY: &str = include_str!("two_tenants.toml");
/// What a client may have sent before it reads: all of a small input.
const PIPE: usize = 1 << 16;
/// Turns that each side gets for a request: an answer takes three.
const TURNS: usize = 32;
const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "DELETE", "OPTIONS"];
const PATHS: [&str; 14] = [
    "/v1/stats",
    "/v1/ports",
    "/v1/drops",
    "/v1/threads",
    "/v1/offloads?tenant=",
    "/v1/routes/",
    "/v1/routes/acme?lookup=",
    "/v1/vm/",
    "/v1/trace?protocol=icmp&from=acme/web.0&to=",
    "/v1/flows",
    "/v1/vm/globex/",
    "/v1/own/",
    "/v1/mirrors",
    "/",
];
/// Whose socket it is, if it is not the operator's.
const TENANT: &str = "acme";
/// What no answer at that socket has in it.
const OTHER: &[u8] = b"globex";
/// Root, who may do everything, and somebody else: the owner of acme.
const USERS: [u32; 2] = [0, 4242];

/// The operator's, and that of owners.
static APIS: LazyLock<Option<(Api, OwnersApi)>> = LazyLock::new(|| {
    let board = Board::new(view().ok()?);
    Some((Api::new(board.clone()), OwnersApi::new(board)))
});

/// One input.
///
/// # Errors
/// What is wrong with the answer.
pub fn run(data: &[u8]) -> Result<()> {
    let mut input = Input::new(data);
    let choice = input.byte();
    let uid = USERS.get(usize::from(choice & 1)).copied().unwrap_or_default();
    let own = choice & 4 != 0;
    if choice & 2 != 0 {
        // Whatever bytes: the server may close, but what it says is HTTP.
        let answer = ask(input.rest(), uid, own)?;
        ensure!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "not an answer: {:?}", head(&answer));
        return Ok(());
    }
    let method = input.pick(&METHODS).unwrap_or("GET");
    let mut target = input.pick(&PATHS).unwrap_or("/").as_bytes().to_vec();
    let lines = [b'\r', b'\n', b' '];
    target.extend(input.rest().iter().filter(|byte| !lines.contains(byte)));
    let mut request = format!("{method} ").into_bytes();
    request.extend(target);
    request.extend(b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = ask(&request, uid, own)?;
    let names_other = answer.windows(OTHER.len()).any(|bytes| bytes == OTHER);
    ensure!(!own || !names_other, "an owner is told of another: {}", String::from_utf8_lossy(&answer));
    check(method, &answer)
}

/// One answer, whole.
fn check(method: &str, answer: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(answer).context("the answer is not text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("no status")?;
    let status: u16 = status.parse()?;
    // Here is nothing that could change the configuration, as when the daemon is about to end; to HEAD it does not say so.
    let ends = status == 503 && (method == "HEAD" || body.contains("the daemon is about to end"));
    ensure!(status < 500 || ends, "status {status}");
    let is_json = head.lines().any(|line| line == "content-type: application/json");
    // Only the HTTP library itself answers without a body: to what it cannot read.
    if method != "HEAD" && is_json {
        let value: Value = serde_json::from_str(body).context("the body is not JSON")?;
        ensure!(status == 200 || value.get("error").is_some_and(Value::is_string), "no error in {value}");
    }
    ensure!(is_json || status == 400 || status == 414 || status == 431, "status {status} without JSON");
    Ok(())
}

fn head(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).chars().take(40).collect()
}

/// Sends the bytes and takes what comes back; the client goes once the server has nothing more to say.
fn ask(request: &[u8], uid: u32, own: bool) -> Result<Vec<u8>> {
    let (operators, owners) = APIS.clone().context("no control API")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let (client, server) = duplex(PIPE);
        let (mut reader, mut writer) = tokio::io::split(client);
        let served = async {
            match own {
                true => owners.answer(server, uid, TENANT.into()).await,
                false => operators.answer(server, uid).await,
            }
        };
        let asked = async {
            // A server that closes early is no defect.
            let _ = writer.write_all(request).await;
            // All is in memory and on this thread: after some turns the server waits for more, or has ended.
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            let _ = writer.shutdown().await;
            let mut answer = Vec::new();
            let _ = reader.read_to_end(&mut answer).await;
            answer
        };
        let ((), answer) = tokio::join!(served, asked);
        Ok(answer)
    })
}

/// Two tenants: one NIC runs, one is connected only.
fn view() -> Result<View> {
    let topology =
        topology::parse("fuzz.toml", TOPOLOGY).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let snapshot = Arc::new(Snapshot::build(&topology, &[]));
    let ports = snapshot.ports();
    let ports: PortTable = ports.map(|(id, port)| PortShared::new(id, port.name.clone(), Some(1))).collect();
    for (port, running) in ports.iter().zip([true, false]) {
        let Ok(mut status) = port.status.lock() else { continue };
        status.peer = Some(Peer { pid: 7, uid: 64055 });
        status.negotiated = Negotiated { features: u64::MAX, mtu: Some(1500), ..Negotiated::default() };
        status.rings =
            if running { vec![RingStatus { index: 0, size: 256, enabled: true }] } else { Vec::new() };
    }
    let counters = Counters::new(1, snapshot.ids_end());
    counters.block(0, PortId(0)).add(Counter::Received, 3);
    let (run_dir, health) = (PathBuf::from("run"), Arc::new(Health::new(1)));
    let (links, _) = Links::new()?;
    let (ids, macs) = (PortIds::fresh(&topology), vec![topology::Mac::default(); topology.uplinks.len()]);
    let (topology, flows) = (Arc::new(topology), Arc::default());
    Ok(View {
        topology,
        snapshot,
        ids,
        macs,
        meters: Meters::default(),
        ports,
        counters,
        mirrors: Arc::default(),
        flows,
        run_dir,
        health,
        links,
    })
}
