//! What an operator sees of a running daemon: built-in guests on real vhost-user sockets, `packet-stats` as a program,
//! Prometheus by TCP.

#![expect(clippy::indexing_slicing, reason = "JSON of our own programs: what is missing fails the test")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::daemon::binary;
use tests::{Daemon, capture, skip, step};
use vhost_net_backend::demo_guest::{DemoGuest, Host, Stack};

const FILE: &str = r#"version = 1
[router]
socket_group = "root"
metrics = "METRICS"
[tenant.acme.network.lan]
subnets = ["10.0.0.0/24", "fd00:1::/64"]
[tenant.acme.group.db]
ingress = [{ proto = "icmp", from = "vm:web" }, { proto = "udp", ports = ["7"], from = "vm:web" }]
[tenant.acme.vm.web]
nic = [{ network = "lan", addresses = ["10.0.0.2", "fd00:1::2"] }]
[tenant.acme.vm.db]
nic = [{ network = "lan", addresses = ["10.0.0.3", "fd00:1::3"], groups = ["db"] }]
[tenant.acme.vm.off]
nic = [{ network = "lan", addresses = ["10.0.0.4"] }]
"#;

struct Field {
    daemon: Daemon,
    metrics: String,
    web: DemoGuest,
    _db: DemoGuest,
}

impl Field {
    fn new() -> Result<Self> {
        // Free now; nobody else on this machine looks for one in this moment.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let file = FILE.replace("METRICS", &metrics);
        let daemon = Daemon::start_on(&file, None)?;
        let topology =
            topology::parse("observe.toml", &file).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        let guest = |vm: &str| -> Result<DemoGuest> {
            let host = Host::of(&topology, "acme", vm).context("no such VM")?;
            Ok(DemoGuest::spawn(&daemon.run_dir().join(format!("acme/{vm}.0.sock")), host)?)
        };
        let (web, _db) = (guest("web")?, guest("db")?);
        Ok(Self { daemon, metrics, web, _db })
    }

    /// `packet-stats` as a user runs it.
    fn packet_stats(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary("packet-stats")?);
        command.arg("--run-dir").arg(self.daemon.run_dir()).args(arguments);
        Ok(command.env("XDG_STATE_HOME", self.daemon.run_dir()).output()?)
    }

    /// The same in the background.
    fn listen(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(binary("packet-stats")?);
        command.arg("--run-dir").arg(self.daemon.run_dir()).args(arguments);
        Ok(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?)
    }

    /// Sends until it has seen enough; what it printed.
    fn feed(&self, mut listener: Child) -> Result<String> {
        let mut printed = listener.stdout.take().context("no output")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            printed.read_to_string(&mut text).map(|_| text)
        });
        let begun = Instant::now();
        while listener.try_wait()?.is_none() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "it does not end");
            traffic(self)?;
        }
        ensure!(listener.wait()?.success(), "the listener failed");
        Ok(reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??)
    }

    fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.packet_stats(arguments)?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// Every metric as written, with its value.
    fn scrape(&self) -> Result<Vec<(String, f64)>> {
        let mut stream = TcpStream::connect(&self.metrics)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of headers")?;
        ensure!(head.starts_with("HTTP/1.1 200") && body.ends_with("# EOF\n"), "{answer}");
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').context("no value")?;
                Ok((name.to_owned(), value.parse()?))
            })
            .collect()
    }
}

/// Pings, and datagrams to the echo service: some are dropped by a group.
fn traffic(field: &Field) -> Result<()> {
    for to in ["10.0.0.3", "fd00:1::3"] {
        let to = to.parse()?;
        let answered = field.web.run(move |stack: &mut Stack| stack.udp_echo(to, 50, 200))?;
        ensure!(answered > 0, "no echo from {to}");
        field.web.run(move |stack: &mut Stack| stack.ping(to, 5, 56))?;
    }
    let nobody = "10.0.0.9".parse()?;
    let patience = Duration::from_millis(1_200);
    field.web.run(move |stack: &mut Stack| stack.ping_patiently(nobody, 2, 56, patience))?;
    Ok(())
}

