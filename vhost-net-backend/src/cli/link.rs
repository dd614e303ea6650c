//! `vmrouter link T/V.N up|down`: one NIC's link, without touching its VMM.

use std::path::PathBuf;

use clap::ValueEnum;

use super::packet_stats::json;
use super::run_dir::of_daemon;
use super::text::safe;
use super::vm::legal_name;
use super::{Failure, Page};
use crate::control::api::{self, LinkOrder, PortInfo};
use crate::control::client::{self, Endpoint};

/// Arguments of `link`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// TENANT/VM.NIC, as `packet-stats` names it
    nic: String,
    /// What its link is to be
    wanted: Wanted,
    /// The daemon's run directory [default: $RUNTIME_DIRECTORY, /run/vmrouter as root, $XDG_RUNTIME_DIR/vmrouter]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Print the NIC's state as JSON
    #[arg(long)]
    json: bool,
}

/// What a link can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// The VMM may connect
    Up,
    /// The VMM's connection ends, and none is made; its guest sees no carrier
    Down,
}

/// Asks the daemon, and says what the NIC is like afterwards.
///
/// # Errors
/// When the daemon is not running, knows no such NIC, or does not obey us.
pub fn page(args: &Args) -> Result<Page, Failure> {
    let resource = resource(&args.nic)?;
    let link = match args.wanted {
        Wanted::Up => api::Link::Up,
        Wanted::Down => api::Link::Down,
    };
    let tenant = args.nic.split('/').next();
    let run_dir = of_daemon(args.run_dir.as_deref(), tenant)?;
    let port: PortInfo = client::put(Endpoint::of(&run_dir, tenant), &resource, &LinkOrder { link })?;
    Ok(Page::of(if args.json { json(&port)? } else { text(&port) }))
}

fn resource(name: &str) -> Result<String, Failure> {
    let parts = || {
        let (tenant, rest) = name.split_once('/')?;
        let (vm, nic) = rest.rsplit_once('.')?;
        Some([tenant, vm, nic])
    };
    let Some([tenant, vm, nic]) = parts() else {
        return Err(Failure::usage(format!("{} is not TENANT/VM.NIC, such as acme/web1.0", safe(name))));
    };
    let (tenant, vm, nic) = (legal_name("tenant", tenant)?, legal_name("VM", vm)?, legal_name("NIC", nic)?);
    Ok(format!("/v1/link/{tenant}/{vm}/{nic}"))
}

fn text(port: &PortInfo) -> String {
    let name = safe(&port.port.name);
    match (port.link, port.peer) {
        (api::Link::Down, None) => format!("{name}: link down, no VMM is connected\n"),
        (api::Link::Down, Some(peer)) => {
            format!("{name}: link down, VMM {} is being disconnected\n", peer.pid)
        }
        (_, None) => format!("{name}: link up, waiting for the VMM to connect\n"),
        (_, Some(peer)) => format!("{name}: link up, VMM {} is connected\n", peer.pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn names_of_nics() {
        assert_eq!(resource("acme/web-1.0").unwrap(), "/v1/link/acme/web-1/0");
        for (name, wanted) in [
            ("acme", Exit::Usage),
            ("acme/web1", Exit::Usage),
            ("web1.0", Exit::Usage),
            ("acme/web1.0/..", Exit::Failed),
            ("acme/../web1.0", Exit::Failed),
            ("/web1.0", Exit::Failed),
            ("acme/web1.", Exit::Failed),
            ("ACME/web1.0", Exit::Failed),
        ] {
            assert_eq!(resource(name).unwrap_err().exit, wanted, "{name}");
        }
    }
}
