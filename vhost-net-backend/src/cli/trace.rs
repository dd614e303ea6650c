//! `packet-stats trace`: the way of a packet, decision by decision. With `--to` of one that nobody sent: what would become of it?
//! With `-n` of those that pass.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use topology::Place;

use super::packet_stats::{Context, json};
use super::paint::Tone;
use super::table::{Cell, Table};
use super::text::safe;
use super::vm::{find_vms, legal_name};
use super::{Exit, Failure, Page, capture, explain};
use crate::control::api::{Fate, LiveTrace, Outcome, Trace, Traced};
use crate::control::client;

/// Arguments of `trace`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where the packet goes: ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp; [ADDRESS]:PORT/tcp in IPv6
    #[arg(long, value_parser = to, required_unless_present = "n", conflicts_with = "n")]
    to: Option<To>,
    /// Where it comes from: PORT, ADDRESS or ADDRESS:PORT [default: the NIC's first address, port 49152]
    #[arg(long, value_parser = from)]
    from: Option<From>,
    /// Which NIC of the VM sends it
    #[arg(long, default_value_t = 0)]
    nic: u32,
    /// It comes from outside by this uplink, instead of from a VM
    #[arg(long, conflicts_with = "nic")]
    uplink: Option<String>,
    /// So many packets that pass
    #[arg(short, value_name = "PACKETS", conflicts_with_all = ["from", "nic", "uplink"])]
    n: Option<u64>,
    /// Of those only the ones that are dropped
    #[arg(long, requires = "n")]
    drops: bool,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct To {
    address: IpAddr,
    port: Option<u16>,
    protocol: &'static str,
}

/// Where it comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct From {
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl Args {
    /// Whether it shows packets that pass, as they come.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.n.is_some()
    }
}

/// The page; exit code 1 when the packet would be dropped.
///
/// # Errors
/// When the daemon is not running or has no such VM.
pub fn page(context: &Context, args: &Args) -> Result<Page, Failure> {
    let Some(To { address, port, protocol }) = args.to else { return live(context, args) };
    let From { address: source, port: source_port } = args.from.unwrap_or_default();
    let given = [
        ("port", port.map(|port| port.to_string())),
        ("source", source.map(|source| source.to_string())),
        ("source_port", source_port.map(|port| port.to_string())),
    ];
    let mut resource = format!("/v1/trace?from={}&to={address}&protocol={protocol}", sender(context, args)?);
    for (key, value) in given.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        resource.push_str(&format!("&{key}={value}"));
    }
    let found: Trace = client::get(context.endpoint(), &resource)?;
    let text = if context.json { json(&found)? } else { render(context, &found) };
    let exit = if found.fate.outcome == Outcome::Dropped { Exit::Failed } else { Exit::Ok };
    Ok(Page { text, exit, ..Page::default() })
}

/// Prints packets that pass, as they come.
fn live(context: &Context, args: &Args) -> Result<Page, Failure> {
    let filters = capture::filters(context, args.drops)?;
    let resource = format!("/v1/trace/live?{filters}&n={}", args.n.unwrap_or(1));
    let (mut line, mut shown) = (Vec::new(), Ok(()));
    client::stream(context.endpoint(), &resource, client::reader_goes(), |bytes| {
        for byte in bytes {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            shown = show(context, &line);
            line.clear();
            if shown.is_err() {
                return false;
            }
        }
        true
    })?;
    match shown {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot show packets: {error}")))
        }
        _ => Ok(Page::default()),
    }
}

