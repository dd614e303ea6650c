//! Two tenants with the same subnets whose guests do all they can to reach each other.
//!
//! Four guests, two of each tenant, send forged frames ([`forge`]) from chains of every layout ([`guest`]) through a
//! real daemon. Everything of a tenant carries its canary ([`canary`]). No guest may ever find the other tenant's: in
//! what it receives, in any byte of its memory, on its uplink ([`uplink`]) or in what the control socket says about
//! it. By turns only one tenant speaks, and then no counter of the other may move.
//!
//! That whoever looks can also find is shown by the own canary, which must have arrived everywhere.

pub mod canary;
pub mod forge;
pub mod guest;
pub mod mutate;
pub mod random;
pub mod uplink;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::hostile::frames::Host;
use crate::scenario::{VmIndex, VmShape};
use crate::{Daemon, Scenario, Wan, stats};
use canary::Canary;
use forge::Targets;
use guest::Guest;
use random::Random;
use uplink::Watch;

/// Frames of one turn: the first tenant alone, the second alone, both.
const TURN: u64 = 30_000;
/// Frames that a guest sends at a time.
const BURST: u16 = 64;
/// Every part of memory is looked through so often, in turns.
const TURNS_BETWEEN_SCANS: u64 = 3;
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(2);
/// The tenants.
const TENANTS: [&str; 2] = ["acme", "globex"];
/// Of both.
const SUBNETS: [&str; 2] = ["10.0.0.0/24", "fd00:1::/64"];
/// Their guests.
const GUESTS: [&str; 2] = ["a", "b"];

/// What is going on.
#[derive(Debug)]
pub struct Adversary {
    daemon: Daemon,
    /// The first tenant's two, then the second's.
    guests: Vec<Guest>,
    wan: Option<(Wan, Watch)>,
    seed: u64,
}

/// How it went.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Frames sent.
    pub frames: u64,
    /// Buffers received, and those with the own canary.
    pub received: u64,
    /// The latter.
    pub own: u64,
    /// Memories looked through.
    pub scans: u64,
    /// VMMs attached.
    pub lives: u64,
    /// Reasons for drops that happened, with their counts.
    pub reasons: Vec<(String, u64)>,
    /// What passed on the uplink, and what tcpdump missed.
    pub uplink: Option<(uplink::Passed, String)>,
    /// How long it took.
    pub took: Duration,
}

impl Adversary {
    /// Starts the daemon and all guests; with the second tenant's uplink if that is possible here.
    ///
    /// # Errors
    /// Whatever does not start.
    pub fn new(seed: u64, with_uplink: bool) -> Result<Self> {
        let mut scenario = Scenario::default();
        let wan = with_uplink.then(Wan::new).transpose()?;
        let uplink = wan.as_ref().map(|_| Wan::uplink(&mut scenario)).transpose()?;
        let mut places = Vec::new();
        for (name, uplinks) in TENANTS.into_iter().zip([&[][..], uplink.as_slice()]) {
            let tenant = scenario.tenant(name, &SUBNETS, uplinks)?;
            for vm in GUESTS {
                places.push((format!("{name}/{vm}.0.sock"), scenario.vm(tenant, vm, VmShape::default())?));
            }
        }
        Self::start(seed, &scenario, &places, wan)
    }

    /// The same four guests in one tenant: whoever looks must find, or the other run shows nothing.
    ///
    /// # Errors
    /// Whatever does not start.
    pub fn without_walls(seed: u64) -> Result<Self> {
        let mut scenario = Scenario::default();
        let tenant = scenario.tenant("acme", &SUBNETS, &[])?;
        let place = |vm: &str| -> Result<_> {
            Ok((format!("acme/{vm}.0.sock"), scenario.vm(tenant, vm, VmShape::default())?))
        };
        let places = ["a", "b", "c", "d"].into_iter().map(place).collect::<Result<Vec<_>>>()?;
        Self::start(seed, &scenario, &places, None)
    }

