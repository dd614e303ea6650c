//! TCP between two Linux guests under emulation: through vmrouter, and through two taps and the kernel's routing.
//!
//! All four guests run all the time, and the two ways have their turns one after the other. QEMU takes both cores, so
//! nothing is pinned. Emulated guests are slow: this tells whether vmrouter holds them up, not what it can carry.

use std::time::Duration;

use anyhow::Result;

use super::report::spread;
use super::usage::Work;
use crate::guest::Tap;
use crate::scenario::{VmIndex, VmShape};
use crate::{Daemon, Guest, GuestOptions, Netns, Scenario, iperf};

/// Of each turn.
const SECONDS: u32 = 5;
/// The taps, each with the kernel's address for its guest's subnet.
const TAPS: [(&str, &str); 2] = [("tapa", "10.0.0.1/24"), ("tapb", "10.0.1.1/24")];

/// Two guests and the way between them.
struct Way {
    name: &'static str,
    guests: [Guest; 2],
    server: String,
    /// Bits a second, of each turn.
    rates: Vec<f64>,
    /// Of these: from the server to the client.
    back: Vec<f64>,
}

impl Way {
    fn new(name: &'static str, mut guests: [Guest; 2], server: String) -> Result<Self> {
        let [a, b] = &mut guests;
        iperf::serve(b)?;
        a.until_ok(&format!("ping -c 1 -W 1 {server}"), Duration::from_secs(10))?;
        Ok(Self { name, guests, server, rates: Vec::new(), back: Vec::new() })
    }

    fn turn(&mut self) -> Result<()> {
        let [a, _] = &mut self.guests;
        let rate = iperf::tcp(a, &self.server, &format!("-t {SECONDS}"))?;
        let back = iperf::tcp(a, &self.server, &format!("-t {SECONDS} -R"))?;
        println!("{:<22} {:>6.0} Mbit/s, back {:>6.0} Mbit/s", self.name, rate / 1e6, back / 1e6);
        self.rates.push(rate);
        self.back.push(back);
        Ok(())
    }
}

/// Boots the guests, lets each way have `rounds` turns, and prints medians and their ratio.
///
/// # Errors
/// Without root or QEMU.
pub fn compare(rounds: usize) -> Result<()> {
    let netns = Netns::new()?;
    netns.run("sysctl -qw net.ipv4.ip_forward=1")?;
    let mut far = Scenario::default();
    let mut ends = Vec::new();
    for (device, address) in TAPS {
        netns.run(&format!("ip tuntap add dev {device} mode tap vnet_hdr"))?;
        netns.run(&format!("ip address add {address} dev {device}"))?;
        netns.run(&format!("ip link set {device} up"))?;
        let (first, _) = address.rsplit_once(".1/").unwrap_or_default();
        let tenant = far.tenant(device, &[&format!("{first}.0/24")], &[])?;
        ends.push(far.vm(tenant, device, VmShape::default())?);
    }
    let mut near = Scenario::default();
    let tenant = near.tenant("acme", &["10.0.0.0/24"], &[])?;
    let [a, b]: [VmIndex; 2] =
        [near.vm(tenant, "a", VmShape::default())?, near.vm(tenant, "b", VmShape::default())?];
    let daemon = Daemon::start(&near, None)?;
    let run_dir = daemon.run_dir();
    let mut behind_taps = Vec::new();
    for (end, (device, _)) in ends.iter().zip(TAPS) {
        let tap = Tap { netns: netns.name().to_owned(), device: device.to_owned() };
        let options = GuestOptions { tap: Some(tap), ..GuestOptions::default() };
        behind_taps.push(Guest::start(&far, *end, &run_dir, &options)?);
    }
    let guests = Guest::boot_all(&near, [a, b], &run_dir, &GuestOptions::default())?;
    for guest in &mut behind_taps {
        guest.wait_ready()?;
    }
    let [c, d]: [Guest; 2] = behind_taps.try_into().map_err(|_| anyhow::anyhow!("two guests"))?;
    let mut ours = Way::new("vmrouter", guests, near.ip4(b)?.to_string())?;
    let server = far.ip4(*ends.last().unwrap_or(&a))?.to_string();
    let mut kernel = Way::new("taps, kernel's routing", [c, d], server)?;
    let pid = daemon.process().pid();
    let (mut cpu, mut bits) = (Duration::ZERO, 0.0);
    for _ in 0..rounds {
        let before = Work::of(pid)?;
        ours.turn()?;
        cpu += Work::of(pid)?.since(before).cpu;
        bits += (ours.rates.last().unwrap_or(&0.0) + ours.back.last().unwrap_or(&0.0)) * f64::from(SECONDS);
        kernel.turn()?;
    }
    println!();
    for way in [&ours, &kernel] {
        println!(
            "{:<22} median {:>6.0} Mbit/s, back {:>6.0}",
            way.name,
            median(&way.rates),
            median(&way.back)
        );
    }
    let ratio = |ours: &[f64], other: &[f64]| median(ours) / median(other);
    println!(
        "vmrouter is {:.2} x, back {:.2} x; its CPU time is {:.2} s for 1 Gbit",
        ratio(&ours.rates, &kernel.rates),
        ratio(&ours.back, &kernel.back),
        cpu.as_secs_f64() / (bits / 1e9)
    );
    daemon.conserved()
}

/// In Mbit/s.
fn median(rates: &[f64]) -> f64 {
    let [_, median, _] = spread(rates.iter().copied());
    median / 1e6
}
