//! What Prometheus is told, in the OpenMetrics text format.
//!
//! | metric | labels | what |
//! |---|---|---|
//! | `vmrouter_received_frames_total`, `_bytes_total` | port's | frames popped at the port |
//! | `vmrouter_delivered_vm_frames_total` | port's | of these: another guest got them |
//! | `vmrouter_delivered_uplink_frames_total` | port's | of these: left by an uplink |
//! | `vmrouter_consumed_frames_total` | port's | of these: meant for the router itself |
//! | `vmrouter_dropped_frames_total` | port's, `reason` | of these: dropped; only reasons that happened |
//! | `vmrouter_held_frames`, `vmrouter_unaccounted_frames` | port's | of these: wait somewhere; fate not known yet |
//! | `vmrouter_emitted_frames_total`, `_bytes_total` | port's | frames put out of the port |
//! | `vmrouter_refused_frames_total` | port's | frames of other ports that this one could not take |
//! | `vmrouter_leases_total`, `vmrouter_names_total` | port's | of the consumed: leases told, questions for names answered or sent on |
//! | `vmrouter_port_up` | port's | 1 if frames can move |
//! | `vmrouter_flows`, `vmrouter_flows_limit` | `tenant` | connections held, and the most that may be |
//! | `vmrouter_flows_capacity`, `vmrouter_flows_displaced_total` | | of the whole table |
//! | `vmrouter_mirror_frames_total`, `_bytes_total`, `_missed_frames_total` | `tenant`, `mirror` | copies made; those for which there was no room |
//! | `vmrouter_worker_frames_total`, `_bursts_total`, `_sleeps_total`, `_wake_ups_total` | `worker` | what it did |
//! | `vmrouter_worker_busy_seconds_total`, `_sleep_seconds_total` | `worker` | its time |
//! | `vmrouter_unenforced` | | things that the file asks for and does not get |
//! | `vmrouter_start_time_seconds`, `vmrouter_build_info` | `version`, `name` | the daemon |
//!
//! A port's labels: `port` (`acme/web1.0`, `uplink:wan`) and of a NIC `tenant`, `vm` and `nic`, of an uplink `uplink`. The
//! law holds here too: received = delivered_vm + delivered_uplink + consumed + dropped + held + unaccounted. Counters of a
//! VM that was removed and added again, and all after a crash, begin at zero.