    fn start(seed: u64, scenario: &Scenario, places: &[(String, VmIndex)], wan: Option<Wan>) -> Result<Self> {
        let hosts = places.iter().map(|(_, vm)| Host::of(scenario, *vm)).collect::<Result<Vec<_>>>()?;
        let daemon = Daemon::start(scenario, wan.as_ref().map(|wan| &wan.router))?;
        let watch = |wan: Wan| -> Result<_> {
            let folder = daemon.run_dir();
            let watch = Watch::start(&wan.router, Wan::TAP, Canary::GLOBEX, Canary::ACME, &folder)?;
            Ok((wan, watch))
        };
        let wan = wan.map(watch).transpose()?;
        let [a, b, x, y] = hosts.as_slice() else { anyhow::bail!("four guests") };
        let all = [(a, b, [x, y]), (b, a, [x, y]), (x, y, [a, b]), (y, x, [a, b])];
        let mut guests = Vec::new();
        for (number, ((me, peer, foreign), (socket, _))) in all.into_iter().zip(places).enumerate() {
            let path = daemon.run_dir().join(socket);
            let (own, other) = canaries(number / 2);
            let targets = Targets { me: *me, peer: *peer, foreign: foreign.map(|host| *host), canary: own };
            let random = Random::new(seed.wrapping_mul(4).wrapping_add(u64::try_from(number)?));
            guests.push(Guest::new(path, targets, other, random)?);
        }
        Ok(Self { daemon, guests, wan, seed })
    }

    /// Sends `frames` frames and checks everything.
    ///
    /// # Errors
    /// A tenant found something of the other's, or a counter is wrong. The seed is in the message.
    pub fn run(mut self, frames: u64) -> Result<Summary> {
        let seed = self.seed;
        self.turns(frames).with_context(|| format!("VMROUTER_SEED={seed} repeats these frames"))
    }

    fn turns(&mut self, frames: u64) -> Result<Summary> {
        let (start, mut shown) = (Instant::now(), Instant::now());
        let mut sent = 0;
        let mut turn = 0_u64;
        while sent < frames {
            let speakers: &[usize] = match turn % 3 {
                0 => &[0, 1],
                1 => &[2, 3],
                _ => &[0, 1, 2, 3],
            };
            sent += self.turn(speakers, TURN.min(frames - sent))?;
            turn += 1;
            if turn.is_multiple_of(TURNS_BETWEEN_SCANS) {
                self.look_everywhere()?;
            }
            if shown.elapsed() >= PROGRESS || sent >= frames {
                shown = Instant::now();
                let rate = 1000 * u128::from(sent) / start.elapsed().as_millis().max(1);
                println!("{sent} of {frames} frames, {rate} a second");
            }
        }
        self.guests.iter_mut().try_for_each(Guest::settle)?;
        self.look_everywhere()?;
        self.summary(start.elapsed())
    }

    /// So many frames from these guests; of a tenant that is silent no counter moves.
    fn turn(&mut self, speakers: &[usize], frames: u64) -> Result<u64> {
        self.guests.iter_mut().try_for_each(Guest::settle)?;
        let before = self.daemon.stats()?;
        let (mut sent, end) = (0, Instant::now() + Duration::from_secs(60));
        while sent < frames {
            ensure!(Instant::now() < end, "the rings do not move");
            for (number, guest) in self.guests.iter_mut().enumerate() {
                let most = if speakers.contains(&number) { BURST } else { 0 };
                sent += guest.step(most)?;
            }
        }
        self.guests.iter_mut().try_for_each(Guest::settle)?;
        let after = self.daemon.stats()?;
        for (tenant, name) in TENANTS.into_iter().enumerate() {
            if !speakers.contains(&(2 * tenant)) {
                silent(&before, &after, name)?;
            }
        }
        Ok(sent)
    }

