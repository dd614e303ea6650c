//! What is to be seen: rates between two answers of the daemon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::control::api::{Counts, Link, State, Stats, Threads};
use crate::control::drops;

/// What the daemon said at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) stats: Stats,
    pub(super) threads: Threads,
}

/// What is to be seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    pub(super) router: String,
    pub(super) uptime: Duration,
    /// Whether there are rates already.
    pub(super) measured: bool,
    pub(super) total: Rates,
    /// Those that move most first.
    pub(super) tenants: Vec<Tenant>,
    /// The most frequent first: a second, and since the daemon's start.
    pub(super) drops: Vec<(String, u64, u64)>,
    pub(super) workers: Vec<Worker>,
    pub(super) unenforced: usize,
    /// Why this is not what is now.
    pub(super) trouble: Option<String>,
}

/// A tenant, or the uplinks.
#[derive(Clone, Debug, Default)]
pub(super) struct Tenant {
    pub(super) name: String,
    pub(super) rates: Rates,
    /// Those that move most first.
    pub(super) ports: Vec<Port>,
}

/// A NIC or an uplink.
#[derive(Clone, Debug, Default)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) state: State,
    /// Its link was taken down.
    pub(super) shut: bool,
    pub(super) rates: Rates,
}

/// How busy a worker is, in thousandths of the time.
#[derive(Clone, Debug, Default)]
pub(super) struct Worker {
    pub(super) worker: usize,
    pub(super) cpu: Option<usize>,
    pub(super) busy: Option<u64>,
    pub(super) frames: u64,
}

/// A second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) received: u64,
    pub(super) received_bits: u64,
    pub(super) emitted: u64,
    pub(super) emitted_bits: u64,
    pub(super) dropped: u64,
}

impl Rates {
    fn of(counts: &Counts, time: Duration) -> Self {
        Self {
            received: rate(counts.received, time),
            received_bits: rate(counts.received_bytes.saturating_mul(8), time),
            emitted: rate(counts.emitted, time),
            emitted_bits: rate(counts.emitted_bytes.saturating_mul(8), time),
            dropped: rate(counts.dropped, time),
        }
    }

    /// What it is sorted by.
    fn frames(self) -> u64 {
        self.received.saturating_add(self.emitted)
    }
}

fn rate(count: u64, time: Duration) -> u64 {
    let rate = (u128::from(count) * 1_000_000).checked_div(time.as_micros());
    u64::try_from(rate.unwrap_or(0)).unwrap_or(u64::MAX)
}

impl Picture {
    /// What happened between two moments. All rates are 0 if a daemon with other counters came between.
    pub(super) fn between(before: &Sample, now: &Sample, time: Duration) -> Self {
        let measured = !time.is_zero() && before.stats.boot_id == now.stats.boot_id;
        let base = if measured { &before.stats } else { &now.stats };
        let shown = now.stats.clone().since(base, 0);
        let threads = match measured {
            true => now.threads.clone().since(&before.threads),
            false => Threads::default(),
        };
        let workers = threads.workers.iter().map(|worker| Worker {
            worker: worker.worker,
            cpu: worker.cpu,
            busy: worker.busy.map(thousandths),
            frames: rate(worker.counts.frames, time),
        });
        Self {
            router: now.stats.router.clone(),
            uptime: Duration::from_millis(now.stats.uptime_ms),
            measured,
            total: Rates::of(&shown.totals, time),
            tenants: tenants(&shown, time),
            drops: dropped(&shown, &now.stats, time),
            workers: workers.collect(),
            unenforced: now.stats.unenforced.len(),
            trouble: None,
        }
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a figure for people"
)]
fn thousandths(share: f64) -> u64 {
    (share * 1000.0).clamp(0.0, 1000.0) as u64
}

