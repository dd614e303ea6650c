//! `packet-stats vm V`: all about one VM.

use super::packet_stats::{Context, is_vm, json};
use super::text::{binary, count, safe, wrap};
use super::{Failure, Page, stats};
use crate::control::api::{Counts, Limit, Link, PortInfo, Ports, Vm, VmNic};
use crate::control::client;

/// The page. `name` is `VM` or `TENANT/VM`; a short name that several tenants use shows each of them.
///
/// # Errors
/// When the daemon is not running or has no such VM.
pub fn page(context: &Context, name: &str) -> Result<Page, Failure> {
    let paths = find_vms(context, name)?;
    let ask = |(tenant, vm): &(String, String)| {
        let (tenant, vm) = (legal_name("tenant", tenant)?, legal_name("VM", vm)?);
        Ok(client::get(context.endpoint(), &format!("/v1/vm/{tenant}/{vm}"))?)
    };
    let vms: Vec<Vm> = paths.iter().map(ask).collect::<Result<_, Failure>>()?;
    Ok(Page::of(match (context.json, vms.as_slice()) {
        (true, [vm]) => json(vm)?,
        (true, vms) => json(&vms)?,
        (false, vms) => vms.iter().map(|vm| text(context, vm)).collect::<Vec<_>>().join("\n"),
    }))
}

/// Tenant and name of every VM of that name that the filters let through; at least one.
///
/// # Errors
/// When the daemon is not running or has no such VM.
pub(crate) fn find_vms(context: &Context, name: &str) -> Result<Vec<(String, String)>, Failure> {
    let ports: Ports = client::get(context.endpoint(), "/v1/ports")?;
    let mut found: Vec<(String, String)> = Vec::new();
    for port in ports.ports {
        let (Some(tenant), Some(vm)) = (port.port.tenant, port.port.vm) else { continue };
        let wanted = is_vm(name, Some(&tenant), Some(&vm)) && context.wants(Some(&tenant), Some(&vm));
        let path = (tenant, vm);
        if wanted && !found.contains(&path) {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(Failure::failed(format!("no VM {}", safe(name))));
    }
    Ok(found)
}

/// A name that can be part of a resource's path: the topology allows no other.
pub(crate) fn legal_name<'n>(what: &str, name: &'n str) -> Result<&'n str, Failure> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.is_empty() && name.chars().all(legal) {
        return Ok(name);
    }
    Err(Failure::failed(format!("no such {what}: {}", safe(name))))
}

fn text(context: &Context, vm: &Vm) -> String {
    let spec = format!("{}, {}", count(usize::try_from(vm.vcpus).unwrap_or(0), "vCPU"), binary(vm.memory));
    let customer = if vm.customer.is_empty() { String::new() } else { format!(" ({})", safe(&vm.customer)) };
    let mut out = format!("{}/{}{customer}: {spec}\n", safe(&vm.tenant), safe(&vm.vm));
    for nic in &vm.nics {
        out.push('\n');
        out.push_str(&nic_text(context, nic));
    }
    out
}

fn nic_text(context: &Context, VmNic { info, counts }: &VmNic) -> String {
    let (state, tone) = stats::state(info.state, info.link == Link::Down);
    let mut out = format!("{}  {}\n", safe(&info.port.name), context.paint.paint(state, tone));
    let mut line = |key: &str, value: String| {
        let value = wrap(&safe(&value), 14, context.width);
        out.push_str(&format!("  {key:<11} {}", value.trim_start()));
    };
    line("mac", info.mac.clone().unwrap_or_default());
    line("addresses", info.addresses.join(", "));
    let network = info.network.as_deref().unwrap_or("-");
    line(
        "network",
        format!("{network}, MTU {}, {}", info.mtu, count(usize::from(info.queues), "queue pair")),
    );
    for limit in &info.limits {
        line("limit", limit_text(limit, counts));
    }
    line("socket", info.socket.clone().unwrap_or_default());
    if info.link == Link::Down {
        line("link", "down: vmrouter link takes it up again".to_owned());
    }
    for (key, value) in session(info) {
        line(key, value);
    }
    for (key, value) in counted(counts) {
        line(key, value);
    }
    out
}

/// `quota.rate 5Gbit (31:105), 12 frames dropped`.
fn limit_text(limit: &Limit, counts: &Counts) -> String {
    let Limit { key, value, reason, at } = limit;
    let dropped = counts.drops.get(reason).copied().unwrap_or(0);
    let frames = count(usize::try_from(dropped).unwrap_or(usize::MAX), "frame");
    format!("{key} {value} ({at}), {frames} dropped")
}

fn session(info: &PortInfo) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let connects = count(usize::try_from(info.connects).unwrap_or(usize::MAX), "connection");
    lines.push(match info.peer {
        Some(peer) => ("vmm", format!("pid {}, uid {} ({connects} so far)", peer.pid, peer.uid)),
        None => ("vmm", format!("not connected ({connects} so far)")),
    });
    if info.peer.is_some() {
        lines.push(("features", info.features.join(" ")));
        lines.push(("memory", format!("{} in {}", binary(info.memory), count(info.regions, "region"))));
        let ring = |ring: &crate::port::RingStatus| {
            let kind = if ring.index.is_multiple_of(2) { "receive" } else { "transmit" };
            let state = if ring.enabled { "" } else { ", disabled" };
            format!("{} {kind} ({} entries{state})", ring.index, ring.size)
        };
        lines.push(("vrings", info.rings.iter().map(ring).collect::<Vec<_>>().join(", ")));
    }
    if let Some(mtu) = info.negotiated_mtu {
        lines.push(("front end", format!("set MTU {mtu}")));
    }
    if info.faults > 0 {
        lines.push(("faults", info.faults.to_string()));
    }
    if let Some(error) = &info.last_error {
        lines.push(("last error", error.clone()));
    }
    lines
}

