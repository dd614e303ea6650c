//! `vmm-shim`: the monitor of all VMs and its command line.

fn main() -> std::process::ExitCode {
    vmm_shim::cli::main()
}