fn tenants(stats: &Stats, time: Duration) -> Vec<Tenant> {
    let mut found: BTreeMap<&str, (Counts, Vec<Port>)> = BTreeMap::new();
    for port in &stats.ports {
        let name = &port.port;
        let (tenant, short) = match (&name.tenant, &name.vm, name.nic) {
            (Some(tenant), Some(vm), Some(nic)) => (tenant.as_str(), format!("{vm}.{nic}")),
            _ => ("uplinks", name.uplink.clone().unwrap_or_else(|| name.name.clone())),
        };
        let (sum, ports) = found.entry(tenant).or_default();
        *sum = std::mem::take(sum).plus(&port.counts);
        ports.push(Port {
            name: short,
            state: port.state,
            shut: name.nic.is_some() && port.link == Link::Down,
            rates: Rates::of(&port.counts, time),
        });
    }
    let mut tenants: Vec<_> = found
        .into_iter()
        .map(|(name, (sum, mut ports))| {
            ports.sort_by(|a, b| b.rates.frames().cmp(&a.rates.frames()).then_with(|| a.name.cmp(&b.name)));
            Tenant { name: name.to_owned(), rates: Rates::of(&sum, time), ports }
        })
        .collect();
    tenants.sort_by(|a, b| b.rates.frames().cmp(&a.rates.frames()).then_with(|| a.name.cmp(&b.name)));
    tenants
}

/// Those of now, and then those that happened at all.
fn dropped(shown: &Stats, all: &Stats, time: Duration) -> Vec<(String, u64, u64)> {
    let now: BTreeMap<_, _> = drops(shown).drops.into_iter().map(|drop| (drop.reason, drop.count)).collect();
    let mut list: Vec<_> = drops(all)
        .drops
        .into_iter()
        .map(|drop| {
            let recent = now.get(&drop.reason).copied().unwrap_or(0);
            (drop.reason, rate(recent, time), drop.count)
        })
        .collect();
    list.sort_by(|a, b| (b.1, b.2).cmp(&(a.1, a.2)).then_with(|| a.0.cmp(&b.0)));
    list
}

#[cfg(test)]
mod tests {
    use router::{DropReason, PortId};

    use super::*;
    use crate::control::{sample, stats, threads};
    use crate::counters::Counter;

    #[test]
    fn rates_are_those_of_the_interval_and_the_busiest_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let look = || Sample { at: Instant::now(), stats: stats(&view), threads: threads(&view) };
        let add = |port, counter, n| view.counters.block(0, PortId(port)).add(counter, n);
        add(0, Counter::Received, 1_000_000);
        let before = look();
        add(0, Counter::Received, 10);
        add(1, Counter::Received, 3_000);
        add(1, Counter::ReceivedBytes, 250_000);
        add(2, Counter::Emitted, 4_000);
        (0..20).for_each(|_| view.counters.block(0, PortId(1)).dropped(DropReason::RouteNone));
        let now = look();
        let picture = Picture::between(&before, &now, Duration::from_secs(2));
        let order: Vec<_> = picture.tenants.iter().map(|tenant| tenant.name.as_str()).collect();
        assert_eq!(order, ["globex", "acme", "uplinks"]);
        let acme = &picture.tenants[1];
        let nics: Vec<_> = acme.ports.iter().map(|port| (port.name.as_str(), port.rates.received)).collect();
        assert_eq!(nics, [("web2.0", 1_500), ("web1.0", 5)]);
        let wanted = Rates { received: 1_505, received_bits: 1_000_000, dropped: 10, ..Rates::default() };
        assert_eq!(acme.rates, wanted);
        assert_eq!(picture.drops, [("route.none".to_owned(), 10, 20)]);
        assert!(picture.measured && picture.workers.len() == 2);
        // Another daemon: nothing was measured yet.
        let mut other = now.clone();
        other.stats.boot_id = "another".into();
        let anew = Picture::between(&now, &other, Duration::from_secs(2));
        assert_eq!((anew.measured, anew.total), (false, Rates::default()));
    }
}
