//! A session on its way into another process.
//!
//! Saving takes a session apart field by field, so that a new field cannot be forgotten. Restoring goes through the
//! functions that obey a VMM's messages, in the order of a front end: what they refuse is refused here.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::device_state::Transfer;
use super::error::SessionError;
use super::eventfd;
use super::features::LOG_ALL;
use super::message::{Region, RingAddresses};
use super::owners::{Claim, MemoryOwners};
use super::rings::Ring;
use super::session::{Session, SessionConfig};
use crate::handover::{FdRef, Fds};
use crate::port::Device;

/// What a front end negotiated and set up.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSession {
    config: SessionConfig,
    features: Option<u64>,
    protocol_features: Option<u64>,
    mtu: Option<u16>,
    owned: bool,
    device_status: u8,
    regions: Vec<SavedRegion>,
    rings: Vec<SavedRing>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRegion {
    region: Region,
    file: FdRef,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRing {
    size: Option<u16>,
    addresses: Option<RingAddresses>,
    base: u32,
    kick: Option<FdRef>,
    call: Option<FdRef>,
    err: Option<FdRef>,
    enabled: Option<bool>,
    running: bool,
}

/// A session whose transmit vrings are stopped for good; remembers which vrings ran.
#[derive(Debug)]
pub(super) struct Suspended {
    session: Session,
    running: Vec<bool>,
}

/// A session whose transmit vrings are to be started yet.
#[derive(Debug)]
pub(super) struct Restored {
    session: Session,
    transmit: Vec<usize>,
}

fn is_transmit(index: usize) -> bool {
    index % 2 == 1
}

impl Session {
    /// Stops the transmit vrings: what the guest sends waits in them from now on.
    pub(super) fn suspend(mut self, device: &mut dyn Device) -> Suspended {
        let running: Vec<bool> = self.rings.iter().map(Ring::is_running).collect();
        for index in (0..running.len()).filter(|index| is_transmit(*index)) {
            self.stop_ring(index, device);
        }
        Suspended { session: self, running }
    }
}

impl Suspended {
    /// Stops the receive vrings, for which nobody has frames any more, and takes the session apart.
    ///
    /// # Errors
    /// A page of its memory is gone, or no descriptor is left.
    pub(super) fn save(self, device: &mut dyn Device, fds: &mut Fds) -> Result<SavedSession, SessionError> {
        let Self { mut session, running } = self;
        for index in 0..running.len() {
            session.stop_ring(index, device);
        }
        let Session {
            config,
            rings,
            features,
            protocol_features,
            memory,
            claims,
            owners: _,
            tenant: _,
            inflight,
            log,
            transfer,
            device_status,
            mtu,
            owned,
            told: _,
        } = session;
        if memory.is_dead() {
            return Err(SessionError::MemoryGone);
        }
        // Its file belongs to both sides; a front end that has one loses nothing when it connects again.
        if inflight.is_some() {
            return Err(SessionError::HandedOver("has a file of chains in flight"));
        }
        // The front end waits for the end of it, and gives the migration up when the connection closes.
        let logs = log.is_some() && features.is_some_and(|bits| bits & LOG_ALL != 0);
        if logs || !matches!(transfer, Transfer::None) {
            return Err(SessionError::HandedOver("is in a migration"));
        }
        let region = |(region, claim): (Region, Claim)| {
            let file = fds.put(claim.file().try_clone_to_owned().map_err(SessionError::Fd)?);
            Ok(SavedRegion { region, file })
        };
        let regions = claims.into_iter().map(region).collect::<Result<_, SessionError>>()?;
        let rings = rings.into_iter().zip(running).map(|(ring, ran)| save_ring(ring, ran, fds)).collect();
        Ok(SavedSession { config, features, protocol_features, mtu, owned, device_status, regions, rings })
    }
}

fn save_ring(ring: Ring, ran: bool, fds: &mut Fds) -> SavedRing {
    let Ring { size, addresses, base, kick, call, err, enabled, running: _ } = ring;
    let [kick, call, err] = [kick, call, err].map(|fd| fd.map(|fd| fds.put(fd)));
    SavedRing { size, addresses, base, kick, call, err, enabled, running: ran }
}

impl SavedSession {
    /// Makes the session anew, for the NIC as it is now, and starts its receive vrings.
    ///
    /// # Errors
    /// What a VMM that sent this would be told.
    pub(super) fn restore(
        self,
        wanted: SessionConfig,
        owners: &Arc<MemoryOwners>,
        tenant: &str,
        fds: &mut Fds,
        device: &mut dyn Device,
    ) -> Result<Restored, SessionError> {
        let Self { config, features, protocol_features, mtu, owned, device_status, regions, rings } = self;
        if config != wanted {
            return Err(SessionError::HandedOver("is of a NIC with other properties"));
        }
        let mut session = Session::among(config, Arc::clone(owners), Arc::from(tenant));
        session.device_status = device_status;
        if rings.len() != session.rings.len() {
            return Err(SessionError::HandedOver("has another number of vrings"));
        }
        let started = restore_all(
            &mut session,
            (features, protocol_features, mtu, owned),
            regions,
            rings,
            (fds, device),
        );
        match started {
            Ok(transmit) => {
                session.tell(device);
                Ok(Restored { session, transmit })
            }
            Err(error) => {
                session.close(device);
                Err(error)
            }
        }
    }
}

type Negotiation = (Option<u64>, Option<u64>, Option<u16>, bool);

fn restore_all(
    session: &mut Session,
    (features, protocol_features, mtu, owned): Negotiation,
    regions: Vec<SavedRegion>,
    rings: Vec<SavedRing>,
    (fds, device): (&mut Fds, &mut dyn Device),
) -> Result<Vec<usize>, SessionError> {
    if owned {
        session.set_owner()?;
    }
    if let Some(bits) = protocol_features {
        session.set_protocol_features(bits)?;
    }
    if let Some(bits) = features {
        session.set_features(bits, device)?;
    }
    if let Some(mtu) = mtu {
        session.set_mtu(u64::from(mtu))?;
    }
    for SavedRegion { region, file } in regions {
        session.add_mem_reg(region, vec![take(fds, file)?], device)?;
    }
    let mut transmit = Vec::new();
    for (index, ring) in rings.into_iter().enumerate() {
        let ran = ring.running;
        restore_ring(session, index, ring, (fds, device))?;
        if ran && is_transmit(index) {
            transmit.push(index);
        } else if ran {
            session.start_ring(index, device)?;
        }
    }
    Ok(transmit)
}

/// Everything but the start.
fn restore_ring(
    session: &mut Session,
    index: usize,
    ring: SavedRing,
    (fds, device): (&mut Fds, &mut dyn Device),
) -> Result<(), SessionError> {
    let SavedRing { size, addresses, base, kick, call, err, enabled, running } = ring;
    let number = u64::try_from(index).unwrap_or(u64::MAX);
    if let Some(size) = size {
        session.set_vring_num(number, u32::from(size), device)?;
    }
    session.set_vring_base(number, base, device)?;
    if let Some(addresses) = addresses {
        let set = session.set_vring_addr(number, addresses, device);
        // A stopped vring keeps addresses of memory that is gone; it gets others before it is started.
        set.or_else(|error| if running { Err(error) } else { Ok(()) })?;
    }
    if let Some(enabled) = enabled {
        session.set_vring_enable(number, u32::from(enabled), device)?;
    }
    if let Some(call) = call {
        session.set_vring_call(number, vec![take(fds, call)?], device)?;
    }
    if let Some(err) = err {
        session.set_vring_err(number, vec![take(fds, err)?])?;
    }
    let kick = kick.map(|kick| take(fds, kick).and_then(eventfd::accept)).transpose()?;
    if running && kick.is_none() {
        return Err(SessionError::Missing("kick", index));
    }
    session.set_kick(index, kick)
}

impl Restored {
    /// Starts the transmit vrings: what waited in them moves.
    ///
    /// # Errors
    /// One cannot be started; all are stopped again.
    pub(super) fn start(mut self, device: &mut dyn Device) -> Result<Session, SessionError> {
        for index in self.transmit {
            if let Err(error) = self.session.start_ring(index, device) {
                self.session.close(device);
                return Err(error);
            }
        }
        Ok(self.session)
    }
}

fn take(fds: &mut Fds, at: FdRef) -> Result<OwnedFd, SessionError> {
    fds.take(at).map_err(|_| SessionError::HandedOver("lacks a descriptor"))
}
