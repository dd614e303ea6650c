//! `vmm-shim list`.

use crate::control::api::{Vm, Vms};

const HEADS: [&str; 10] =
    ["VM", "STATE", "VMM", "ACCEL", "BECAUSE", "CPUS", "QUOTA", "MEMORY", "PID", "RESTARTS"];

/// One line for each.
pub(super) fn table(vms: &Vms) -> String {
    if vms.vms.is_empty() {
        return "No VM of the file has a kernel to boot.\n".to_owned();
    }
    let rows: Vec<[String; 10]> =
        std::iter::once(HEADS.map(str::to_owned)).chain(vms.vms.iter().map(row)).collect();
    let widths: Vec<usize> = (0..HEADS.len())
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    for vm in &vms.vms {
        if let Some(trouble) = &vm.trouble {
            text += &format!("\n{}: {trouble}\n", vm.name);
        }
    }
    text
}

fn row(vm: &Vm) -> [String; 10] {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        vm.name.clone(),
        vm.state.clone(),
        vm.vmm.clone(),
        or_dash(&vm.accel),
        or_dash(&vm.accel_why),
        vm.vcpus.to_string(),
        vm.quota.map_or_else(|| "-".to_owned(), |quota| format!("{quota}%")),
        format!("{}M", vm.memory >> 20),
        vm.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        format!("{} ({})", vm.restarts, vm.restart),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let vm = Vm {
            name: "acme/web1".to_owned(),
            state: "running".to_owned(),
            vmm: "qemu".to_owned(),
            accel: "tcg".to_owned(),
            accel_why: "the file says so".to_owned(),
            pid: Some(4711),
            restarts: 2,
            restart: "always".to_owned(),
            vcpus: 2,
            memory: 1 << 30,
            share: 100,
            quota: Some(150),
            cpu_ns: Some(7),
            trouble: None,
        };
        let stopped = Vm { name: "b/a".to_owned(), trouble: Some("no kernel".to_owned()), ..Vm::default() };
        let wanted = "\
VM         STATE    VMM   ACCEL  BECAUSE           CPUS  QUOTA  MEMORY  PID   RESTARTS
acme/web1  running  qemu  tcg    the file says so  2     150%   1024M   4711  2 (always)
b/a                       -      -                 0     -      0M      -     0 ()

b/a: no kernel
";
        assert_eq!(table(&Vms { vms: vec![vm, stopped] }), wanted);
    }
}
