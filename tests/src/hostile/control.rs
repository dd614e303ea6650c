//! Section G: hostile clients of the control socket, and files that are no topology.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Case, Field, Wanted, case};
use crate::daemon::binary;
use crate::wait::wait_for;

/// A client that does not come to its end is cut off by then.
const PATIENCE: Duration = Duration::from_secs(3);
/// Whatever is wrong with a file is said by then.
const CHECK: Duration = Duration::from_secs(5);

/// The cases.
pub const CASES: &[Case] = &[
    case("G95 file that is not UTF-8", "bytes 0xff in the topology", Wanted::Refused, |_| check(&[255; 100])),
    case("G95 file of 100 MB", "far more than the limit", Wanted::Refused, |_| check(&vec![b'#'; 100 << 20])),
    case("G95 file without end", "/dev/zero as topology", Wanted::Refused, |_| check_path("/dev/zero")),
    case("G95 deep nesting", "100,000 brackets", Wanted::Refused, |_| {
        check(&[&b"version = 1\nx = "[..], &vec![b'['; 100_000]].concat())
    }),
    case("G95 wrong syntax", "half a table header", Wanted::Refused, |_| check(b"version = 1\n[tenant.a")),
    case("G95 unknown key", "a key that nobody knows", Wanted::Refused, |_| {
        check(b"version = 1\nno_such_key = 1\n")
    }),
    case("G95 negative number", "a version of -1", Wanted::Refused, |_| check(b"version = -1\n")),
    case("G95 path in a name", "a VM named ../../etc", Wanted::Refused, |_| {
        check(b"version = 1\n[tenant.a.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n[tenant.a.vm.\"../../etc\"]\n[[tenant.a.vm.\"../../etc\".nic]]\nnetwork = \"lan\"\n")
    }),
    case("G95 escape sequence in a name", "a tenant named ESC c", Wanted::Refused, |_| {
        check(b"version = 1\n[tenant.\"\\u001bc\".network.lan]\nsubnets = [\"10.0.0.0/24\"]\n")
    }),
    case("D77 one MAC for two guests", "the file gives both the same", Wanted::Refused, |_| {
        check(&twins("mac = \"52:54:00:00:00:02\"", "mac = \"52:54:00:00:00:02\""))
    }),
    case("D77 one address for two guests", "the file gives both the same", Wanted::Refused, |_| {
        check(&twins("addresses = [\"10.0.0.2\"]", "addresses = [\"10.0.0.2\"]"))
    }),
    case("D77 two guests", "the same file with two addresses is good", Wanted::Obeyed, |_| {
        let good = twins("addresses = [\"10.0.0.2\"]", "addresses = [\"10.0.0.3\"]");
        ensure!(check(&good).is_err(), "the file is refused for something else");
        Ok(())
    }),
    case("G95 a million guests", "a file with 1,000,000 VMs", Wanted::Refused, |_| {
        let vms: String = (0..1_000_000)
            .map(|n| format!("[tenant.a.vm.g{n}]\nnic = [{{ network = \"lan\" }}]\n"))
            .collect();
        check(format!("version = 1\n[tenant.a.network.lan]\nsubnets = [\"10.0.0.0/8\"]\n{vms}").as_bytes())
    }),
    case("G95 second daemon", "another daemon on the same run directory", Wanted::Refused, |f| {
        let run_dir = f.daemon.run_dir();
        let file = run_dir.parent().context("no folder")?.join("topology.toml");
        let mut second = Command::new(binary("vmrouter")?);
        second
            .arg("run")
            .arg(file)
            .arg("--run-dir")
            .arg(&run_dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        second.env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET");
        let mut child = second.spawn()?;
        let ended = wait_for("the second daemon's end", CHECK, || Ok(child.try_wait()?));
        let _ = child.kill();
        let _ = child.wait();
        ensure!(!ended?.success(), "it ran");
        Ok(())
    }),
    case("G97 silent client", "connect and say nothing", Wanted::PortDies, |f| closed(f, b"")),
    case("G97 partial line", "half a request line, and silence", Wanted::PortDies, |f| {
        closed(f, b"GET /v1/st")
    }),
    case("G97 partial headers", "headers that never end", Wanted::PortDies, |f| {
        closed(f, b"GET /v1/stats HTTP/1.1\r\nHost: a\r\nX: ")
    }),
    case("G97 line of 10 MB", "a request line without end", Wanted::PortDies, |f| {
        closed(f, &[&b"GET /"[..], &vec![b'a'; 10 << 20]].concat())
    }),
    case("G97 100,000 headers", "a megabyte of headers", Wanted::PortDies, |f| {
        closed(f, &[&b"GET /v1/stats HTTP/1.1\r\n"[..], &b"A: b\r\n".repeat(100_000)].concat())
    }),
    case("G97 binary garbage", "4 KiB that are no HTTP", Wanted::PortDies, |f| closed(f, &[0xa5; 4096])),
    case("G97 body of 10 MB", "a POST larger than the limit", Wanted::PortDies, |f| {
        let head = b"POST /v1/stats HTTP/1.1\r\nHost: a\r\nContent-Length: 10485760\r\n\r\n";
        closed(f, &[&head[..], &vec![b'x'; 10 << 20]].concat())
    }),
    case("G97 body of 2^64 bytes", "a content length that wraps", Wanted::PortDies, |f| {
        closed(f, b"POST /v1/stats HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n")
    }),
    case("G97 unknown resource", "paths that do not exist, or climb", Wanted::Refused, |f| {
        for path in [
            "/",
            "/v1/../../etc/passwd",
            "/v1/vm/acme/%2e%2e%2f",
            "/v1/routes/nobody",
            "/v1/routes/acme?lookup=x",
        ] {
            let answer = ask(f, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))?;
            ensure!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        }
        Ok(())
    }),
    case("G97 1000 clients", "more clients than are served at once, all silent", Wanted::Harmless, |f| {
        let clients = (0..1000).map(|_| client(f)).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        f.daemon.stats()?;
        ensure!(start.elapsed() < PATIENCE, "an answer took {:?}", start.elapsed());
        drop(clients);
        Ok(())
    }),
    case("G97 client that never reads", "2000 requests, no answer read", Wanted::PortDies, |f| {
        let mut stream = client(f)?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        for _ in 0..2000 {
            if stream.write_all(b"GET /v1/stats HTTP/1.1\r\nHost: a\r\n\r\n").is_err() {
                break;
            }
        }
        f.daemon.stats().map(drop)
    }),
    case("G98 readers killed", "200 requests whose reader is gone at once", Wanted::Harmless, |f| {
        for _ in 0..200 {
            client(f)?.write_all(b"GET /v1/stats HTTP/1.1\r\nHost: a\r\n\r\n")?;
        }
        f.daemon.stats().map(drop)
    }),
];

