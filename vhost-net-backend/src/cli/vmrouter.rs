//! `vmrouter`: the daemon and its command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use super::{attach, change, check, demo, docs, exit, link, run, schema};

const EXAMPLES: &str = "\
Examples:
  vmrouter demo                                       see it work: no root, no VMM
  vmrouter check topology.toml                        what is wrong with the file?
  vmrouter run topology.toml                          the daemon; ends on SIGTERM or SIGINT
  vmrouter plan topology.toml                         what would change in what runs?
  vmrouter apply topology.toml --confirm 60s          changes it; comes back unless: vmrouter confirm
  vmrouter show --tenant acme > acme.toml             what the owner of a tenant may change, and how: edit it, then
  vmrouter apply acme.toml --tenant acme              changes that; the owner, no root, may do it
  vmrouter attach topology.toml acme/web1 --vmm qemu  the line that starts that VM
  vmrouter link acme/web1.0 down                      cuts one NIC off; its guest sees no carrier
  vmrouter schema > topology.schema.json              for editors

Exit codes: 0 done, 1 failed, 2 wrong command line or topology file, 3 the daemon is not running, 4 a difference (plan).
VMROUTER_LOG=debug makes the daemon say more (error, warn, info, debug).
Sockets are in $RUNTIME_DIRECTORY, else in `[router] run_dir`, else in /run/vmrouter (root) or
$XDG_RUNTIME_DIR/vmrouter.";

/// Routes packets between the virtual machines of one host.
#[derive(Debug, Parser)]
#[command(name = "vmrouter", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Runs the daemon for a topology file, or for what was applied last, until SIGTERM or SIGINT
    Run(run::Args),
    /// Checks a topology file: all problems with their places, or a summary
    Check {
        /// The topology file
        file: PathBuf,
    },
    /// Shows what a topology file would change in what runs; exit code 4 when something would
    Plan(change::PlanArgs),
    /// Changes what runs to a topology file, all of it or nothing; unchanged VMs lose no packet
    Apply(change::ApplyArgs),
    /// Lets a change stay that `apply --confirm` made
    Confirm(change::Common),
    /// Lists what was applied, when and by whom; * marks what the next `run` without a file starts with
    History(change::HistoryArgs),
    /// Prints the VMs, networks, groups and forwards of a tenant as a file for `apply --tenant`
    Show(change::ShowArgs),
    /// Prints the JSON schema of topology files
    Schema,
    /// Writes man pages and shell completions of both programs below a folder such as /usr/local/share
    Docs {
        /// Where to: man/man1, bash-completion/completions, fish/vendor_completions.d, zsh/site-functions
        #[arg(value_name = "DIR")]
        into: PathBuf,
    },
    /// Prints the line (or the XML) that starts a VM attached to the router
    Attach(attach::Args),
    /// Takes one NIC's link down, or up again; its VMM keeps running
    Link(link::Args),
    /// Shows the router at work: two tenants, guests, traffic, and where every packet went
    Demo {
        /// With two real Linux VMs in QEMU instead of the built-in guests
        #[arg(long)]
        qemu: bool,
    },
}

/// VMMs that `attach` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// `qemu-system-x86_64`
    Qemu,
    /// `cloud-hypervisor`
    CloudHypervisor,
    /// Parts of a libvirt domain
    Libvirt,
}

/// The program. Ends by itself on a wrong command line (exit code 2), `--help` and `--version`.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check { file } => check::page(&file),
        Command::Plan(args) => change::plan(&args),
        Command::Apply(args) => change::apply(&args),
        Command::Confirm(args) => change::confirm(&args),
        Command::History(args) => change::history(&args),
        Command::Show(args) => change::show(&args),
        Command::Schema => schema::page(),
        Command::Docs { into } => docs::page(&into),
        Command::Attach(args) => attach::page(&args),
        Command::Link(args) => link::page(&args),
        Command::Demo { qemu } => demo::run(qemu),
    };
    exit::print("vmrouter", outcome).into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_lines() {
        Cli::command().debug_assert();
        for (line, wanted) in [
            ("vmrouter run t.toml --run-dir /x --allow-unenforced", None),
            ("vmrouter check t.toml", None),
            ("vmrouter attach t.toml acme/web1 --vmm cloud-hypervisor", None),
            ("vmrouter demo --qemu", None),
            ("vmrouter link acme/web1.0 down --json", None),
            ("vmrouter link acme/web1.0", Some(2)),
            ("vmrouter link acme/web1.0 sideways", Some(2)),
            ("vmrouter run", None),
            ("vmrouter run --state-dir /x", None),
            ("vmrouter plan t.toml --json", None),
            ("vmrouter plan", Some(2)),
            ("vmrouter apply t.toml --confirm 60s", None),
            ("vmrouter apply --generation 7", None),
            ("vmrouter apply", Some(2)),
            ("vmrouter apply t.toml --generation 7", Some(2)),
            ("vmrouter apply t.toml --confirm soon", Some(2)),
            ("vmrouter confirm", None),
            ("vmrouter history --json", None),
            ("vmrouter history --tenant acme", None),
            ("vmrouter show --tenant acme", None),
            ("vmrouter show", Some(2)),
            ("vmrouter plan own.toml --tenant acme", None),
            ("vmrouter apply own.toml --tenant acme", None),
            ("vmrouter apply --generation 7 --tenant acme", Some(2)),
            ("vmrouter attach t.toml acme/web1 --vmm xen", Some(2)),
            ("vmrouter nonsense", Some(2)),
            ("vmrouter docs /x", None),
            ("vmrouter --help", Some(0)),
        ] {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert_eq!(parsed.err().map(|error| error.exit_code()), wanted, "{line}");
        }
    }
}