    /// Memory of every guest, the uplink, and the answers about each tenant.
    fn look_everywhere(&mut self) -> Result<()> {
        self.guests.iter_mut().try_for_each(Guest::scan)?;
        self.wan.iter().try_for_each(|(_, watch)| watch.still_runs())?;
        for (tenant, name) in TENANTS.into_iter().enumerate() {
            let (own, other) = canaries(tenant);
            let stranger = TENANTS.into_iter().find(|other| *other != name).unwrap_or_default();
            for path in [
                format!("/v1/vm/{name}/a"),
                format!("/v1/vm/{name}/b"),
                format!("/v1/routes/{name}"),
                format!("/v1/offloads?tenant={name}"),
            ] {
                let answer = self.ask(&path)?;
                ensure!(answer.contains("200 OK") && answer.contains(name), "{path}: {answer}");
                ensure!(!answer.contains(stranger), "{path} speaks of {stranger}: {answer}");
                ensure!(!other.shows_in(&answer) && !own.shows_in(&answer), "{path} shows data: {answer}");
            }
        }
        Ok(())
    }

    fn ask(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.daemon.run_dir().join("control.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn summary(&mut self, took: Duration) -> Result<Summary> {
        self.daemon.conserved()?;
        let stats = self.daemon.stats()?;
        let mut summary = Summary { took, ..Summary::default() };
        for guest in &self.guests {
            ensure!(guest.seen.own > 0, "a guest never found its own tenant's canary: nobody looked");
            summary.frames += guest.seen.sent;
            summary.received += guest.seen.received;
            summary.own += guest.seen.own;
            summary.scans += guest.seen.scans;
            summary.lives += guest.seen.lives;
        }
        for reason in router::DropReason::ALL {
            let count = stats::ports(&stats)?.iter().map(|port| port.drops(reason.name())).sum();
            if count > 0 {
                summary.reasons.push((reason.name().to_owned(), count));
            }
        }
        // The same look at memory, for what must be there: received frames of the own tenant.
        for (number, guest) in self.guests.iter().enumerate() {
            let (own, _) = canaries(number / 2);
            ensure!(guest.holds(own)?, "a memory does not show even its own tenant's canary");
        }
        if let Some((_, watch)) = self.wan.take() {
            let (passed, missed) = watch.stop()?;
            ensure!(passed.own > 0, "the uplink never carried its own tenant's canary: nobody looked");
            summary.uplink = Some((passed, missed));
        }
        Ok(summary)
    }
}

fn canaries(tenant: usize) -> (Canary, Canary) {
    if tenant == 0 { (Canary::ACME, Canary::GLOBEX) } else { (Canary::GLOBEX, Canary::ACME) }
}

/// Fails if a counter of the tenant's ports moved. They may get late answers from beyond the uplink, and an advertisement
/// each of the router's own.
fn silent(before: &Value, after: &Value, tenant: &str) -> Result<()> {
    let mut emitted = 0;
    for vm in GUESTS {
        let [before, after] = [stats::port(before, tenant, vm)?, stats::port(after, tenant, vm)?];
        for name in ["received", "received_bytes", "delivered_vm", "delivered_uplink", "consumed", "refused"]
        {
            let [was, is] = [before.counter(name)?, after.counter(name)?];
            ensure!(was == is, "{tenant} was silent, and {name} of {vm} went from {was} to {is}");
        }
        ensure!(before.all_drops() == after.all_drops(), "{tenant} was silent, and {vm} dropped frames");
        emitted += after.counter("emitted")? - before.counter("emitted")?;
    }
    let [was, is] = [stats::uplinks_delivered(before)?, stats::uplinks_delivered(after)?];
    let most = 2 + is - was;
    ensure!(emitted <= most, "{tenant} was silent, and got {emitted} frames, {} from its uplink", is - was);
    Ok(())
}

impl std::fmt::Display for Summary {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = u128::from(self.frames) * 1000 / self.took.as_millis().max(1);
        writeln!(out, "{} frames in {:.1?}, {rate} a second", self.frames, self.took)?;
        writeln!(
            out,
            "{} buffers received, {} of them with the own tenant's canary",
            self.received, self.own
        )?;
        writeln!(out, "{} memories looked through, {} VMMs attached", self.scans, self.lives)?;
        if let Some((passed, missed)) = &self.uplink {
            writeln!(out, "{} bytes on the uplink; {missed}", passed.bytes)?;
        }
        for (reason, count) in &self.reasons {
            writeln!(out, "  {reason:<24} {count:>10}")?;
        }
        Ok(())
    }
}
