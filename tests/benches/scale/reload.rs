//! How long the daemon takes to put another topology in the place of the one that runs.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tests::{Daemon, daemon, process};

/// What is in the file beside what is in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Nothing,
    Vm,
    Route,
}

pub(crate) fn reload(rounds: usize) -> Result<()> {
    println!("  VMS ROUTES CHANGE        DAEMON    WITH CHECK AND COMMAND (median of {rounds})");
    for (vms, routes) in [(10, 10), (100, 1_000), (1_000, 10_000)] {
        let daemon = Daemon::start_on(&text(vms, routes, More::Nothing)?, None)?;
        let changes = [
            ("+ vm", More::Vm),
            ("- vm", More::Nothing),
            ("+ route", More::Route),
            ("- route", More::Nothing),
        ];
        let mut times = changes.map(|_| Vec::new());
        for _ in 0..rounds {
            for ((_, more), times) in changes.iter().zip(&mut times) {
                times.push(apply(&daemon, &text(vms, routes, *more)?)?);
            }
        }
        for ((name, _), times) in changes.iter().zip(&mut times) {
            times.sort_unstable();
            let (took, all) = times.get(times.len() / 2).copied().unwrap_or_default();
            println!("{vms:>5} {routes:>6} {name:<8} {took:>12.1?} {all:>12.1?}");
        }
    }
    Ok(())
}

/// What the daemon says that it took, and what the operator waited for.
fn apply(daemon: &Daemon, text: &str) -> Result<(Duration, Duration)> {
    let file = daemon.run_dir().join("next.toml");
    fs::write(&file, text)?;
    let mut command = Command::new(daemon::binary("vmrouter")?);
    command.arg("apply").arg(&file).arg("--json").arg("--run-dir").arg(daemon.run_dir());
    let begun = Instant::now();
    let answer = process::output(&mut command)?;
    let all = begun.elapsed();
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let took =
        answer.get("took_us").and_then(serde_json::Value::as_u64).with_context(|| answer.to_string())?;
    Ok((Duration::from_micros(took), all))
}

fn text(vms: u32, routes: u32, more: More) -> Result<String> {
    let mut text =
        "version = 1\nrouter.socket_group = \"root\"\ntenant.t.network.lan.subnets = [\"10.0.0.0/16\"]\n"
            .to_owned();
    let vms = vms + u32::from(more == More::Vm);
    for vm in 0..vms {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 2)) + vm);
        let prefixes = if vm == 0 { ", prefixes = [\"100.64.0.0/10\"]" } else { "" };
        writeln!(
            text,
            "tenant.t.vm.v{vm}.nic = [{{ network = \"lan\", addresses = [\"{address}\"]{prefixes} }}]"
        )?;
    }
    let routes = routes + u32::from(more == More::Route);
    for route in 0..routes {
        let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + route * 64);
        writeln!(text, "[[tenant.t.route]]\nto = \"{to}/26\"\nvia = \"10.0.0.2\"")?;
    }
    Ok(text)
}
