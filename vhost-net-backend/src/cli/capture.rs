//! `packet-stats capture`: frames as they pass, in pcapng, for Wireshark and its like.
//!
//! The daemon makes the format; here it is passed on. Each frame has a comment that says whose it is and what became of it.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::packet_stats::Context;
use super::vm::legal_name;
use super::{Failure, Page};
use crate::control::client;

/// Arguments of `capture`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only frames that were dropped
    #[arg(long)]
    drops: bool,
    /// End after so many frames [default: when the reader goes, or on Ctrl-C]
    #[arg(short, value_name = "FRAMES")]
    n: Option<u64>,
    /// Bytes of each frame, 64 to 262144 [default: all]
    #[arg(long, value_name = "BYTES")]
    snaplen: Option<u32>,
    /// Write here instead of to standard output
    #[arg(short, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// Captures until it is enough.
///
/// # Errors
/// When the output is a terminal or cannot be written, or the daemon is not running or refuses.
pub fn page(context: &Context, args: &Args) -> Result<Page, Failure> {
    if args.write.is_none() && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "a capture is no text: say -w FILE, or packet-stats capture | wireshark -k -i -",
        ));
    }
    let mut resource = format!("/v1/capture?{}", filters(context, args.drops)?);
    let numbers = [("n", args.n), ("snaplen", args.snaplen.map(u64::from))];
    for (key, value) in numbers.iter().filter_map(|(key, value)| Some((key, (*value)?))) {
        resource.push_str(&format!("&{key}={value}"));
    }
    let (mut out, mut written) = (None, Ok(()));
    let each = |bytes: &[u8]| {
        written = put(&mut out, args.write.as_deref(), bytes);
        written.is_ok()
    };
    match &args.write {
        Some(_) => client::stream(context.endpoint(), &resource, std::future::pending(), each)?,
        None => client::stream(context.endpoint(), &resource, client::reader_goes(), each)?,
    }
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let name =
                args.write.as_ref().map_or("the capture".to_owned(), |path| path.display().to_string());
            Err(Failure::failed(format!("cannot write {name}: {error}")))
        }
        _ => Ok(Page::default()),
    }
}

/// Writes a piece at once, for somebody looks on. A file is opened for the first one only: there is a capture now.
fn put(out: &mut Option<Box<dyn Write>>, path: Option<&Path>, bytes: &[u8]) -> io::Result<()> {
    let out = match (&mut *out, path) {
        (Some(out), _) => out,
        (None, None) => out.insert(Box::new(io::stdout().lock())),
        (None, Some(path)) => {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
            // It holds what guests sent; the file may have been there before. What is no file has its own rights.
            if file.metadata()?.is_file() {
                file.set_permissions(Permissions::from_mode(0o600))?;
            }
            out.insert(Box::new(file))
        }
    };
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Tenant, VM and drops as part of a resource.
///
/// # Errors
/// There can be no such name.
pub(crate) fn filters(context: &Context, drops: bool) -> Result<String, Failure> {
    let (of, vm) = match context.vm.as_deref().map(|vm| vm.split_once('/').ok_or(vm)) {
        Some(Ok((tenant, vm))) => (Some(tenant), Some(vm)),
        Some(Err(vm)) => (None, Some(vm)),
        None => (None, None),
    };
    let tenant = context.tenant.as_deref();
    if of.is_some() && tenant.is_some() && of != tenant {
        return Err(Failure::failed("no NIC of such a tenant or VM"));
    }
    let mut text = format!("drops={drops}");
    for (what, key, name) in [("tenant", "tenant", tenant.or(of)), ("VM", "vm", vm)] {
        if let Some(name) = name {
            text.push_str(&format!("&{key}={}", legal_name(what, name)?));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn filters_as_the_daemon_reads_them() {
        let of = |tenant: Option<&str>, vm: Option<&str>| Context {
            tenant: tenant.map(str::to_owned),
            vm: vm.map(str::to_owned),
            ..Context::of(Path::new("/"))
        };
        for (tenant, vm, wanted) in [
            (None, None, Some("drops=true")),
            (Some("acme"), None, Some("drops=true&tenant=acme")),
            (None, Some("web"), Some("drops=true&vm=web")),
            (None, Some("acme/web"), Some("drops=true&tenant=acme&vm=web")),
            (Some("acme"), Some("acme/web"), Some("drops=true&tenant=acme&vm=web")),
            (Some("globex"), Some("acme/web"), None),
            (None, Some("a&n=1"), None),
            (Some("x y"), None, None),
        ] {
            let found = filters(&of(tenant, vm), true);
            assert_eq!(found.as_deref().ok(), wanted, "{tenant:?} {vm:?}");
        }
        assert_eq!(filters(&of(None, Some("?")), false).unwrap_err().exit, Exit::Failed);
    }
}
