//! `packet-stats`: where did every packet go?

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::paint::Paint;
use crate::control::api::Threads;
use crate::control::client::Endpoint;

use super::{
    Exit, Failure, Page, capture, drops, exit, explain, flows, mirrors, offloads, routes, run_dir, stats,
    text, threads, top, trace, vm,
};

const EXAMPLES: &str = "\
Without a command it prints a table of all NICs. For each one:
  received = to VM + uplink + consumed + drops + held
and BAL is what is missing from that: 0 when nothing moves, a few frames while a burst is under way.

Examples:
  packet-stats                             all NICs
  packet-stats --tenant acme --watch       the NICs of one tenant, every 2 seconds
  packet-stats top                         who sends how much now
  packet-stats drops                       why frames were not delivered
  packet-stats drops --since-last          the same since you asked the last time
  packet-stats explain rx.ring_full        what that means and what to do about it
  packet-stats routes acme --lookup 10.1.0.7
  packet-stats trace --vm acme/web1 --to 10.1.1.11:5432/tcp
                                           what would become of that packet, and why
  packet-stats threads --watch 1           what the workers did in each second
  packet-stats --json | jq '.totals'
  packet-stats vm acme/web1                the owner of tenant acme may ask about that, too

Exit codes: 0 done, 1 no such thing, 2 wrong command line, 3 the daemon is not running.";

/// Shows where every packet of the router went.
#[derive(Debug, Parser)]
#[command(name = "packet-stats", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Print again every SECONDS.
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    watch: Option<Duration>,
    /// Only this tenant.
    #[arg(long, global = true, value_name = "TENANT")]
    tenant: Option<String>,
    /// Only this VM: VM or TENANT/VM.
    #[arg(id = "only_vm", long = "vm", global = true, value_name = "VM")]
    vm: Option<String>,
    /// Never shorten numbers.
    #[arg(long, global = true)]
    exact: bool,
    /// Only what was counted since you asked for it the last time (table of NICs, drops)
    #[arg(long, global = true)]
    since_last: bool,
    /// The daemon's run directory [default: $RUNTIME_DIRECTORY, /run/vmrouter as root, $XDG_RUNTIME_DIR/vmrouter]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// All about one VM: sockets, negotiated features, rings, counters
    Vm {
        /// VM or TENANT/VM
        name: String,
    },
    /// Why frames were not delivered
    Drops {
        /// Only this reason, with its meaning and the ports
        #[arg(long)]
        reason: Option<String>,
    },
    /// The routing table of a tenant
    Routes {
        /// Whose
        tenant: String,
        /// Only the route to this address
        #[arg(long, value_name = "IP")]
        lookup: Option<std::net::IpAddr>,
    },
    /// What is done to checksums and large frames between each pair of NICs
    Offloads,
    /// Connections that each tenant holds, and may hold
    Flows,
    /// Copies that the mirrors of the topology file made, and missed
    Mirrors,
    /// What the workers do with their time: busy share, cycles per frame, frames per burst, sleeps
    Threads,
    /// The way of packets, decision by decision, with the lines of the file: of one that you name (--to), or of those that pass (-n)
    Trace(trace::Args),
    /// Frames as they pass, in pcapng: packet-stats capture | wireshark -k -i -
    Capture(capture::Args),
    /// Who sends how much now, what is dropped, how busy the workers are; q quits
    Top,
    /// What a drop reason means and what to do about it (needs no daemon)
    Explain {
        /// A reason as `packet-stats drops` prints it; none: list all
        reason: Option<String>,
    },
}

/// What every command needs to know.
#[derive(Clone, Debug)]
pub struct Context {
    /// The daemon's run directory.
    pub run_dir: PathBuf,
    /// JSON instead of tables.
    pub json: bool,
    /// Only that tenant.
    pub tenant: Option<String>,
    /// The tenant that the command names: its owner may ask about it.
    pub about: Option<String>,
    /// Only that VM.
    pub vm: Option<String>,
    /// Never shorten numbers.
    pub exact: bool,
    /// Only what came after the call before.
    pub since_last: bool,
    /// Colours.
    pub paint: Paint,
    /// Columns to use.
    pub width: usize,
}

#[cfg(test)]
impl Context {
    /// Everything of the daemon there, as plain text of 80 columns.
    pub(super) fn of(run_dir: &std::path::Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            json: false,
            tenant: None,
            about: None,
            vm: None,
            exact: false,
            since_last: false,
            paint: Paint(false),
            width: 80,
        }
    }
}

impl Context {
    /// Where the daemon is asked.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint<'_> {
        Endpoint::of(&self.run_dir, self.about.as_deref())
    }

    /// Whether the filters let a NIC through.
    #[must_use]
    pub fn wants(&self, tenant: Option<&str>, vm: Option<&str>) -> bool {
        let tenant_ok = self.tenant.as_deref().is_none_or(|wanted| Some(wanted) == tenant);
        let vm_ok = self.vm.as_deref().is_none_or(|wanted| is_vm(wanted, tenant, vm));
        tenant_ok && vm_ok
    }
}

/// Whether `wanted` (`VM` or `TENANT/VM`) names that VM.
#[must_use]
pub fn is_vm(wanted: &str, tenant: Option<&str>, vm: Option<&str>) -> bool {
    match wanted.split_once('/') {
        Some((of, name)) => tenant == Some(of) && vm == Some(name),
        None => vm == Some(wanted),
    }
}

