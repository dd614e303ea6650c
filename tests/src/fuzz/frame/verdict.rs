//! What a verdict may be, and what it may have done to the headers.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use router::service::{Desk, LONGEST};
use router::snapshot::PortKind;
use router::{Answer, Headers, NoTrace, PortId, Snapshot, Verdict, VnetHeader, WorkerState, reply};

use super::super::packet::{ETHER, sum};
use super::tenant;

/// Decides without a packet path.
pub(super) struct Decider {
    snapshot: Arc<Snapshot>,
    state: WorkerState,
    now: Instant,
}

impl Decider {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Self {
        let state = WorkerState::new(&snapshot);
        Self { snapshot, state, now: Instant::now() }
    }

    pub(super) fn decide(&mut self, ingress: PortId, vnet: [u8; 10], frame: &[u8]) -> Result<()> {
        let Self { snapshot, state, now } = self;
        let mut head = Headers::of(VnetHeader::from_bytes(&vnet), frame);
        let before = head.clone();
        let verdict = router::forward(snapshot, state, *now, ingress, &mut head, &mut NoTrace);
        ensure!(head.frame_len <= before.frame_len && head.len <= before.len, "the frame grew");
        let mut reply = Vec::new();
        match verdict {
            Verdict::Deliver(egress) | Verdict::Uplink(egress) => {
                self.forwarded(ingress, egress, &before, &head)?;
            }
            Verdict::Answer(Answer::InPlace) => {
                let peer = before.as_bytes().get(6..12);
                ensure!(head.as_bytes().get(..6) == peer, "an answer to somebody else");
            }
            Verdict::Answer(Answer::Service(service)) => {
                unchanged(&before, &head)?;
                let copy = frame.get(..LONGEST).unwrap_or(frame);
                let mut desk = Desk { snapshot, state, now: *now, ingress };
                if let Some(to) = desk.serve(service, &head, copy, &mut reply).reply {
                    let whose = |port| tenant(&self.snapshot, port);
                    ensure!(whose(ingress) == whose(to), "an answer to another tenant");
                    self.own_frame(to, &reply)?;
                }
            }
            Verdict::Answer(answer) => {
                unchanged(&before, &head)?;
                if reply::build(snapshot, state, *now, ingress, &head, answer, &mut reply) {
                    self.own_frame(ingress, &reply)?;
                }
            }
            Verdict::Consume => {}
            Verdict::Drop(reason, rule) => {
                unchanged(&before, &head)?;
                ensure!(snapshot.rules.len() > usize::try_from(rule.0)?, "a rule that is not there");
                if reply::icmp_error(snapshot, state, *now, ingress, &head, reason, &mut reply) {
                    self.own_frame(ingress, &reply)?;
                }
            }
        }
        Ok(())
    }

    /// The egress is the sender's own tenant's, and only MACs, TTL and header checksum are new.
    fn forwarded(&self, ingress: PortId, egress: PortId, before: &Headers, head: &Headers) -> Result<()> {
        let whose = |port| tenant(&self.snapshot, port);
        ensure!(whose(ingress) == whose(egress), "from {ingress:?} into another tenant, to {egress:?}");
        ensure!(ingress != egress, "back to where it came from");
        let (l3, l4) = (usize::from(head.l3), usize::from(head.l4));
        ensure!(
            l3 == ETHER && l3 < l4 && u32::from(head.l4) <= head.len,
            "layers at {l3} and {l4} of {}",
            head.len
        );
        let to = match self.snapshot.port(egress).map(|port| &port.kind).context("no such egress")? {
            PortKind::Nic(nic) => nic.mac,
            PortKind::Uplink(uplink) => uplink.peer_mac,
        };
        let bytes = head.as_bytes();
        ensure!(bytes.get(..12) == Some(&[to.0, self.snapshot.router_mac.0].concat()[..]), "wrong MACs");
        let v4 = bytes.get(12..14) == Some(&[8, 0]);
        let ttl = if v4 { l3 + 8 } else { l3 + 7 };
        let may_change = |at: usize| at < 12 || at == ttl || v4 && (at == l3 + 10 || at == l3 + 11);
        for (at, (old, new)) in before.as_bytes().iter().zip(bytes).enumerate() {
            ensure!(old == new || may_change(at), "byte {at} was {old} and is {new}");
            ensure!(at != ttl || *old == *new + 1, "a TTL of {old} became {new}");
        }
        if v4 {
            let header_len = usize::from(bytes.get(l3).copied().unwrap_or(0) & 0x0f) * 4;
            let header = bytes.get(l3..l3 + header_len).context("no IPv4 header")?;
            ensure!(sum(header, 0) == 0xffff, "wrong IPv4 checksum");
        }
        Ok(())
    }

    /// What the router says itself is a legal frame from its MAC, and not longer than the port takes.
    fn own_frame(&self, port: PortId, frame: &[u8]) -> Result<()> {
        let mtu = self.snapshot.port(port).map_or(0, |port| usize::from(port.mtu));
        ensure!(frame.len() <= ETHER + mtu, "a reply of {} bytes", frame.len());
        ensure!(frame.get(6..12) == Some(&self.snapshot.router_mac.0[..]), "a reply from another MAC");
        let sliced = etherparse::SlicedPacket::from_ethernet(frame).context("a reply that is no frame")?;
        ensure!(sliced.net.is_some(), "a reply of no known protocol");
        Ok(())
    }
}

/// What was not sent on can still be quoted as it came.
fn unchanged(before: &Headers, head: &Headers) -> Result<()> {
    let (old, new) = (before.as_bytes(), head.as_bytes());
    ensure!(old.get(..new.len()) == Some(new), "the headers of a frame that goes nowhere were changed");
    Ok(())
}