/// With what the router's own services were asked: whether a guest got its lease is seen here.
fn consumed(counts: &Counts) -> String {
    let of = |n: u64, what: &str| (n > 0).then(|| count(usize::try_from(n).unwrap_or(usize::MAX), what));
    let parts = [of(counts.leases, "lease"), of(counts.names, "name question")];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let with = if parts.is_empty() { String::new() } else { format!(", with {}", parts.join(" and ")) };
    format!("{}{with}", counts.consumed)
}

fn counted(counts: &Counts) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("received", format!("{} frames, {} bytes", counts.received, counts.received_bytes)),
        ("to VM", counts.delivered_vm.to_string()),
        ("uplink", counts.delivered_uplink.to_string()),
        ("consumed", consumed(counts)),
    ];
    let drops: Vec<_> = counts.drops.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    lines.push(("drops", if drops.is_empty() { "0".to_owned() } else { drops.join(", ") }));
    lines.push(("held", counts.held.to_string()));
    lines.push(("balance", counts.balance.to_string()));
    lines.push(("emitted", format!("{} frames, {} bytes", counts.emitted, counts.emitted_bytes)));
    lines.push(("refused", format!("{} frames of others", counts.refused)));
    lines
}

#[cfg(test)]
mod tests {
    use router::{DropReason, PortId};

    use super::*;
    use crate::cli::{Exit, offloads, routes};
    use crate::control::{sample, serve};
    use crate::counters::Counter;

    #[test]
    fn all_about_a_vm() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let block = view.counters.block(1, PortId(0));
        block.add(Counter::Received, 4);
        block.add(Counter::Consumed, 2);
        block.add(Counter::Leases, 1);
        block.dropped(DropReason::TtlExpired);
        block.dropped(DropReason::RateTenant);
        let _server = serve(crate::daemon::Board::new(view)).unwrap();
        let context = Context::of(folder.path());
        let text = page(&context, "web1").unwrap().text;
        for line in [
            "acme/web1: 1 vCPU, 512 MiB",
            "acme/web1.0  up",
            "  addresses   10.1.0.11",
            "  network     web, MTU 1500, 1 queue pair",
            "  vmm         pid 4711, uid 107 (0 connections so far)",
            "  features    CSUM GUEST_CSUM GUEST_TSO4 GUEST_TSO6 HOST_TSO4 HOST_TSO6",
            "              VERSION_1",
            "  vrings      0 receive (256 entries), 1 transmit (256 entries)",
            "  limit       rate 100Mbit (10:61), 0 frames dropped",
            "  limit       quota.rate 1Gbit (14:8), 1 frame dropped",
            "  limit       quota.pps 5000 (15:7), 0 frames dropped",
            "  received    4 frames, 0 bytes",
            "  consumed    2, with 1 lease",
            "  drops       rate.tenant 1, ttl.expired 1",
            "  balance     0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(page(&context, "globex/web1").unwrap_err().exit, Exit::Failed);
        assert_eq!(page(&context, "../x").unwrap_err().exit, Exit::Failed);
        let json = page(&Context { json: true, ..context }, "acme/web1").unwrap().text;
        assert_eq!(serde_json::from_str::<Vm>(&json).unwrap().nics[0].counts.received, 4);
    }

    #[test]
    fn routes_and_offloads() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        sample::running(&view, 1, 1 << 1);
        let _server = serve(crate::daemon::Board::new(view)).unwrap();
        let context = Context::of(folder.path());
        let table = routes::page(&context, "acme", None).unwrap().text;
        assert!(table.starts_with("TO"), "{table}");
        assert!(table.contains("10.1.0.12/32") && table.contains("acme/web2.0"), "{table}");
        let lookup = |ip: &str| routes::page(&context, "acme", Some(ip.parse().unwrap())).unwrap();
        assert_eq!(lookup("10.1.0.11").exit, Exit::Ok);
        assert!(lookup("10.1.0.11").text.contains("acme/web1.0"));
        let none = lookup("192.0.2.1");
        assert_eq!((none.exit, none.text.as_str()), (Exit::Failed, ""));
        assert!(none.notes[0].contains("route.none"));
        for tenant in ["nobody", "../vm", ""] {
            assert_eq!(routes::page(&context, tenant, None).unwrap_err().exit, Exit::Failed, "{tenant}");
        }
        let matrix = offloads::page(&context).unwrap().text;
        assert!(matrix.contains("acme/web1.0  acme/web2.0  whole     segment  segment  -\n"), "{matrix}");
        let none = Context { vm: Some("globex/web1".into()), ..context };
        assert!(offloads::page(&none).unwrap().text.starts_with("No two ports"));
    }
}
