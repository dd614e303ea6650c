//! The four guests and what they do.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use router::DropReason;

use super::account;
use super::report::Report;
use crate::daemon::{Daemon, View};
use crate::demo_guest::talk::{End, Ping, Transfer};
use crate::demo_guest::{DemoGuest, GuestError, Host};

const PINGS: u16 = 20;
const DATAGRAMS: u16 = 200;
const TCP_PORT: u16 = 5001;
/// No stream of the demo takes longer, not in a debug build on a busy machine either.
const STREAM_LIMIT: Duration = Duration::from_secs(120);
/// How long to wait for the answer that must not come.
const SILENCE: Duration = Duration::from_millis(200);
/// Addresses that only blue/b has.
const ONLY_BLUE: [&str; 2] = ["10.0.0.77", "fd00:1::77"];

/// A guest with its name.
#[derive(Debug)]
pub(super) struct Actor {
    /// `red/a`.
    pub(super) name: String,
    /// The port's name: `red/a.0`.
    pub(super) port: String,
    socket: PathBuf,
    guest: DemoGuest,
    /// Frames that earlier guests on this port sent.
    sent_before: u64,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Scene {
    view: Arc<View>,
    red: [Actor; 2],
    blue: [Actor; 2],
}

impl Scene {
    /// Attaches the guests to the daemon's sockets.
    pub(super) fn attach(daemon: &Daemon, report: &mut Report) -> anyhow::Result<Self> {
        report.part("Guests attach");
        let view = daemon.view();
        let (red, blue) = (pair(&view, "red", report)?, pair(&view, "blue", report)?);
        Ok(Self { view, red, blue })
    }

    /// Every guest.
    pub(super) fn actors(&self) -> impl Iterator<Item = &Actor> {
        self.red.iter().chain(&self.blue)
    }

    /// Lets them talk.
    pub(super) fn play(&mut self, bytes: u64, report: &mut Report) {
        report.part("Tenant red talks, tenant blue listens");
        let before = heard(&self.blue);
        talk(&self.red, bytes, report);
        report.step("blue's guests, with the same addresses, heard", || nothing_since(&before, &self.blue));

        report.part("Tenant blue talks, tenant red listens");
        let before = heard(&self.red);
        talk(&self.blue, bytes / 4, report);
        report.step("red's guests, with the same addresses, heard", || nothing_since(&before, &self.red));

        report.part("An address that only blue has");
        for address in ONLY_BLUE {
            self.cross_over(address, report);
        }

        report.part("A guest is killed and comes again on the same socket");
        self.come_again(report);
    }

    /// red/a sends to an address that only blue has; then blue/a does, and is answered.
    fn cross_over(&self, address: &str, report: &mut Report) {
        let ([red, _], [blue, other]) = (&self.red, &self.blue);
        report.step(&format!("{} pings {address}", red.name), || {
            let to: IpAddr = address.parse()?;
            let reason = DropReason::HostUnknown;
            let dropped = || account::drops(&self.view, &red.port, reason);
            let (before, heard_before) = (dropped(), heard(&self.blue));
            let ping = red.guest.run(move |stack| stack.ping_patiently(to, 3, 56, SILENCE))?;
            anyhow::ensure!(ping.received == 0, "{} replies from another tenant", ping.received);
            // What must not arrive is followed by what must: nothing is under way any more when it has.
            let own = blue.guest.run(move |stack| stack.ping(to, 3, 56))?;
            anyhow::ensure!(own.received == own.sent, "{} cannot reach {}", blue.name, other.name);
            let count = dropped() - before;
            anyhow::ensure!(
                count == u64::from(ping.sent),
                "{count} of {} were dropped as {}",
                ping.sent,
                reason.name()
            );
            let arrived = heard(&self.blue);
            let [_, was] = heard_before;
            let [_, is] = arrived;
            anyhow::ensure!(
                is.frames - was.frames == u64::from(own.sent),
                "{} heard more than its own",
                other.name
            );
            Ok(format!(
                "no reply, {count} of {} dropped as {}; {} gets one",
                ping.sent,
                reason.name(),
                blue.name
            ))
        });
    }

