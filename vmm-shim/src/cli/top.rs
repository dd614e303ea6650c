//! `vmm-shim top`: CPU time of each VM between two looks.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::Method;

use super::{Failure, print};
use crate::control::SOCKET;
use crate::control::api::{Vm, Vms};
use crate::control::client;

/// Clears a terminal (ECMA-48: cursor to the upper left, erase the page).
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) fn show(runtime: &tokio::runtime::Runtime, dir: &Path, interval: u16) -> Result<(), Failure> {
    let (goes_on, interval) = (io::stdout().is_terminal(), Duration::from_secs(interval.into()));
    let look = || -> Result<(Instant, Vms), Failure> {
        let vms = runtime.block_on(client::ask(dir, SOCKET, Method::GET, "/v1/vms"))?;
        Ok((Instant::now(), vms))
    };
    let mut before = look()?;
    loop {
        std::thread::sleep(interval);
        let now = look()?;
        let text = table(&before.1, &now.1, now.0.duration_since(before.0));
        print(&if goes_on { format!("{CLEAR}{text}") } else { text })?;
        if !goes_on {
            return Ok(());
        }
        before = now;
    }
}

/// The busiest first.
fn table(before: &Vms, now: &Vms, between: Duration) -> String {
    let was: HashMap<&str, &Vm> = before.vms.iter().map(|vm| (vm.name.as_str(), vm)).collect();
    let took = |vm: &Vm| {
        // One that was started in between has no time before.
        let before = was.get(vm.name.as_str()).filter(|was| was.pid == vm.pid).and_then(|was| was.cpu_ns);
        Some(
            Duration::from_nanos(vm.cpu_ns?.saturating_sub(before?)).as_secs_f64() / between.as_secs_f64()
                * 100.0,
        )
    };
    let mut rows: Vec<(Option<f64>, &Vm)> = now.vms.iter().map(|vm| (took(vm), vm)).collect();
    rows.sort_by(|a, b| b.0.unwrap_or(-1.0).total_cmp(&a.0.unwrap_or(-1.0)));
    let width = rows.iter().map(|(_, vm)| vm.name.len()).max().unwrap_or(0).max(2);
    let mut text = format!(
        "{:width$}  {:8}  {:>6}  {:>6}  {:>5}  {:>4}  {:>8}\n",
        "VM", "STATE", "CPU", "QUOTA", "SHARE", "CPUS", "MEMORY"
    );
    for (took, vm) in rows {
        let took = took.map_or("-".to_owned(), |percent| format!("{percent:.1}%"));
        let quota = vm.quota.map_or("-".to_owned(), |quota| format!("{quota}%"));
        text += &format!(
            "{:width$}  {:8}  {took:>6}  {quota:>6}  {:>5}  {:>4}  {:>7}M\n",
            vm.name,
            vm.state,
            vm.share,
            vm.vcpus,
            vm.memory >> 20
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_is_the_first() {
        let vm = |name: &str, cpu_ns| Vm {
            name: name.to_owned(),
            state: "running".to_owned(),
            pid: Some(1),
            share: 100,
            vcpus: 1,
            memory: 256 << 20,
            cpu_ns,
            ..Vm::default()
        };
        let before = Vms { vms: vec![vm("a/a", Some(0)), vm("a/b", Some(0)), vm("a/new", None)] };
        let mut now =
            Vms { vms: vec![vm("a/a", Some(1 << 20)), vm("a/b", Some(500_000_000)), vm("a/new", Some(9))] };
        now.vms[1].quota = Some(50);
        let wanted = "\
VM     STATE        CPU   QUOTA  SHARE  CPUS    MEMORY
a/b    running    50.0%     50%    100     1      256M
a/a    running     0.1%       -    100     1      256M
a/new  running        -       -    100     1      256M
";
        assert_eq!(table(&before, &now, Duration::from_secs(1)), wanted);
    }
}