fn show(context: &Context, line: &[u8]) -> io::Result<()> {
    let passed: LiveTrace = serde_json::from_slice(line).map_err(io::Error::other)?;
    let text = match context.json {
        true => serde_json::to_string(&passed).map_err(io::Error::other)? + "\n",
        false => render_live(context, &passed),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// One packet that passed: a line for it, one for each decision, and the end.
fn render_live(context: &Context, passed: &LiveTrace) -> String {
    let (seconds, micros) = (passed.at_us / 1_000_000 % 86_400, passed.at_us % 1_000_000);
    let time = format!("{:02}:{:02}:{:02}.{micros:06}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (from, packet, file) = (safe(&passed.from), safe(&passed.packet), short(&passed.file));
    let mut out = String::new();
    if passed.missed > 0 {
        out.push_str(&format!("({} missed)\n", count(passed.missed)));
    }
    out.push_str(&format!("{time} {from}: {packet}, {} bytes\n", passed.bytes));
    for step in &passed.steps {
        let at = place(&file, &step.at).map_or(String::new(), |at| format!(" ({at})"));
        out.push_str(&format!("  {}: {}{at}\n", safe(&step.step), safe(&step.text)));
    }
    out + "  " + &end(context, &passed.fate, &file) + "\n"
}

fn count(packets: u64) -> String {
    super::text::count(usize::try_from(packets).unwrap_or(usize::MAX), "packet")
}

/// The name of the port that it comes from.
fn sender(context: &Context, args: &Args) -> Result<String, Failure> {
    match (&args.uplink, &context.vm) {
        (Some(uplink), None) => Ok(format!("uplink:{}", legal_name("uplink", uplink)?)),
        (None, Some(vm)) => match find_vms(context, vm)?.as_slice() {
            [(tenant, vm)] => {
                Ok(format!("{}/{}.{}", legal_name("tenant", tenant)?, legal_name("VM", vm)?, args.nic))
            }
            several => {
                let names: Vec<_> = several.iter().map(|(t, v)| format!("{}/{}", safe(t), safe(v))).collect();
                Err(Failure::usage(format!("which of them: {}?", names.join(", "))))
            }
        },
        _ => Err(Failure::usage("say where it comes from: either --vm VM or --uplink NAME")),
    }
}

/// The decisions, one a line, and the end.
#[must_use]
pub fn render(context: &Context, trace: &Trace) -> String {
    let full = steps(trace, &trace.file);
    let short = short(&trace.file);
    let (steps, file) =
        if full.width(2) <= context.width { (full, &*trace.file) } else { (steps(trace, &short), &*short) };
    let mut out = format!("{}\n\n", packet(&trace.packet));
    out.push_str(&steps.render(context.paint, context.width));
    out.push('\n');
    out.push_str(&fate(context, &trace.fate, file));
    out
}

/// A file's name without its folders.
fn short(file: &str) -> Cow<'_, str> {
    Path::new(file).file_name().unwrap_or_default().to_string_lossy()
}

fn steps(trace: &Trace, file: &str) -> Table {
    let mut table = Table::new(&["STEP", "DECISION", "SAYS"]);
    for step in &trace.steps {
        let at = place(file, &step.at).unwrap_or_else(|| "-".to_owned());
        table.row(vec![Cell::text(safe(&step.step)), Cell::text(safe(&step.text)), Cell::text(at)]);
    }
    table
}

/// `topology.toml:12:5`.
fn place(file: &str, at: &Place) -> Option<String> {
    (at.line > 0).then(|| safe(&at.below(file)).into_owned())
}

/// `acme/web1.0: 10.1.0.11:49152 -> 10.1.1.11:5432 tcp`.
#[must_use]
pub fn packet(packet: &Traced) -> String {
    let end = |address: IpAddr, port: Option<u16>| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    // The identifier of an echo is no port.
    let source_port = packet.source_port.filter(|_| packet.destination_port.is_some());
    format!(
        "{}: {} -> {} {}",
        safe(&packet.from),
        end(packet.source, source_port),
        end(packet.destination, packet.destination_port),
        safe(&packet.protocol)
    )
}

/// What became of it, in a line.
fn end(context: &Context, fate: &Fate, file: &str) -> String {
    let to = fate.to.as_deref().map(safe).unwrap_or_default();
    let (text, tone) = match fate.outcome {
        Outcome::Delivered => (format!("Delivered to {to}."), Tone::Good),
        Outcome::Uplink => (format!("Leaves by {to}."), Tone::Good),
        Outcome::Answered => ("The router itself answers.".to_owned(), Tone::Good),
        Outcome::Consumed => ("For the router itself, which needs no answer.".to_owned(), Tone::Good),
        Outcome::Dropped => {
            let by = place(file, &fate.at).map_or(String::new(), |at| format!(", by {at}"));
            let on = if to.is_empty() { String::new() } else { format!(" on its way to {to}") };
            (format!("Dropped as {}{on}{by}.", safe(fate.reason.as_deref().unwrap_or("?"))), Tone::Bad)
        }
    };
    context.paint.paint(&text, tone)
}

/// The same, with what it means and what to do about it.
fn fate(context: &Context, fate: &Fate, file: &str) -> String {
    let mut out = end(context, fate, file) + "\n";
    let known = fate.reason.as_deref().and_then(|reason| explain::find(reason).ok());
    // The reason's name was said.
    let about = known.map(|reason| explain::text(reason, context.width)).unwrap_or_default();
    out.extend(about.lines().skip(1).map(|line| format!("{line}\n")));
    out
}

fn to(text: &str) -> Result<To, String> {
    let wrong = || "not ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp".to_owned();
    let (whom, protocol) = text.rsplit_once('/').ok_or_else(wrong)?;
    if protocol == "icmp" {
        let address = whom.parse().map_err(|_| wrong())?;
        return Ok(To { address, port: None, protocol: "icmp" });
    }
    let protocol = ["tcp", "udp"].into_iter().find(|known| *known == protocol).ok_or_else(wrong)?;
    let whom: SocketAddr = whom.parse().map_err(|_| wrong())?;
    Ok(To { address: whom.ip(), port: Some(whom.port()), protocol })
}

fn from(text: &str) -> Result<From, String> {
    if let Ok(port) = text.parse() {
        return Ok(From { address: None, port: Some(port) });
    }
    if let Ok(address) = text.parse() {
        return Ok(From { address: Some(address), port: None });
    }
    let both: SocketAddr = text.parse().map_err(|_| "not PORT, ADDRESS or ADDRESS:PORT".to_owned())?;
    Ok(From { address: Some(both.ip()), port: Some(both.port()) })
}

#[cfg(test)]
mod tests {
    use router::WorkerState;

    use super::*;
    use crate::control::{sample, serve};
    use crate::daemon::Board;

    fn args(to_text: &str, from_text: Option<&str>) -> Args {
        let from = from_text.map(|text| from(text).unwrap());
        Args { to: Some(to(to_text).unwrap()), from, nic: 0, uplink: None, n: None, drops: false }
    }

    #[test]
    fn ends_as_they_are_written() {
        let wanted = |address: &str, port, protocol| To { address: address.parse().unwrap(), port, protocol };
        for (text, found) in [
            ("10.1.1.11:5432/tcp", wanted("10.1.1.11", Some(5432), "tcp")),
            ("[fd00::1]:53/udp", wanted("fd00::1", Some(53), "udp")),
            ("fd00::1/icmp", wanted("fd00::1", None, "icmp")),
        ] {
            assert_eq!(to(text), Ok(found), "{text}");
        }
        for text in ["10.1.1.11", "10.1.1.11/tcp", "10.1.1.11:99999/tcp", "db/icmp", "10.1.1.11:1/sctp", ""] {
            assert!(to(text).is_err(), "{text}");
        }
        let ends = |text: &str| from(text).map(|from| (from.address.is_some(), from.port));
        assert_eq!(ends("4000"), Ok((false, Some(4000))));
        assert_eq!(ends("10.1.0.11"), Ok((true, None)));
        assert_eq!(ends("[fd00::1]:7"), Ok((true, Some(7))));
        assert!(ends("x").is_err());
    }

    #[test]
    fn decisions_and_the_end_with_their_lines() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        sample::running(&view, 1, 0);
        // Workers give the tenants their seats.
        let worker = WorkerState::sharing(&view.snapshot, std::sync::Arc::clone(&view.flows));
        let _server = serve(Board::new(view)).unwrap();
        let mut context = Context { vm: Some("web1".into()), ..Context::of(folder.path()) };
        let arrives = page(&context, &args("10.1.0.12:80/tcp", Some("4000"))).unwrap();
        let wanted = "\
acme/web1.0: 10.1.0.11:4000 -> 10.1.0.12:80 tcp

STEP      DECISION                                        SAYS
parse     ipv4 tcp                                        -
source    acme/web1.0 may send from there                 sample.toml:10:8
route     table of acme: 10.1.0.12/32 by acme/web2.0      sample.toml:12:8
policy    one tenant, no groups: open                     -
next hop  leaves by acme/web2.0                           -

Delivered to acme/web2.0.
";
        assert_eq!((normal(&arrives.text), arrives.exit), (normal(wanted), Exit::Ok));
        let spoofed = page(&context, &args("10.1.0.12/icmp", Some("10.1.0.99"))).unwrap();
        assert!(
            spoofed.text.contains("Dropped as source.address, by sample.toml:10:8.\n"),
            "{}",
            spoofed.text
        );
        assert!(spoofed.text.contains("What to do: Use the NIC's configured address"), "{}", spoofed.text);
        assert_eq!(spoofed.exit, Exit::Failed);
        let own = page(&context, &args("10.1.0.1/icmp", None)).unwrap();
        assert!(own.text.ends_with("The router itself answers.\n"), "{}", own.text);
        // globex's VM is not there; and from outside nobody may begin.
        context.vm = None;
        let from_outside = Args { uplink: Some("lab".into()), ..args("10.2.0.11:80/tcp", Some("192.0.2.1")) };
        let dropped = page(&context, &from_outside).unwrap();
        assert!(
            dropped.text.contains("Dropped as policy.ungrouped, by sample.toml:21:8"),
            "{}",
            dropped.text
        );
        context.vm = Some("globex/api".into());
        let leaves = page(&context, &args("192.0.2.1:80/tcp", None)).unwrap();
        assert!(leaves.text.ends_with("Leaves by uplink:lab.\n"), "{}", leaves.text);
        context.json = true;
        let text = page(&context, &args("192.0.2.1:80/tcp", None)).unwrap().text;
        let trace: Trace = serde_json::from_str(&text).unwrap();
        assert_eq!((trace.fate.outcome, trace.fate.to.as_deref()), (Outcome::Uplink, Some("uplink:lab")));
        drop(worker);
    }

    /// Without the spaces that align.
    fn normal(text: &str) -> String {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
    }

    #[test]
    fn whoever_cannot_be_asked_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _server = serve(Board::new(sample::view(folder.path()))).unwrap();
        let context = |vm: Option<&str>| Context { vm: vm.map(str::to_owned), ..Context::of(folder.path()) };
        let refused = |vm, args: &Args| page(&context(vm), args).unwrap_err();
        assert_eq!(refused(None, &args("10.1.0.12/icmp", None)).exit, Exit::Usage);
        assert_eq!(refused(Some("nobody"), &args("10.1.0.12/icmp", None)).exit, Exit::Failed);
        let third = Args { nic: 3, ..args("10.1.0.12/icmp", None) };
        assert_eq!(refused(Some("web1"), &third).message, "no such NIC or uplink");
        let without = refused(Some("web1"), &args("fd00::1/icmp", None));
        assert_eq!((without.exit, without.message.contains("none of that family")), (Exit::Usage, true));
        let mixed = refused(Some("web1"), &args("10.1.0.12/icmp", Some("fd00::1")));
        assert!(mixed.message.contains("two families"), "{}", mixed.message);
    }

    #[test]
    fn what_a_daemon_says_cannot_command_the_terminal() {
        let hostile = "x\x1b[2J".to_owned();
        let at = Place { line: 2, ..Place::default() };
        let trace = Trace {
            packet: Traced {
                from: hostile.clone(),
                source: IpAddr::from([10, 0, 0, 1]),
                source_port: None,
                destination: IpAddr::from([10, 0, 0, 2]),
                destination_port: None,
                protocol: hostile.clone(),
            },
            file: hostile.clone(),
            steps: vec![crate::control::api::Decision {
                step: hostile.clone(),
                text: hostile.clone(),
                at: Place { line: 1, column: 1, ..Place::default() },
            }],
            fate: Fate { reason: Some(hostile.clone()), to: Some(hostile), at, ..Fate::default() },
        };
        let context = Context::of(Path::new("/"));
        for outcome in [Outcome::Dropped, Outcome::Delivered, Outcome::Uplink] {
            let fate = Fate { outcome, ..trace.fate.clone() };
            let live = LiveTrace {
                at_us: 1,
                from: trace.file.clone(),
                packet: trace.file.clone(),
                bytes: 60,
                file: trace.file.clone(),
                steps: trace.steps.clone(),
                fate: fate.clone(),
                missed: 3,
            };
            let text = render_live(&context, &live);
            assert!(
                !text.contains('\x1b') && text.starts_with("(3 packets missed)\n00:00:00.000001 "),
                "{text}"
            );
            assert!(!render(&context, &Trace { fate, ..trace.clone() }).contains('\x1b'));
        }
    }
}