use std::fmt;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{EncodeCounterValue, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::control::api::{Flows, Mirror, Mirrors, PortName, PortStats, State, Stats, Thread, Threads};
use crate::control::{flows, mirrors, stats, threads};
use crate::daemon::Board;

/// What [`render`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the daemon, as of now.
///
/// # Errors
/// Never: it is written into memory.
pub fn render(board: &Board) -> Result<String, fmt::Error> {
    let view = board.view();
    let boot = view.counters.boot();
    let started = boot.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let sample = Sample {
        stats: stats(&view),
        flows: flows(&view),
        mirrors: mirrors(&view),
        threads: threads(&view),
        started,
    };
    let mut registry = Registry::with_prefix("vmrouter");
    registry.register_collector(Box::new(sample));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// One moment.
#[derive(Debug)]
struct Sample {
    stats: Stats,
    flows: Flows,
    mirrors: Mirrors,
    threads: Threads,
    /// Seconds since 1970.
    started: f64,
}

type Labels = Vec<(&'static str, String)>;
type PortValue = (&'static str, &'static str, fn(&PortStats) -> u64);

const PORT_COUNTERS: [PortValue; 10] = [
    ("received_frames", "Frames popped at the port", |port| port.counts.received),
    ("received_bytes", "Bytes of the frames popped at the port", |port| port.counts.received_bytes),
    ("delivered_vm_frames", "Of the received: another guest got them", |port| port.counts.delivered_vm),
    ("delivered_uplink_frames", "Of the received: left by an uplink", |port| port.counts.delivered_uplink),
    ("consumed_frames", "Of the received: meant for the router itself", |port| port.counts.consumed),
    ("leases", "Of the consumed: leases that the guest was told of", |port| port.counts.leases),
    ("names", "Of the consumed: questions for names, answered or sent on", |port| port.counts.names),
    ("emitted_frames", "Frames put out of the port", |port| port.counts.emitted),
    ("emitted_bytes", "Bytes of the frames put out of the port", |port| port.counts.emitted_bytes),
    ("refused_frames", "Frames of other ports that this one could not take", |port| port.counts.refused),
];

type WorkerValue = (&'static str, &'static str, fn(&Thread) -> u64);

const WORKER_COUNTERS: [WorkerValue; 4] = [
    ("worker_frames", "Frames that the worker moved", |worker| worker.counts.frames),
    ("worker_bursts", "Bursts that had frames", |worker| worker.counts.bursts),
    ("worker_sleeps", "Times that the worker went to sleep", |worker| worker.counts.sleeps),
    ("worker_wake_ups", "Times that something woke it up", |worker| worker.counts.wake_ups),
];

type MirrorValue = (&'static str, &'static str, fn(&Mirror) -> u64);

const MIRROR_COUNTERS: [MirrorValue; 3] = [
    ("mirror_frames", "Copies that the mirror made", |mirror| mirror.frames),
    ("mirror_bytes", "Bytes of the copies", |mirror| mirror.bytes),
    ("mirror_missed_frames", "Frames for whose copy there was no room", |mirror| mirror.missed),
];

impl Collector for Sample {
    fn encode(&self, mut out: DescriptorEncoder) -> fmt::Result {
        self.ports(&mut out)?;
        self.drops(&mut out)?;
        self.tenants(&mut out)?;
        self.mirrors(&mut out)?;
        self.workers(&mut out)?;
        self.daemon(&mut out)
    }
}

impl Sample {
    fn ports(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ports = &self.stats.ports;
        for (name, help, value) in PORT_COUNTERS {
            counters(out, name, help, ports.iter().map(|port| (labels(&port.port), value(port))))?;
        }
        let held = ports.iter().map(|port| (labels(&port.port), port.counts.held));
        gauges(out, "held_frames", "Of the received: wait somewhere now", held)?;
        let open = ports.iter().map(|port| (labels(&port.port), port.counts.balance));
        gauges(out, "unaccounted_frames", "Of the received: fate not known yet", open)?;
        let up = ports.iter().map(|port| (labels(&port.port), u32::from(port.state == State::Up)));
        gauges(out, "port_up", "Whether frames can move", up)
    }

    fn drops(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let dropped = self.stats.ports.iter().flat_map(|port| {
            port.counts.drops.iter().map(|(reason, count)| {
                let mut labels = labels(&port.port);
                labels.push(("reason", reason.clone()));
                (labels, *count)
            })
        });
        counters(out, "dropped_frames", "Of the received: dropped, by reason", dropped)
    }

    fn tenants(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of = |tenant: &str| vec![("tenant", tenant.to_owned())];
        let tenants = || self.flows.tenants.iter();
        gauges(out, "flows", "Connections held", tenants().map(|t| (of(&t.tenant), t.flows)))?;
        gauges(out, "flows_limit", "Most that may be held", tenants().map(|t| (of(&t.tenant), t.limit)))?;
        gauges(out, "flows_capacity", "Places of the table", [(Labels::new(), self.flows.capacity)])?;
        let displaced = [(Labels::new(), self.flows.displaced)];
        counters(out, "flows_displaced", "Connections that made room before their time", displaced)
    }

    fn mirrors(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of = |mirror: &Mirror| vec![("tenant", mirror.tenant.clone()), ("mirror", mirror.name.clone())];
        for (name, help, value) in MIRROR_COUNTERS {
            counters(out, name, help, self.mirrors.mirrors.iter().map(|mirror| (of(mirror), value(mirror))))?;
        }
        Ok(())
    }

    fn workers(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of = |worker: &Thread| vec![("worker", worker.worker.to_string())];
        let workers = || self.threads.workers.iter();
        for (name, help, value) in WORKER_COUNTERS {
            counters(out, name, help, workers().map(|worker| (of(worker), value(worker))))?;
        }
        let busy = workers().map(|worker| (of(worker), seconds(worker.counts.busy_ns)));
        counters(out, "worker_busy_seconds", "Time in rounds that found frames", busy)?;
        let asleep = workers().map(|worker| (of(worker), seconds(worker.counts.sleep_ns)));
        counters(out, "worker_sleep_seconds", "Time asleep", asleep)
    }

    fn daemon(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let unenforced = [(Labels::new(), self.stats.unenforced.len())];
        gauges(out, "unenforced", "Things that the file asks for and does not get", unenforced)?;
        let started = [(Labels::new(), self.started)];
        gauges(out, "start_time_seconds", "When the daemon began to count", started)?;
        let version = ("version", env!("CARGO_PKG_VERSION").to_owned());
        let about = vec![version, ("name", self.stats.router.clone())];
        gauges(out, "build_info", "The daemon", [(about, 1_u32)])
    }
}

/// A port's labels.
fn labels(port: &PortName) -> Labels {
    let nic = port.nic.map(|nic| nic.to_string());
    let given = [("tenant", &port.tenant), ("vm", &port.vm), ("nic", &nic), ("uplink", &port.uplink)];
    let given = given.into_iter().filter_map(|(label, value)| Some((label, value.clone()?)));
    [("port", port.name.clone())].into_iter().chain(given).collect()
}

#[expect(clippy::as_conversions, reason = "a figure for people")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn counters<V: EncodeCounterValue>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, V)>,
) -> fmt::Result {
    family(out, (name, help, MetricType::Counter), values, |mut metric, value| {
        metric.encode_counter::<NoLabelSet, V, f64>(&value, None)
    })
}

fn gauges<V: EncodeGaugeValue>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, V)>,
) -> fmt::Result {
    family(out, (name, help, MetricType::Gauge), values, |mut metric, value| metric.encode_gauge(&value))
}

