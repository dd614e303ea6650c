//! `packet-stats`: where did every packet go?

fn main() -> std::process::ExitCode {
    vhost_net_backend::cli::packet_stats::main()
}