#[test]
fn a_question_is_answered_as_the_packet_path_would() -> Result<()> {
    let mut field = Field::new()?;
    traffic(&field)?;
    field.daemon.conserved()?;
    let before = (field.daemon.stats()?["totals"].clone(), field.text(&["flows", "--json"])?);
    step("what a rule admits, what none does, and who is not there");
    for (to, status, wanted) in [
        ("10.0.0.3:7/udp", 0, "Delivered to acme/db.0."),
        ("[fd00:1::3]:7/udp", 0, "Delivered to acme/db.0."),
        ("10.0.0.3:22/tcp", 1, "Dropped as policy.ingress, by topology.toml:7:"),
        ("10.0.0.4:80/tcp", 1, "Dropped as rx.not_connected."),
        ("10.0.0.9/icmp", 1, "Dropped as host.unknown, by topology.toml:5:"),
        ("10.0.0.1/icmp", 0, "The router itself answers."),
    ] {
        let output = field.packet_stats(&["trace", "--vm", "acme/web", "--to", to])?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.code() == Some(status) && text.contains(wanted), "{to}: {text}");
    }
    step("nothing was counted and no connection made");
    let after = (field.daemon.stats()?["totals"].clone(), field.text(&["flows", "--json"])?);
    ensure!(before == after, "{before:?} {after:?}");
    field.daemon.stop()
}

#[test]
fn prometheus_and_packet_stats_tell_the_same() -> Result<()> {
    let mut field = Field::new()?;
    for round in 0..2 {
        traffic(&field)?;
        field.daemon.conserved()?;
        step("quiet: the same totals");
        // The guests' stacks may still say something by themselves: both are read until nothing was between them.
        let same = (0..50).find_map(|_| match compare(&field) {
            Ok(false) => {
                std::thread::sleep(Duration::from_millis(100));
                None
            }
            other => Some(other),
        });
        same.context("never quiet")??;
        if round == 0 {
            step("and after another daemon took over, at the same address");
            field.daemon.take_over()?;
        }
    }
    field.daemon.stop()
}

/// Whether a scrape between two looks by `packet-stats` that saw the same saw it too.
fn compare(field: &Field) -> Result<bool> {
    let first = field.daemon.stats()?;
    let scraped = field.scrape()?;
    let second = field.daemon.stats()?;
    if first["totals"] != second["totals"] {
        return Ok(false);
    }
    for (metric, key) in [
        ("received_frames_total", "received"),
        ("received_bytes_total", "received_bytes"),
        ("delivered_vm_frames_total", "delivered_vm"),
        ("delivered_uplink_frames_total", "delivered_uplink"),
        ("consumed_frames_total", "consumed"),
        ("dropped_frames_total", "dropped"),
        ("held_frames", "held"),
        ("emitted_frames_total", "emitted"),
        ("emitted_bytes_total", "emitted_bytes"),
        ("refused_frames_total", "refused"),
        ("leases_total", "leases"),
        ("names_total", "names"),
    ] {
        let is = |name: &str| name.split('{').next() == Some(&format!("vmrouter_{metric}"));
        let sum: f64 = scraped.iter().filter(|(name, _)| is(name)).map(|(_, value)| value).sum();
        let wanted = first["totals"][key].as_f64().context("no total")?;
        ensure!((sum - wanted).abs() < 0.5, "{metric}: {sum}, packet-stats says {wanted}");
    }
    let drops = first["totals"]["drops"].as_object().context("no drops")?;
    ensure!(drops.values().any(|count| count.as_u64() > Some(0)), "nothing was dropped: {first}");
    for (reason, count) in drops {
        let of_reason = format!("reason=\"{reason}\"");
        let sum: f64 = scraped.iter().filter(|(name, _)| name.contains(&of_reason)).map(|(_, n)| n).sum();
        ensure!(Some(sum) == count.as_f64(), "{reason}: {sum} {count}");
    }
    Ok(true)
}