fn family<V>(
    out: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    values: impl IntoIterator<Item = (Labels, V)>,
    encode: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
) -> fmt::Result {
    let mut metric = out.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        encode(metric.encode_family(&labels)?, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use router::{DropReason, PortId};

    use super::*;
    use crate::control::sample;
    use crate::counters::{Counter, ThreadCounter};

    /// Value by name and labels as written.
    fn values(text: &str) -> BTreeMap<&str, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').map(|(name, value)| (name, value.parse().unwrap())).unwrap())
            .collect()
    }

    #[test]
    fn every_count_is_that_of_the_other_answers() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        for (port, n) in (0..4).map(PortId).zip([11, 7, 0, 3]) {
            let block = view.counters.block(1, port);
            for (at, counter) in (1..).zip(Counter::ALL) {
                block.add(counter, n * at);
            }
            (0..n).for_each(|_| block.dropped(DropReason::HostUnknown));
        }
        view.counters.block(0, PortId(0)).dropped(DropReason::RouteNone);
        view.counters.thread(1).add(ThreadCounter::Frames, 5);
        let board = Board::new(view);
        let text = render(&board).unwrap();
        let (all, stats) = (values(&text), stats(&board.view()));
        let sum = |name: &str| -> f64 {
            all.iter().filter(|(key, _)| key.split('{').next() == Some(name)).map(|(_, value)| value).sum()
        };
        let totals = &stats.totals;
        for (name, wanted) in [
            ("vmrouter_received_frames_total", totals.received),
            ("vmrouter_received_bytes_total", totals.received_bytes),
            ("vmrouter_delivered_vm_frames_total", totals.delivered_vm),
            ("vmrouter_delivered_uplink_frames_total", totals.delivered_uplink),
            ("vmrouter_consumed_frames_total", totals.consumed),
            ("vmrouter_dropped_frames_total", totals.dropped),
            ("vmrouter_held_frames", totals.held),
            ("vmrouter_emitted_frames_total", totals.emitted),
            ("vmrouter_emitted_bytes_total", totals.emitted_bytes),
            ("vmrouter_refused_frames_total", totals.refused),
            ("vmrouter_leases_total", totals.leases),
            ("vmrouter_names_total", totals.names),
            ("vmrouter_port_up", 2),
            ("vmrouter_worker_frames_total", 5),
        ] {
            assert!((sum(name) - seconds(wanted) * 1e9).abs() < 1e-6, "{name}: {} {wanted}", sum(name));
        }
        let nic = r#"{port="acme/web1.0",tenant="acme",vm="web1",nic="0""#;
        let one = |metric: &str, more: &str| all[format!("vmrouter_{metric}{nic}{more}}}").as_str()];
        assert_eq!(one("dropped_frames_total", r#",reason="host.unknown""#), 11.0);
        assert_eq!(one("dropped_frames_total", r#",reason="route.none""#), 1.0);
        assert_eq!(one("received_frames_total", ""), 11.0);
        assert_eq!(all[r#"vmrouter_received_frames_total{port="uplink:lab",uplink="lab"}"#], 3.0);
        assert!(
            text.ends_with("# EOF\n") && text.contains("# TYPE vmrouter_received_frames counter\n"),
            "{text}"
        );
        // Each family once, and no line twice.
        let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let unique: std::collections::BTreeSet<_> = types.iter().collect();
        assert_eq!(types.len(), unique.len());
        assert_eq!(all.len(), text.lines().filter(|line| !line.starts_with('#')).count());
    }

    #[test]
    fn every_metric_that_is_documented_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let _seats = router::WorkerState::sharing(&view.snapshot, std::sync::Arc::clone(&view.flows));
        view.counters.block(0, PortId(0)).dropped(DropReason::RouteNone);
        let text = render(&Board::new(view)).unwrap();
        let made: std::collections::BTreeSet<_> =
            values(&text).into_keys().map(|key| key.split('{').next().unwrap().to_owned()).collect();
        let this = include_str!("text.rs");
        let table = this
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .filter(|line| line.starts_with("//! | `"));
        let mut documented = std::collections::BTreeSet::new();
        for names in table.map(|line| line.split('|').nth(1).unwrap()) {
            let mut first = "";
            for name in names.split('`').skip(1).step_by(2) {
                // `_bytes_total` stands for the name before it with another end.
                if name.starts_with("vmrouter_") {
                    first = name;
                    documented.insert(name.to_owned());
                } else {
                    let stem = ["_frames_total", "_busy_seconds_total"]
                        .iter()
                        .find_map(|end| first.strip_suffix(end));
                    documented.insert(format!("{}{name}", stem.unwrap()));
                }
            }
        }
        assert_eq!(made, documented);
    }
}
