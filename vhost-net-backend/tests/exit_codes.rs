//! The exit codes that scripts rely on, from the programs themselves.

use std::process::{Command, Output};

const VMROUTER: &str = env!("CARGO_BIN_EXE_vmrouter");
const PACKET_STATS: &str = env!("CARGO_BIN_EXE_packet-stats");

fn run(program: &str, line: &str) -> std::io::Result<Output> {
    let folder = std::env::temp_dir();
    let mut command = Command::new(program);
    command.args(line.split_whitespace()).current_dir(folder).env_remove("RUNTIME_DIRECTORY");
    command.output()
}

#[test]
fn exit_codes() {
    for (program, line, wanted) in [
        (PACKET_STATS, "explain route.none", 0),
        (PACKET_STATS, "explain nonsense", 1),
        (PACKET_STATS, "explain --nonsense", 2),
        (PACKET_STATS, "--run-dir /nonexistent", 3),
        (PACKET_STATS, "drops --run-dir /nonexistent --json", 3),
        (PACKET_STATS, "vm a --run-dir /nonexistent", 3),
        (PACKET_STATS, "routes a --run-dir /nonexistent", 3),
        (PACKET_STATS, "offloads --run-dir /nonexistent", 3),
        (PACKET_STATS, "threads --run-dir /nonexistent", 3),
        (VMROUTER, "link acme/a.0 down --run-dir /nonexistent", 3),
        (VMROUTER, "link acme/a down --run-dir /nonexistent", 2),
        (VMROUTER, "schema", 0),
        (VMROUTER, "--version", 0),
        (VMROUTER, "", 2),
        (VMROUTER, "check /nonexistent", 2),
        (VMROUTER, "run /nonexistent", 2),
        (VMROUTER, "attach /nonexistent a/b --vmm qemu", 2),
    ] {
        let output = run(program, line).unwrap();
        assert_eq!(output.status.code(), Some(wanted), "{program} {line}: {output:?}");
        assert_eq!(output.stdout.is_empty(), wanted != 0, "{program} {line}: {output:?}");
    }
}

#[test]
fn output_that_is_no_terminal_has_no_colours() {
    for (program, line) in [(PACKET_STATS, "explain"), (VMROUTER, "check /nonexistent"), (VMROUTER, "--help")]
    {
        let Output { stdout, stderr, .. } = run(program, line).unwrap();
        assert!(!stdout.contains(&0x1b) && !stderr.contains(&0x1b), "{program} {line}");
    }
}