fn client(field: &Field) -> Result<UnixStream> {
    let stream = UnixStream::connect(field.daemon.run_dir().join("control.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(field: &Field, request: &str) -> Result<String> {
    let mut stream = client(field)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Sends that, as far as it is taken, and waits to be cut off.
fn closed(field: &mut Field, bytes: &[u8]) -> Result<()> {
    let mut stream = client(field)?;
    // It may be cut off in the middle.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => anyhow::bail!("not cut off"),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A file with two VMs of one network, and these words in their NICs.
fn twins(a: &str, b: &str) -> Vec<u8> {
    let vm = |name, words| format!("[tenant.t.vm.{name}]\nnic = [{{ network = \"lan\", {words} }}]\n");
    let network = "version = 1\n[tenant.t.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n";
    [network, &vm("a", a), &vm("b", b)].concat().into_bytes()
}

/// `vmrouter check` must refuse that file.
fn check(file: &[u8]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("topology.toml");
    fs::write(&path, file)?;
    check_path(&path.to_string_lossy())
}

fn check_path(path: &str) -> Result<()> {
    let mut command = Command::new(binary("vmrouter")?);
    let mut child = command.args(["check", path]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let ended = wait_for("the end of vmrouter check", CHECK, || Ok(child.try_wait()?));
    let _ = child.kill();
    let _ = child.wait();
    let code = ended?.code();
    ensure!(code == Some(2) || code == Some(1), "exit code {code:?}");
    Ok(())
}
