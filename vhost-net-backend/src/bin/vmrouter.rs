//! `vmrouter`: the daemon and its command line.

fn main() -> std::process::ExitCode {
    vhost_net_backend::cli::vmrouter::main()
}
