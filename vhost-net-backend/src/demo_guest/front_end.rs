//! The VMM's half of vhost-user, in the order of messages that Cloud Hypervisor has.
//!
//! GET_QUEUE_NUM is never sent: for a net device the answer counts pairs, and `vhost`'s front end takes it for
//! vrings and then refuses our second one.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::ring::Layout;
use super::{GuestError, Ram};

/// Vrings that a front end may name: far more than any test has pairs.
const MAX_VRINGS: u64 = 512;
/// An answer that takes longer is a fault: a test should fail, not hang.
const ANSWER: Duration = Duration::from_secs(20);
/// MAC, status, pairs and MTU: the part of `virtio_net_config` (virtio 1.3, section 5.1.4) that we read.
const CONFIG_LEN: usize = 12;

/// What the device's configuration space says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The NIC's MAC.
    pub mac: [u8; 6],
    /// Queue pairs at most.
    pub pairs: u16,
    /// Largest layer-3 packet, bytes; 0 without VIRTIO_NET_F_MTU.
    pub mtu: u16,
}

/// One vhost-user connection.
pub struct FrontEnd {
    frontend: Frontend,
    /// The same socket once more, to see it close and to close it.
    watch: UnixStream,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    config: Option<DeviceConfig>,
}

impl std::fmt::Debug for FrontEnd {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("FrontEnd")
            .field("features", &self.features)
            .field("protocol", &self.protocol)
            .finish()
    }
}

impl FrontEnd {
    /// Connects and negotiates: `features` and `protocol` are what the guest would like; it gets what is offered too.
    ///
    /// # Errors
    /// Nobody listens, or the daemon refused a message.
    pub fn connect(
        path: &Path,
        features: u64,
        protocol: VhostUserProtocolFeatures,
    ) -> Result<Self, GuestError> {
        Self::over(UnixStream::connect(path)?, features, protocol)
    }

    /// The same over a connection that is there: that of a VMM which listened, and was connected to.
    ///
    /// # Errors
    /// The daemon refused a message.
    pub fn over(
        socket: UnixStream,
        features: u64,
        protocol: VhostUserProtocolFeatures,
    ) -> Result<Self, GuestError> {
        socket.set_read_timeout(Some(ANSWER))?;
        socket.set_write_timeout(Some(ANSWER))?;
        let watch = socket.try_clone()?;
        let mut frontend = Frontend::from_stream(socket, MAX_VRINGS);
        let bit30 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let protocol = if offered & bit30 == 0 {
            VhostUserProtocolFeatures::empty()
        } else {
            let protocol = frontend.get_protocol_features()? & protocol;
            frontend.set_protocol_features(protocol)?;
            protocol
        };
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let features = offered & (features | bit30);
        frontend.set_features(features)?;
        let config = if protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            Some(read_config(&mut frontend)?)
        } else {
            None
        };
        Ok(Self { frontend, watch, features, protocol, config })
    }

    /// Virtio features negotiated.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// vhost-user protocol features negotiated.
    #[must_use]
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// The configuration space, if the daemon serves it.
    #[must_use]
    pub fn config(&self) -> Option<DeviceConfig> {
        self.config
    }

    /// Shows the daemon the guest's memory: region by region with CONFIGURE_MEM_SLOTS, else as one table.
    ///
    /// # Errors
    /// The daemon refused it.
    pub fn set_memory(&mut self, ram: &Ram) -> Result<(), GuestError> {
        let regions = ram.regions()?;
        if self.protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            for region in &regions {
                self.frontend.add_mem_region(region)?;
            }
        } else {
            self.frontend.set_mem_table(&regions)?;
        }
        Ok(())
    }

    /// Hands over one vring: NUM, ADDR, BASE, CALL, KICK. It still has to be enabled.
    ///
    /// # Errors
    /// The daemon refused it, or the ring is not in `ram`.
    pub fn start_vring(
        &mut self,
        index: usize,
        ram: &Ram,
        layout: Layout,
        base: u16,
        kick: &EventFd,
        call: &EventFd,
    ) -> Result<(), GuestError> {
        let addresses = Self::addresses(ram, layout)?;
        self.frontend.set_vring_num(index, layout.size)?;
        self.frontend.set_vring_addr(index, &addresses)?;
        self.frontend.set_vring_base(index, base)?;
        self.frontend.set_vring_call(index, call)?;
        self.frontend.set_vring_kick(index, kick)?;
        Ok(())
    }

    /// A vring's areas as SET_VRING_ADDR names them.
    pub(super) fn addresses(ram: &Ram, layout: Layout) -> Result<VringConfigData, GuestError> {
        Ok(VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: ram.user_addr(layout.desc)?,
            used_ring_addr: ram.user_addr(layout.used)?,
            avail_ring_addr: ram.user_addr(layout.avail)?,
            log_addr: None,
        })
    }

    /// Enables or disables one vring. Without protocol features a vring is enabled from its start, and this does
    /// nothing (vhost-user, "Ring states").
    ///
    /// # Errors
    /// The daemon refused it.
    pub fn enable(&mut self, index: usize, enabled: bool) -> Result<(), GuestError> {
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            self.frontend.set_vring_enable(index, enabled)?;
        }
        Ok(())
    }

    /// Stops one vring. Returns the daemon's next avail index.
    ///
    /// # Errors
    /// The daemon refused it.
    pub fn stop_vring(&mut self, index: usize) -> Result<u16, GuestError> {
        let base = self.frontend.get_vring_base(index)?;
        Ok(u16::try_from(base & 0xffff).unwrap_or_default())
    }

    /// RESET_DEVICE, as a guest's reboot causes it.
    ///
    /// # Errors
    /// Not negotiated, or refused.
    pub fn reset(&mut self) -> Result<(), GuestError> {
        Ok(self.frontend.reset_device()?)
    }

    /// The connection, to poll: readable means closed, as the daemon sends nothing unasked.
    #[must_use]
    pub fn socket(&self) -> &UnixStream {
        &self.watch
    }

    /// The protocol engine itself, for messages that this type has no words for.
    pub fn raw(&mut self) -> &mut Frontend {
        &mut self.frontend
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        // As a VMM that is killed: no farewell. Not an error when the daemon was first.
        let _ = self.watch.shutdown(Shutdown::Both);
    }
}

fn read_config(frontend: &mut Frontend) -> Result<DeviceConfig, GuestError> {
    let size = u32::try_from(CONFIG_LEN).unwrap_or_default();
    let (_, bytes) = frontend.get_config(0, size, VhostUserConfigFlags::empty(), &[0; CONFIG_LEN])?;
    let Some(&[m0, m1, m2, m3, m4, m5, _, _, p0, p1, t0, t1]) = bytes.first_chunk::<CONFIG_LEN>() else {
        return Err(GuestError::Closed);
    };
    Ok(DeviceConfig {
        mac: [m0, m1, m2, m3, m4, m5],
        pairs: u16::from_le_bytes([p0, p1]),
        mtu: u16::from_le_bytes([t0, t1]),
    })
}