    /// red/b's VMM dies; a new one attaches to the same socket.
    fn come_again(&mut self, report: &mut Report) {
        let [a, b] = &mut self.red;
        report.step(&format!("{} is killed and started again", b.name), || -> anyhow::Result<String> {
            b.sent_before += b.guest.ask(|stack| stack.counters().sent).wait()?;
            let host = b.guest.host().clone();
            b.guest.kill();
            b.guest = attach_again(&b.socket, &host)?;
            ping(a, b.guest.host().address(false))
        });
    }
}

impl Actor {
    /// Frames that guests on this port gave to the device since the start.
    pub(super) fn sent(&self) -> Result<u64, GuestError> {
        Ok(self.sent_before + self.guest.ask(|stack| stack.counters().sent).wait()?)
    }
}

/// Attaches both guests of a tenant.
pub(super) fn pair(view: &View, tenant: &str, report: &mut Report) -> anyhow::Result<[Actor; 2]> {
    Ok([actor(view, tenant, "a", report)?, actor(view, tenant, "b", report)?])
}

fn actor(view: &View, tenant: &str, vm: &str, report: &mut Report) -> anyhow::Result<Actor> {
    let name = format!("{tenant}/{vm}");
    let socket = view.run_dir.join(tenant).join(format!("{vm}.0.sock"));
    let host =
        Host::of(&view.topology, tenant, vm).with_context(|| format!("no VM {name} in the topology"))?;
    let guest =
        DemoGuest::spawn(&socket, host).with_context(|| format!("cannot attach to {}", socket.display()))?;
    let addresses: Vec<_> = [false, true].into_iter().filter_map(|v6| guest.host().address(v6)).collect();
    let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    report.step(&name, || Ok::<_, GuestError>(format!("{addresses} on {}", socket.display())));
    Ok(Actor { port: format!("{name}.0"), name, socket, guest, sent_before: 0 })
}

/// The daemon may need a moment to see that the old connection is gone.
fn attach_again(socket: &Path, host: &Host) -> Result<DemoGuest, GuestError> {
    for _ in 0..50 {
        if let Ok(guest) = DemoGuest::spawn(socket, host.clone()) {
            return Ok(guest);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    DemoGuest::spawn(socket, host.clone())
}

/// Ping, UDP and TCP between the two guests of a tenant, and pings to its gateway, over IPv4 and IPv6.
fn talk([a, b]: &[Actor; 2], bytes: u64, report: &mut Report) {
    for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
        let target = b.guest.host().address(v6);
        let gateway = a.guest.host().gateway(v6);
        report.step(&format!("{family} ping {} to {}", a.name, b.name), || ping(a, target));
        report.step(&format!("{family} ping {} to its gateway", a.name), || ping(a, gateway));
        report.step(&format!("{family} UDP {} to {} and back", a.name, b.name), || udp(a, target));
        report.step(&format!("{family} TCP {} to {} and back", a.name, b.name), || tcp(a, b, target, bytes));
    }
}

fn ping(from: &Actor, to: Option<IpAddr>) -> anyhow::Result<String> {
    let to = to.context("no address of that family")?;
    // Either end may lose its first packet to the question who its neighbour is.
    from.guest.run(move |stack| stack.ping(to, 1, 56))?;
    whole(from.guest.run(move |stack| stack.ping(to, PINGS, 56))?)
}

fn whole(ping: Ping) -> anyhow::Result<String> {
    let Ping { sent, received, fastest, slowest } = ping;
    anyhow::ensure!(sent == received, "{received} of {sent} replies");
    Ok(format!("{received} of {sent} replies, {fastest:.0?} to {slowest:.0?}"))
}

fn udp(from: &Actor, to: Option<IpAddr>) -> anyhow::Result<String> {
    let to = to.context("no address of that family")?;
    let back = from.guest.run(move |stack| stack.udp_echo(to, DATAGRAMS, 1200))?;
    anyhow::ensure!(back == DATAGRAMS, "{back} of {DATAGRAMS} datagrams came back whole");
    Ok(format!("{back} of {DATAGRAMS} datagrams of 1200 bytes came back whole"))
}

/// One stream in each direction, one after the other: smoltcp stalls for seconds now and then when both ends of a
/// connection send at full speed.
fn tcp(from: &Actor, at: &Actor, to: Option<IpAddr>, bytes: u64) -> anyhow::Result<String> {
    let to = to.context("no address of that family")?;
    let there = stream(from, at, to, bytes, 0)?;
    let back = stream(from, at, to, 0, bytes)?;
    Ok(format!("{} MiB each way, every byte right, {} and {}", bytes >> 20, rate(there), rate(back)))
}

fn stream(from: &Actor, at: &Actor, to: IpAddr, out: u64, back: u64) -> anyhow::Result<Transfer> {
    let listener = at.guest.ask(move |stack| stack.tcp(End::Listen(TCP_PORT), back, out, STREAM_LIMIT));
    let near = from.guest.run(move |stack| stack.tcp(End::Connect(to, TCP_PORT), out, back, STREAM_LIMIT));
    let (near, far) = (near?, listener.wait()??);
    let right = (near.sent, near.received, far.sent, far.received) == (out, back, back, out);
    anyhow::ensure!(right, "{near:?} and {far:?} instead of {out} bytes there and {back} back");
    Ok(near)
}

fn rate(transfer: Transfer) -> String {
    let megabits = transfer.rate().saturating_mul(8) / 1_000_000;
    format!("{}.{:02} Gbit/s", megabits / 1000, megabits % 1000 / 10)
}

/// What one guest heard that somebody must have sent it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ears {
    /// Frames, but for ARP, neighbour discovery and router advertisements.
    frames: u64,
    /// Of these, packets for somebody else's address.
    strangers: u64,
    /// Frames whose checksum was wrong.
    bad: u64,
}

pub(super) fn heard(pair: &[Actor; 2]) -> [Ears; 2] {
    pair.each_ref().map(|actor| {
        let counts = actor.guest.ask(|stack| (stack.counters(), stack.heard())).wait();
        // A guest that died hears nothing; the step that talks to it fails.
        let (counters, heard) = counts.unwrap_or_default();
        let frames = counters.received - heard.housekeeping;
        Ears { frames, strangers: heard.strangers, bad: heard.bad_checksums }
    })
}

pub(super) fn nothing_since(before: &[Ears; 2], pair: &[Actor; 2]) -> anyhow::Result<String> {
    for (actor, (was, is)) in pair.iter().zip(before.iter().zip(heard(pair))) {
        let frames = is.frames - was.frames;
        anyhow::ensure!(frames == 0, "{} heard {frames} frames that were not for it", actor.name);
        anyhow::ensure!(is.strangers == 0, "{} got packets for another address", actor.name);
        anyhow::ensure!(is.bad == 0, "{} got {} wrong checksums", actor.name, is.bad);
    }
    Ok("nothing".into())
}
