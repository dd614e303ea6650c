//! The command line of `vmm-shim`.

mod console;
mod list;
mod run;
mod set;
mod top;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use axum::http::Method;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::control::SOCKET;
use crate::control::api::{Event, Order, Vms};
use crate::control::client::{self, ClientError};
use crate::wire::{monitor_dir, utc};

/// Runs the VMs of a topology file: starts them, watches them, ends them.
///
/// Exit codes: 0 done, 1 it failed, 2 wrong command line or file, 3 the monitor or the router does not run.
#[derive(Debug, Parser)]
#[command(name = "vmm-shim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// The monitor's directory [default: /run/vmm-shim as root, else $XDG_RUNTIME_DIR/vmm-shim]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Named {
    /// Which one: tenant/vm
    vm: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every VM of the file that has a kernel to boot, and find those again that run already
    Run(run::Run),
    /// Show all VMs
    #[command(visible_alias = "ls")]
    List {
        /// For programs
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Start a VM that does not run
    Start(Named),
    /// Ask a VM's guest to power off, and end it after 30 s if it does not
    Stop {
        /// End it at once
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        named: Named,
    },
    /// Let a VM's processors stand still
    Pause(Named),
    /// Let them go on
    Resume(Named),
    /// Reset a VM, as the button of that name
    Reset(Named),
    /// Change what a VM is made of: quota=50% (of one CPU; none: as much as there is), share=200 (100 is usual)
    Set {
        /// Which one: tenant/vm
        vm: String,
        /// What, and how much
        #[arg(required = true)]
        changes: Vec<set::Part>,
        #[command(flatten)]
        common: Common,
    },
    /// Show who takes how much CPU time: on a terminal until interrupted, else once
    Top {
        /// Seconds between two looks
        #[arg(long, short, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=3600))]
        interval: u16,
        #[command(flatten)]
        common: Common,
    },
    /// Show what happened to VMs: the last 1,000 events
    Events {
        /// Go on until interrupted
        #[arg(long, short)]
        follow: bool,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Attach to a VM's serial console; Ctrl-] leaves it
    Console(Named),
}

/// Why a command failed.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { code: 1, text: format!("{error:#}") }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match error {
            ClientError::Refused(_) => 1,
            ClientError::NotRunning(_) | ClientError::Denied(_) | ClientError::Answer(_) => 3,
        };
        Self { code, text: error.to_string() }
    }
}

/// Everything; the exit code is for `main`.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match obey(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, text }) => {
            // Nobody to tell it to.
            let _ = writeln!(io::stderr(), "vmm-shim: {text}");
            ExitCode::from(code)
        }
    }
}

fn obey(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(anyhow::Error::from)?;
    let place = |common: &Common| {
        monitor_dir(common.dir.as_deref()).map_err(|e| Failure { code: 2, text: e.to_string() })
    };
    let tell = |common: &Common, method: Method, name: &str, rest: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '/';
        if name.matches('/').count() != 1 || !name.chars().all(legal) {
            return Err(Failure { code: 2, text: format!("{name:?} is no tenant/vm") });
        }
        let resource = format!("/v1/vms/{name}{rest}");
        runtime.block_on(client::ask::<Value>(&place(common)?, SOCKET, method, &resource))?;
        Ok(())
    };
    let order = |named: &Named, order: Order| {
        tell(&named.common, Method::PUT, &named.vm, &format!("/{}", order.as_str()))
    };
    match command {
        Command::Run(run) => run.run(&runtime),
        Command::List { json, common } => {
            let vms: Vms = runtime.block_on(client::ask(&place(&common)?, SOCKET, Method::GET, "/v1/vms"))?;
            print(&if json { as_json(&vms)? } else { list::table(&vms) })
        }
        Command::Start(named) => order(&named, Order::Start),
        Command::Stop { force, named } => order(&named, if force { Order::Kill } else { Order::Stop }),
        Command::Pause(named) => order(&named, Order::Pause),
        Command::Resume(named) => order(&named, Order::Resume),
        Command::Reset(named) => order(&named, Order::Reset),
        Command::Set { vm, changes, common } => tell(&common, Method::PATCH, &vm, &set::query(&changes)),
        Command::Top { interval, common } => top::show(&runtime, &place(&common)?, interval),
        Command::Events { follow, json, common } => events(&runtime, &place(&common)?, follow, json),
        Command::Console(named) => console::attach(&place(&named.common)?, &named.vm),
    }
}

fn as_json(vms: &Vms) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(vms).map_err(anyhow::Error::from)? + "\n")
}

/// Who reads may go at any time.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(anyhow::Error::from(error).into()),
        _ => Ok(()),
    }
}

fn events(
    runtime: &tokio::runtime::Runtime,
    run_dir: &Path,
    follow: bool,
    json: bool,
) -> Result<(), Failure> {
    let each = |line: &[u8]| {
        let text = match serde_json::from_slice::<Event>(line) {
            Ok(event) if !json => sentence(&event),
            _ => String::from_utf8_lossy(line).into_owned(),
        };
        io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_ok()
    };
    Ok(runtime.block_on(client::lines(run_dir, &format!("/v1/events?follow={follow}"), each))?)
}

/// `2026-11-30 20:41:29 acme/web1 crash (signal: 9): restart`
fn sentence(event: &Event) -> String {
    let detail = if event.detail.is_empty() { String::new() } else { format!(" ({})", event.detail) };
    let action = event.action.as_deref().map_or(String::new(), |action| format!(": {action}"));
    format!("{} {} {}{detail}{action}\n", utc(event.at_ms / 1000), event.vm, event.event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn an_event_in_words() {
        let event = Event {
            at_ms: 0,
            vm: "acme/web1".to_owned(),
            event: "crash".to_owned(),
            detail: "signal: 9".to_owned(),
            action: Some("restart".to_owned()),
        };
        assert_eq!(sentence(&event), "1970-01-01 00:00:00 acme/web1 crash (signal: 9): restart\n");
    }
}
