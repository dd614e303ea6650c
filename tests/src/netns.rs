//! A network namespace for one test.

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::output;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace with a unique name; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes it, with `lo` up.
    ///
    /// # Errors
    /// Without root, or without `ip`.
    pub fn new() -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmrt{}-{number}", std::process::id());
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self { name };
        netns.run("ip link set lo up")?;
        Ok(netns)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `program` inside; the child's process id is the program's own, because `ip netns exec` becomes it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// A UDP socket inside.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the address is taken.
    pub fn udp(&self, address: SocketAddr) -> Result<UdpSocket> {
        let namespace = File::open(Path::new("/run/netns").join(&self.name))?;
        // A thread enters it for good, so one is made that ends at once. The socket stays inside.
        let made = thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            UdpSocket::bind(address)
        });
        Ok(made.join().map_err(|_| anyhow!("the thread in the namespace panicked"))??)
    }

    /// Runs a line of words separated by spaces inside, to its end; gives its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        output(command.args(words))
    }

    /// Joins the two by a veth pair: `here` in this one, `there` in the other, both up, checksums complete on the
    /// wire so that a capture can judge them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn veth(&self, here: &str, other: &Self, there: &str) -> Result<()> {
        self.run(&format!("ip link add {here} type veth peer name {there} netns {}", other.name))?;
        for (netns, device) in [(self, here), (other, there)] {
            netns.run(&format!("ip link set {device} up"))?;
            netns.run(&format!("ethtool -K {device} tx off tso off gso off gro off"))?;
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Nothing to do about a failure here; the name is unique anyway.
        let _ = output(Command::new("ip").args(["netns", "del", &self.name]));
    }
}