#[test]
fn since_last_shows_what_came_after_the_call_before() -> Result<()> {
    let mut field = Field::new()?;
    traffic(&field)?;
    field.daemon.conserved()?;
    let received = |field: &Field| -> Result<u64> {
        let all: Value = serde_json::from_str(&field.text(&["--since-last", "--json", "--vm", "db"])?)?;
        all["totals"]["received"].as_u64().context("no total")
    };
    let first = received(&field)?;
    ensure!(first > 50, "{first}");
    let to = "10.0.0.3".parse()?;
    field.web.run(move |stack: &mut Stack| stack.udp_echo(to, 3, 200))?;
    field.daemon.conserved()?;
    let second = received(&field)?;
    ensure!((3..20).contains(&second), "{first} {second}");
    let text = field.text(&["drops", "--since-last"])?;
    ensure!(text.ends_with("this is the first call.\n"), "{text}");
    let text = field.text(&["drops", "--since-last"])?;
    ensure!(text.starts_with("Nothing was dropped.\nSince the last call, "), "{text}");
    ensure!(
        field.packet_stats(&["flows", "--since-last"])?.status.code() == Some(2),
        "flows have no such flag"
    );
    field.daemon.stop()
}

#[test]
fn frames_that_pass_are_seen_with_their_fate() -> Result<()> {
    if skip::unless("capture", &[skip::program("tshark")]) {
        return Ok(());
    }
    let mut field = Field::new()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("all.pcapng");
    let name = file.to_str().context("no name")?;
    step("a capture of one VM: what it sends and what it is sent, more than one round of the traffic");
    field.feed(field.listen(&["capture", "--vm", "acme/db", "-n", "300", "-w", name])?)?;
    // Of the echo service, so both ends are the same port.
    let both = [
        ("udp.port == 7 && ip.dst == 10.0.0.3", "tenant=acme vm=web nic=0 to=acme/db.0"),
        ("udp.port == 7 && ip.src == 10.0.0.3", "tenant=acme vm=db nic=0 to=acme/web.0"),
    ];
    for (filter, comment) in both {
        let all = capture::frames(&file, filter)?.len();
        let commented =
            capture::frames(&file, &format!("{filter} && frame.comment contains \"{comment}\""))?.len();
        ensure!(all > 0 && all == commented, "{filter}: {commented} of {all} have {comment}");
    }
    ensure!(capture::frames(&file, "")?.len() == 300, "not 300 frames");
    ensure!(
        capture::frames(&file, "frame.comment contains \"drop=\" && ip.dst == 10.0.0.9")?.is_empty(),
        "of another VM"
    );
    ensure!(capture::frames(&file, "_ws.malformed")?.is_empty(), "malformed");
    let interfaces = interfaces(&file)?;
    ensure!(interfaces == ["acme/db.0", "acme/web.0"], "{interfaces:?}");

    step("only what was dropped, cut short");
    field.feed(field.listen(&["capture", "--drops", "-n", "2", "--snaplen", "64", "-w", name])?)?;
    let dropped = "ip.dst == 10.0.0.9 && frame.comment contains \"drop=host.unknown\" && frame.comment contains \"topology.toml:5:\"";
    ensure!(capture::frames(&file, dropped)?.len() == 2, "not two drops");
    ensure!(capture::frames(&file, "frame.cap_len <= 64 && frame.len > 64")?.len() == 2, "not cut");

    step("a live trace");
    let text = field.feed(field.listen(&["trace", "-n", "300", "--vm", "web"])?)?;
    for wanted in [
        "acme/web.0: 10.0.0.2 -> 10.0.0.9 icmp, ",
        "  Dropped as host.unknown, by topology.toml:5:",
        "  policy: of a connection that was let through",
        "  Delivered to acme/db.0.",
    ] {
        ensure!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    let text = field.feed(field.listen(&["trace", "-n", "3", "--drops", "--json"])?)?;
    ensure!(text.lines().count() == 3, "{text}");
    for line in text.lines() {
        let passed: Value = serde_json::from_str(line)?;
        ensure!(passed["fate"]["outcome"] == "dropped" && passed["from"] == "acme/web.0", "{line}");
    }

    step("nobody of that name; and every frame is accounted for");
    let refused = field.packet_stats(&["capture", "--vm", "nobody", "-n", "1"])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    field.daemon.conserved()?;
    field.daemon.stop()
}

/// Names of a capture's interfaces, sorted.
fn interfaces(file: &Path) -> Result<Vec<String>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file).args(["-T", "fields", "-e", "frame.interface_name"]);
    let mut names: Vec<_> = tests::process::output(&mut tshark)?.lines().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}
