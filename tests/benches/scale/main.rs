//! How vmrouter's cost grows with what is configured, what it costs when nothing happens, and how long a frame takes.
//! `tests/bench-scale` runs it.

#![forbid(unsafe_code)]

mod frames;
mod idle;
mod latency;
mod reload;
mod run;
mod size;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tests::bench::shape::{FILE_ROUTES, Shape};
use tests::bench::{BACKEND_CORE, pin, subject, table, tcp};

#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
    /// As `cargo bench` calls it.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time to start, memory, descriptors and threads, and what an attach costs
    Size,
    /// The forwarding table alone, with 2 to 1,000,000 routes
    Table,
    /// Time of each frame with 2 to 1,000 ports and 2 to 100,000 routes
    Frames {
        /// Times that every case has its turn
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Seconds for each
        #[arg(long, default_value_t = 0.7)]
        seconds: f64,
    },
    /// CPU time and memory with idle guests
    Idle {
        /// Guests attached
        #[arg(long, default_value_t = 100)]
        guests: usize,
        /// Seconds
        #[arg(long, default_value_t = 20.0)]
        seconds: f64,
    },
    /// Time that a frame takes, beside testpmd's
    Latency {
        /// Times that every case has its turn
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Seconds for each
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Two pairs of guests through one worker and through two
    Workers {
        /// Times that every case has its turn
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// TCP between two QEMU guests, through vmrouter and through taps and the kernel's routing
    Tcp {
        /// Times that each has its turn
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Time to put another topology in the place of the one that runs, up to 1,000 VMs and 10,000 routes
    Reload {
        /// Times that every change is made
        #[arg(long, default_value_t = 11)]
        rounds: usize,
    },
    /// The daemon on more routes than a file has room for
    #[command(hide = true)]
    Serve {
        file: PathBuf,
        routes: usize,
        senders: usize,
        receivers: usize,
        #[arg(long)]
        run_dir: PathBuf,
    },
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let What::Serve { file, routes, senders, receivers, run_dir } = &options.what {
        let shape = Shape { routes: *routes, senders: *senders, receivers: *receivers, ..Shape::SMALLEST };
        return subject::serve(file, shape, run_dir);
    }
    subject::raise_file_limit();
    // The kernel shares cores between sessions first: ours is not to wait for whoever called.
    let _ = rustix::process::setsid();
    match options.what {
        What::Size => size::size(),
        What::Table => table(),
        What::Frames { rounds, seconds } => frames::frames(rounds, Duration::try_from_secs_f64(seconds)?),
        What::Idle { guests, seconds } => idle::idle(guests, Duration::try_from_secs_f64(seconds)?),
        What::Latency { rounds, seconds } => latency::latency(rounds, Duration::try_from_secs_f64(seconds)?),
        What::Workers { rounds } => frames::workers(rounds),
        What::Tcp { rounds } => tcp::compare(rounds),
        What::Reload { rounds } => reload::reload(rounds),
        What::Serve { .. } => Ok(()),
    }
}

fn table() -> Result<()> {
    pin(BACKEND_CORE)?;
    println!("ROUTES      BUILD  NS A LOOKUP");
    for routes in [2, 10, 100, 1_000, 10_000, FILE_ROUTES, 100_000, 1_000_000] {
        let cost = table::cost(routes)?;
        println!("{routes:>7} {:>7.1} ms {:>8.1}", cost.build.as_secs_f64() * 1e3, cost.lookup);
    }
    Ok(())
}