/// The program. Ends by itself on a wrong command line (exit code 2), `--help` and `--version`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut last = None;
    // It has an interval of its own.
    let watch = cli.common.watch.filter(|_| !matches!(cli.command, Some(Command::Top)));
    let Some(pause) = watch else {
        return exit::print("packet-stats", answer(&cli, &mut last)).into();
    };
    loop {
        let mut outcome = answer(&cli, &mut last);
        if Paint::stdout().0
            && let Ok(page) = &mut outcome
        {
            // Home, then clear what is left of each line and below: no flicker.
            page.text = format!("\x1b[H\x1b[2J{}", page.text);
        }
        let code = exit::print("packet-stats", outcome);
        if code == Exit::Failed || code == Exit::Usage {
            return code.into();
        }
        std::thread::sleep(pause);
    }
}

/// `last`: what the page before was about, for those that show an interval.
fn answer(cli: &Cli, last: &mut Option<Threads>) -> Result<Page, Failure> {
    let Common { json, tenant, vm, exact, since_last, .. } = cli.common.clone();
    if let Some(Command::Explain { reason }) = &cli.command {
        return explain::page(reason.as_deref(), json, text::width());
    }
    if since_last && !matches!(cli.command, None | Some(Command::Drops { .. })) {
        return Err(Failure::usage("--since-last is for the table of NICs and for drops"));
    }
    let goes_on = match &cli.command {
        Some(Command::Capture(_)) => true,
        Some(Command::Trace(args)) => args.is_live(),
        _ => false,
    };
    if cli.common.watch.is_some() && goes_on {
        return Err(Failure::usage("--watch is not for what goes on by itself"));
    }
    if json && matches!(cli.command, Some(Command::Capture(_) | Command::Top)) {
        return Err(Failure::usage(
            "there is no JSON of that; of live packets: packet-stats trace -n 20 --json",
        ));
    }
    let about = tenant.clone().or_else(|| named(vm.as_deref(), cli.command.as_ref()));
    let context = Context {
        run_dir: run_dir::of_daemon(cli.common.run_dir.as_deref(), about.as_deref())?,
        json,
        tenant,
        about,
        vm,
        exact,
        since_last,
        paint: Paint::stdout(),
        width: text::width(),
    };
    match &cli.command {
        None => stats::page(&context),
        Some(Command::Vm { name }) => vm::page(&context, name),
        Some(Command::Drops { reason }) => drops::page(&context, reason.as_deref()),
        Some(Command::Routes { tenant, lookup }) => routes::page(&context, tenant, *lookup),
        Some(Command::Offloads) => offloads::page(&context),
        Some(Command::Flows) => flows::page(&context),
        Some(Command::Mirrors) => mirrors::page(&context),
        Some(Command::Threads) => threads::page(&context, last),
        Some(Command::Trace(args)) => trace::page(&context, args),
        Some(Command::Capture(args)) => capture::page(&context, args),
        Some(Command::Top) => top::page(&context, cli.common.watch.unwrap_or(top::PAUSE)),
        Some(Command::Explain { reason }) => explain::page(reason.as_deref(), json, context.width),
    }
}

/// The tenant in `--vm acme/web1`, `vm acme/web1` or `routes acme`.
fn named(vm: Option<&str>, command: Option<&Command>) -> Option<String> {
    let of_vm = |vm: &str| Some(vm.split_once('/')?.0.to_owned());
    let of_command = || match command {
        Some(Command::Vm { name }) => of_vm(name),
        Some(Command::Routes { tenant, .. }) => Some(tenant.clone()),
        _ => None,
    };
    vm.and_then(of_vm).or_else(of_command)
}

/// JSON as a page, indented; with `--watch` one value follows the other.
///
/// # Errors
/// Never for our own types.
pub fn json(answer: &impl serde::Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(answer)? + "\n")
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(pause) if pause >= Duration::from_millis(100) => Ok(pause),
        _ => Err("at least 0.1 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn command_lines() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace()).map_err(|e| e.kind());
        let cli = parse("packet-stats drops --watch 0.5 --vm acme/web1 --json").unwrap();
        assert_eq!(cli.common.watch, Some(Duration::from_millis(500)));
        assert_eq!((cli.common.vm.as_deref(), cli.common.json), (Some("acme/web1"), true));
        assert_eq!(parse("packet-stats --watch").unwrap().common.watch, Some(Duration::from_secs(2)));
        assert!(matches!(parse("packet-stats vm web1").unwrap().command, Some(Command::Vm { .. })));
        for (line, wanted) in [
            ("packet-stats nonsense", ErrorKind::InvalidSubcommand),
            ("packet-stats --watch 0", ErrorKind::ValueValidation),
            ("packet-stats routes acme --lookup x", ErrorKind::ValueValidation),
            ("packet-stats vm", ErrorKind::MissingRequiredArgument),
        ] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (wanted, 2), "{line}");
        }
    }

    #[test]
    fn vms_by_short_and_long_name() {
        for (wanted, found) in [("web1", true), ("acme/web1", true), ("globex/web1", false), ("web", false)] {
            assert_eq!(is_vm(wanted, Some("acme"), Some("web1")), found, "{wanted}");
        }
        assert!(!is_vm("web1", None, None));
    }
}
