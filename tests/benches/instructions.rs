//! Instructions that the worker takes for each frame, counted by callgrind; `tests/instructions` runs it.
//!
//! Unlike a time the figure is the same on a busy machine: it says whether a change made the packet path longer. It does not
//! say whether the path is fast, for it knows no cache. The program is the release build for any x86-64. Only the C
//! library picks its memory functions by what the processor has, and valgrind's has less than a real one (3.19 knows no
//! AVX-512), so it is told to take those that every processor has; a rep-prefixed copy would count once for each byte.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tests::bench::lone_worker::{BURST, LoneWorker};
use tests::bench::{Mode, frames};
use tests::process;

/// What is counted: name, mode and bytes of a frame.
const CASES: [(&str, &str, usize); 12] = [
    ("64", "split", 64),
    ("512", "split", 512),
    ("1500", "split", 1_500),
    ("1500-ipv6", "ipv6", 1_500),
    ("1500-not-mergeable", "not-mergeable", 1_500),
    ("1500-merged", "merged", 1_500),
    ("61000-tso", "tso", 61_000),
    ("61000-tso-cut-here", "tso-cut-here", 61_000),
    ("packed-64", "packed", 64),
    ("packed-512", "packed", 512),
    ("packed-1500", "packed", 1_500),
    ("packed-1500-merged", "packed-merged", 1_500),
];
/// Bursts that are counted of each.
const BURSTS: u32 = 20;
/// The C library's choice of memory functions; see the module.
const TUNABLES: &str =
    "glibc.cpu.hwcaps=-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-SSSE3,-Fast_Unaligned_Copy";
/// A figure above the file's by more than this is a regression.
const TOLERANCE: f64 = 0.05;

/// Counts instructions by frame and compares with the file.
#[derive(Debug, Parser)]
struct Options {
    /// Writes the file anew.
    #[arg(long)]
    update: bool,
    /// Pushes the frames of one case, for valgrind to count.
    #[arg(long, hide = true)]
    push: Option<String>,
    /// As `cargo bench` calls it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(name) = &options.push {
        return push(name).map(|()| ExitCode::SUCCESS);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let counted = CASES.map(|(name, ..)| Ok((name, count(name)?)));
    let counted: Vec<(&str, f64)> = counted.into_iter().collect::<Result<_>>()?;
    if options.update {
        fs::write(&file, text(&counted))?;
    }
    let unread = || format!("{}: `tests/instructions --update` writes it", file.display());
    let before = fs::read_to_string(&file).with_context(unread)?;
    let mut worse = false;
    println!("{:<20} {:>12} {:>12} {:>9}", "INSTRUCTIONS A FRAME", "NOW", "IN THE FILE", "CHANGE");
    for (name, now) in counted {
        let then = figure(&before, name).with_context(|| format!("{} has no {name}", file.display()))?;
        let change = now / then - 1.0;
        worse |= change > TOLERANCE;
        println!("{name:<20} {now:>12.1} {then:>12.1} {:>+8.1} %", change * 100.0);
    }
    if worse {
        println!(
            "more than {} % above the file: look why, or `tests/instructions --update`",
            TOLERANCE * 100.0
        );
    }
    Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Instructions of each frame of a case.
fn count(name: &str) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    let mut command = Command::new("valgrind");
    command
        .args(["-q", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*worker_moves_a_burst*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--push", name])
        .env("GLIBC_TUNABLES", TUNABLES);
    process::output(&mut command)?;
    let text = fs::read_to_string(&out)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).context("no totals")?;
    let total: u32 = total.trim().parse().with_context(|| total.to_owned())?;
    ensure!(total > 0, "callgrind did not find what to count");
    Ok(f64::from(total) / f64::from(BURSTS * u32::from(BURST)))
}

/// What callgrind looks at.
fn push(name: &str) -> Result<()> {
    let (_, mode, len) = CASES.into_iter().find(|(case, ..)| *case == name).context("no such case")?;
    let mode = Mode::find(mode).context("no such mode")?;
    let mut worker = LoneWorker::new(&frames::scenario()?.topology, mode, len)?;
    // The first one makes room for things.
    worker.offer();
    while worker.service()? > 0 {}
    for _ in 0..BURSTS {
        worker.offer();
        // Large frames end a burst before it has so many.
        let mut left = usize::from(BURST);
        while left > 0 {
            let moved = worker_moves_a_burst(&mut worker)?;
            ensure!((1..=left).contains(&moved), "{moved} frames moved, {left} were offered");
            left -= moved;
        }
    }
    worker.check(u64::from(BURST) * u64::from(1 + BURSTS))
}

/// Found by its name, so it must be there: neither inlined nor left by a jump.
#[inline(never)]
fn worker_moves_a_burst(worker: &mut LoneWorker) -> Result<usize> {
    black_box(worker.service())
}

fn text(counted: &[(&str, f64)]) -> String {
    let mut text =
        "# Instructions of the worker for each frame. `tests/instructions` compares, `tests/instructions --update` writes.\n"
            .to_owned();
    for (name, now) in counted {
        let _ = writeln!(text, "{name:<20} {now:>10.1}");
    }
    text
}

fn figure(text: &str, name: &str) -> Option<f64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(case, _)| *case == name).find_map(|(_, figure)| figure.trim().parse().ok())
}
