//! Where reasons are produced that take more than one guest: a daemon with a tap, and guests that a test makes one by one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use topology::Topology;
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

use crate::hostile::attacker::{Attacker, BUFFERS, Desc, TX};
use crate::hostile::frames::Host;
use crate::wait::wait_for;
use crate::{Daemon, Wan};

/// The topology file.
pub const FILE: &str = include_str!("stage.toml");

/// Whatever is waited for on a stage.
pub const SOON: Duration = Duration::from_secs(5);

/// The daemon, and the network behind its uplink.
#[derive(Debug)]
pub struct Stage {
    /// Behind the uplink.
    pub wan: Wan,
    /// The daemon.
    pub daemon: Daemon,
    /// What it reads.
    pub text: String,
    topology: Topology,
}

impl Stage {
    /// Starts the daemon.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> Result<Self> {
        let wan = Wan::new()?;
        let daemon = Daemon::start_on(FILE, Some(&wan.router))?;
        let topology = topology::parse("stage.toml", FILE).map_err(|all| anyhow::anyhow!("{all}"))?;
        Ok(Self { wan, daemon, text: FILE.to_owned(), topology })
    }

    /// The same topology with every line one further down; nobody's connection ends by that.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn shift(&mut self) -> Result<()> {
        self.text = format!("# One line more.\n{FILE}");
        self.daemon.write(&self.text)?;
        let said = self.daemon.reload()?;
        ensure!(!said.contains("nothing was changed"), "{said}");
        Ok(())
    }

    /// Who `acme/a` is.
    ///
    /// # Errors
    /// There is no such VM, or it lacks an address.
    pub fn host(&self, name: &str) -> Result<Host> {
        let (tenant, vm) = name.split_once('/').context("no tenant")?;
        let tenant = self.topology.tenants.iter().find(|found| found.name == tenant).context("no tenant")?;
        let vm = tenant.vms.iter().find(|found| found.name == vm).context("no VM")?;
        let nic = vm.nics.first().context("no NIC")?;
        let (ip4, ip6) = nic.addresses4.first().zip(nic.addresses6.first()).context("no address")?;
        Ok(Host { mac: nic.mac.0, ip4: *ip4, ip6: *ip6 })
    }

    /// The socket of its NIC.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.daemon.run_dir().join(format!("{name}.0.sock"))
    }

    /// A guest on that socket that offers no receive buffer; the one before may still be tidied up after.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn guest(&self, name: &str) -> Result<Attacker> {
        let socket = self.socket(name);
        wait_for(name, SOON, || Ok(Attacker::started(&socket, 0).ok()))
    }

    /// A card on that socket with a driver that receives.
    ///
    /// # Errors
    /// As [`Self::guest`].
    pub fn nic(&self, name: &str, options: NicOptions) -> Result<FakeNic> {
        let socket = self.socket(name);
        wait_for(name, SOON, || Ok(FakeNic::connect(&socket, options.clone()).ok()))
    }

    /// Sends these frames from a guest of its own, one after the other.
    ///
    /// # Errors
    /// They are not taken.
    pub fn send(&self, from: &str, frames: &[Vec<u8>]) -> Result<()> {
        let mut guest = self.guest(from)?;
        frames.iter().try_for_each(|frame| guest.send(&[0; 12], frame))
    }

    /// Sends a frame `count` times, 256 at most, all at once.
    ///
    /// # Errors
    /// They are not taken.
    pub fn flood(&self, from: &str, frame: &[u8], count: u16) -> Result<()> {
        let mut guest = self.guest(from)?;
        let bytes = [&[0; 12], frame].concat();
        guest.write(BUFFERS, &bytes)?;
        guest.offer_copies(TX, Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0), count)?;
        guest.comes_back(TX, count)
    }

    /// Runs a line of words in the router's namespace.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, line: &str) -> Result<()> {
        self.wan.router.run(line).map(drop)
    }
}
