//! Questions that were sent on and are not answered yet.
//!
//! # Theory of operation
//! A forger beyond the uplink must guess the number and the port of a question, 31 random bits, and its name, within
//! the 5 seconds that it is kept, and send from the server's address (RFC 5452). Nothing is cached, so there is nothing to
//! poison beyond the one answer.
//!
//! A tenant has [`PER_TENANT`] places and a NIC [`PER_NIC`] of them: no tenant takes a place from another, and no NIC all
//! of its tenant's. A question that a guest repeats goes to the next server, from whichever port and under whichever number it is
//! repeated; one that is the same in these too keeps its place. Tenants that are gone
//! are forgotten with a change of the configuration. One short lock, taken for these questions and answers only.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use topology::Mac;

use crate::ids::PortId;

/// Ports from which questions are sent on, up to the last.
pub(crate) const FIRST_PORT: u16 = 0x8000;
/// Questions of one tenant that wait.
const PER_TENANT: usize = 256;
/// Of these, those of one NIC.
const PER_NIC: usize = 64;
/// How long a server may take; guests ask again after as long.
const PATIENCE: Duration = Duration::from_secs(5);

/// All questions that wait. Workers share them.
#[derive(Debug)]
pub(crate) struct Queries {
    /// Random words: what numbers and ports are made of.
    secret: [u64; 4],
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By name: its number is another one after a change of the configuration.
    tenants: HashMap<String, Vec<Query>>,
    asked: u64,
}

/// Who asked, from where, at which address of ours, under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) port: PortId,
    pub(crate) mac: Mac,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) id: u16,
}

#[derive(Debug)]
struct Query {
    asker: Asker,
    sent: Sent,
    /// Index of the server among those of the network.
    choice: usize,
    section: Box<[u8]>,
    until: Instant,
}

/// How a question is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) server: IpAddr,
    pub(crate) port: u16,
    pub(crate) id: u16,
}

/// There is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

impl Queries {
    pub(crate) fn new(secret: [u64; 4]) -> Self {
        Self { secret, waiting: Mutex::default() }
    }

    /// Enters a question to one of the servers, of which there is at least one.
    pub(crate) fn ask(
        &self,
        now: Instant,
        tenant: &str,
        asker: Asker,
        section: &[u8],
        servers: &[IpAddr],
    ) -> Result<Sent, Refused> {
        let mut waiting = self.lock();
        let Waiting { tenants, asked } = &mut *waiting;
        *asked = asked.wrapping_add(1);
        let (port, id) = self.draw(*asked);
        if !tenants.contains_key(tenant) {
            tenants.insert(tenant.to_owned(), Vec::new());
        }
        let queries = tenants.get_mut(tenant).ok_or(Refused)?;
        queries.retain(|query| query.until > now);
        let alike = |query: &&Query| query.asker.port == asker.port && *query.section == *section;
        let choice = queries.iter().filter(alike).map(|query| query.choice + 1).max().unwrap_or(0);
        queries.retain(|query| query.asker != asker || *query.section != *section);
        let of_nic = queries.iter().filter(|query| query.asker.port == asker.port).count();
        if queries.len() >= PER_TENANT || of_nic >= PER_NIC {
            return Err(Refused);
        }
        let server = *servers.iter().cycle().nth(choice % servers.len().max(1)).ok_or(Refused)?;
        let sent = Sent { server, port, id };
        queries.push(Query { asker, sent, choice, section: section.into(), until: now + PATIENCE });
        Ok(sent)
    }

    /// Takes out the question that this is the answer to.
    pub(crate) fn answered(
        &self,
        now: Instant,
        tenant: &str,
        port: u16,
        id: u16,
        server: IpAddr,
        section: &[u8],
    ) -> Option<Asker> {
        let sent = Sent { server, port, id };
        let mut waiting = self.lock();
        let queries = waiting.tenants.get_mut(tenant)?;
        let fits = |query: &Query| query.sent == sent && *query.section == *section && query.until > now;
        let at = queries.iter().position(fits)?;
        Some(queries.swap_remove(at).asker)
    }

    /// A question was not sent after all.
    pub(crate) fn forget(&self, tenant: &str, port: u16, id: u16) {
        if let Some(queries) = self.lock().tenants.get_mut(tenant) {
            queries.retain(|query| (query.sent.port, query.sent.id) != (port, id));
        }
    }

    /// Forgets tenants that are not there any more.
    pub(crate) fn keep<'t>(&self, tenants: impl Iterator<Item = &'t str>) {
        let mut waiting = self.lock();
        if waiting.tenants.is_empty() {
            return;
        }
        let kept = tenants.filter_map(|name| waiting.tenants.remove_entry(name)).collect();
        waiting.tenants = kept;
    }

    /// A port and a number that nobody can foresee who does not know the secret.
    fn draw(&self, asked: u64) -> (u16, u16) {
        let mut hasher = DefaultHasher::new();
        self.secret.iter().for_each(|word| hasher.write_u64(*word));
        hasher.write_u64(asked);
        let [a, b, c, d, ..] = hasher.finish().to_be_bytes();
        (FIRST_PORT | u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
