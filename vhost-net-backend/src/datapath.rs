//! The way of a frame through one worker: pop, decide, deliver, complete, publish.
//!
//! [`Datapath::service_tx`] owns a burst from pop to complete, in three visible phases:
//! 1. **decide**: each frame's headers are copied once; `router::forward` rewrites that copy and says where it goes. In a large
//!    table all lookups of the burst are begun before the first is needed (`router::look_ahead`).
//! 2. **deliver**: grouped by egress, in the order they came, one lock at a time; the rewritten headers and then the
//!    payload, straight from the sender's buffers into the receiver's. What many receivers need is fetched first, for all.
//! 3. **complete**: the transmit chains go back to the sender, and only then the receivers are shown what they
//!    got: a crash in between may lose a burst and never delivers one twice.
//!
//! Frames from an uplink take the same way; their buffers are ours. What is for a guest service of the router's is answered
//! beside it ([`service`]). Where somebody looks at the frames ([`crate::watch`]), phases 1 and 2 also keep what was decided,
//! and the frame is copied for him before phase 3 (a copy for a guest is put into its ring then, [`copies`]); else nothing of
//! that is there.

mod copies;
mod replies;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use router::service::Desk;
use router::snapshot::PortKind;
use router::{
    Answer, DropReason, FlowTable, Headers, OffloadCaps, PortId, RuleId, Snapshot, Verdict, VnetHeader,
    WorkerState, meter, reply,
};

use crate::counters::{Counter, Counters};
use crate::egress::{Egress, Sent, Slow, send};
use crate::groups::Groups;
use crate::guest_memory::{GuestMemory, HostBuffer};
use crate::port::PortTable;
use crate::uplink::Tap;
use crate::vring::{Approach, BURST, Burst, Frame, PortFault, Sender, TxRing};
use crate::watch::{Feed, Nobody, Watch, Watcher};
use replies::Replies;

/// Receivers of one burst from which on they are approached together.
const MANY: usize = 4;

/// One worker's side of the packet path.
#[derive(Debug)]
pub struct Datapath {
    worker: usize,
    snapshot: Arc<Snapshot>,
    state: WorkerState,
    ports: PortTable,
    counters: Counters,
    /// By port index.
    taps: Vec<Option<Tap>>,
    heads: Vec<Headers>,
    groups: Groups,
    replies: Replies,
    /// A message to a guest service, whole.
    message: Vec<u8>,
    slow: Slow,
    /// Receivers that have frames of the last burst which they were not shown yet.
    unshown: Vec<Unshown>,
    /// Somebody looks at the frames.
    watch: Option<Box<Watch>>,
}

/// A receiver that has frames which it was not shown yet, and whose they are.
#[derive(Clone, Copy, Debug)]
struct Unshown {
    egress: PortId,
    ingress: PortId,
}

/// One transmit vring with the memory that its bursts borrow from.
#[derive(Debug)]
pub struct TxQueue {
    /// Whose it is.
    pub port: PortId,
    /// Queue pair.
    pub pair: usize,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The vring.
    pub ring: TxRing,
    /// Whether the front end enabled it, and it is not at fault.
    pub enabled: bool,
}

/// A burst on its way, and where it came in.
#[derive(Clone, Copy, Debug)]
struct Passing<'b> {
    ingress: PortId,
    burst: &'b Burst<'b>,
    /// Of the vnet header in front of each frame.
    header_len: u32,
    /// What the sender negotiated.
    sender: OffloadCaps,
    now: Instant,
    /// None: it came by an uplink.
    from: Option<&'b TxRing>,
}

/// What became of the frames of one group, to be counted together.
#[derive(Debug, Default)]
struct Sum {
    frames: u64,
    bytes: u64,
    delivered: u64,
    refused: u64,
}

impl Sum {
    /// One frame more.
    #[inline]
    fn add<R>(&mut self, sent: Sent, dropped: impl FnOnce(DropReason) -> R) {
        self.frames += sent.frames;
        self.bytes += sent.bytes;
        match sent.refused {
            Some(reason) => {
                self.refused += 1;
                dropped(reason);
            }
            None => self.delivered += 1,
        }
    }
}

impl Datapath {
    /// For worker `worker` of the daemon that has these ports, counters and connections.
    #[must_use]
    pub fn new(
        worker: usize,
        snapshot: Arc<Snapshot>,
        ports: PortTable,
        counters: Counters,
        flows: Arc<FlowTable>,
    ) -> Self {
        Self {
            worker,
            state: WorkerState::sharing(&snapshot, flows),
            taps: std::iter::repeat_with(|| None).take(snapshot.ids_end()).collect(),
            groups: Groups::new(snapshot.ids_end()),
            snapshot,
            ports,
            counters,
            heads: vec![Headers::EMPTY; BURST],
            replies: Replies::default(),
            message: Vec::new(),
            slow: Slow::default(),
            unshown: Vec::new(),
            watch: None,
        }
    }

    /// Takes a new configuration, between two bursts; returns the one before.
    pub fn configure(&mut self, snapshot: Arc<Snapshot>, ports: PortTable) -> (Arc<Snapshot>, PortTable) {
        self.state.adopt(&snapshot);
        self.groups.fit(snapshot.ids_end());
        self.taps.resize_with(snapshot.ids_end(), || None);
        self.watch.iter_mut().for_each(|watch| watch.fit(&snapshot));
        (std::mem::replace(&mut self.snapshot, snapshot), std::mem::replace(&mut self.ports, ports))
    }

    /// The configuration that decides.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Somebody looks at the frames from now on.
    pub fn watch(&mut self, feed: Feed) {
        let watch = self.watch.get_or_insert_with(|| Box::new(Watch::new()));
        watch.add(feed, &self.snapshot);
    }

    /// A guest's driver starts anew: the next one may use other link-local addresses.
    pub fn forget_guest(&mut self, port: PortId) {
        self.state.forget(port);
    }

    /// Gives (or takes away) this worker's queue of an uplink.
    pub fn set_tap(&mut self, port: PortId, tap: Option<Tap>) {
        if let Some(slot) = self.taps.get_mut(port.index()) {
            *slot = tap;
        }
    }

    /// Gives its queues of all uplinks away.
    #[must_use]
    pub fn take_taps(&mut self) -> Vec<(PortId, Tap)> {
        let taps = (0..).map(PortId).zip(&mut self.taps);
        taps.filter_map(|(port, tap)| Some((port, tap.take()?))).collect()
    }

    /// This worker's queue of an uplink.
    #[must_use]
    pub fn tap(&self, port: PortId) -> Option<&Tap> {
        self.taps.get(port.index())?.as_ref()
    }

    /// Moves one burst out of a guest's transmit vring; returns its frames.
    ///
    /// # Errors
    /// The vring can no longer be trusted.
    pub fn service_tx(&mut self, queue: &mut TxQueue, now: Instant) -> Result<usize, PortFault> {
        if !self.is_settled(queue.port) {
            return Ok(0);
        }
        let TxQueue { port, memory, ring, .. } = queue;
        let mut burst = Burst::default();
        ring.pop_burst(memory, &mut burst)?;
        if burst.frames.is_empty() {
            return Ok(0);
        }
        let (header_len, sender) = (ring.header_len(), ring.sender());
        self.forward(&Passing { ingress: *port, burst: &burst, header_len, sender, now, from: Some(ring) });
        ring.complete(&burst);
        self.publish();
        ring.judge(&burst, now)?;
        Ok(burst.frames.len())
    }

    /// Moves one burst in from an uplink; returns its frames.
    ///
    /// # Errors
    /// The uplink's device is gone.
    pub fn service_uplink(
        &mut self,
        port: PortId,
        buffers: &HostBuffer,
        now: Instant,
    ) -> std::io::Result<usize> {
        if !self.is_settled(port) {
            return Ok(0);
        }
        let mut burst = Burst::default();
        let Some(tap) = self.tap(port) else { return Ok(0) };
        tap.read_burst(buffers, &mut burst)?;
        if burst.frames.is_empty() {
            return Ok(0);
        }
        let (header_len, sender) = (Tap::HEADER_LEN, tap.caps());
        self.forward(&Passing { ingress: port, burst: &burst, header_len, sender, now, from: None });
        self.publish();
        Ok(burst.frames.len())
    }

    /// Sends a frame of the router's own out of `port`.
    pub fn emit(&mut self, port: PortId, frame: &[u8]) {
        self.send_reply(port, port, frame);
        self.publish();
    }

    /// The router's advertisement for `port`, unasked.
    pub fn advertise(&mut self, port: PortId) {
        let mut frame = Vec::new();
        if reply::router_advert(&self.snapshot, port, &mut frame) {
            self.emit(port, &frame);
        }
    }

    /// Phases 1 and 2. That nobody looks costs one branch a burst.
    #[inline]
    fn forward(&mut self, passing: &Passing<'_>) {
        let Some(mut watch) = self.watch.take_if(|watch| watch.looks_at(passing.ingress)) else {
            self.decide(passing, &mut Nobody::default());
            return self.deliver(passing, &mut Nobody::default());
        };
        self.decide(passing, &mut *watch);
        self.deliver(passing, &mut *watch);
        self.copy(passing, &watch);
        let goes_on = watch.tell(&self.snapshot, passing.ingress, passing.burst, passing.header_len);
        self.watch = goes_on.then_some(watch);
    }

    /// Phase 1: every frame gets its verdict; what needs no egress is settled here.
    fn decide(&mut self, passing: &Passing<'_>, watch: &mut impl Watcher) {
        let Passing { ingress, burst, header_len, sender, now, .. } = *passing;
        let counters = self.counters.block(self.worker, ingress);
        // First, so that nobody who reads ever sees more outcomes than frames.
        counters.add(Counter::Received, u64::try_from(burst.fresh()).unwrap_or(0));
        let (mut bytes, mut peeked) = (0, 0_u64);
        for (i, (frame, head)) in burst.frames.iter().zip(&mut self.heads).enumerate() {
            peeked |= u64::from(peek(burst, frame, header_len, head)) << i;
        }
        let heads = self.heads.get(..burst.frames.len()).unwrap_or_default();
        router::look_ahead(&self.snapshot, ingress, heads);
        meter::begin_burst(&self.snapshot, &mut self.state, now, ingress, heads);
        for (i, head) in self.heads.iter_mut().take(burst.frames.len()).enumerate() {
            if burst.is_gone(i) {
                // Forwarded and counted by the daemon that was killed.
                continue;
            }
            let verdict = if peeked >> i & 1 == 0 {
                // What is in `head` is of another frame.
                let _ = watch.begins(i, &Headers::EMPTY);
                Verdict::Drop(DropReason::ChainMalformed, RuleId::BUILT_IN)
            } else if !sender.allow(head.vnet) {
                let _ = watch.begins(i, head);
                Verdict::Drop(DropReason::VnetMalformed, RuleId::BUILT_IN)
            } else {
                bytes += u64::from(head.frame_len);
                let trace = watch.begins(i, head);
                router::forward(&self.snapshot, &mut self.state, now, ingress, head, trace)
            };
            watch.decided(i, verdict);
            match verdict {
                Verdict::Deliver(egress) | Verdict::Uplink(egress) => self.groups.push(i, egress),
                Verdict::Answer(Answer::InPlace) => {
                    counters.add(Counter::Consumed, 1);
                    self.groups.push(i, ingress);
                }
                Verdict::Answer(Answer::Service(service)) => {
                    service::copy(burst, i, header_len, head, &mut self.message);
                    let (snapshot, state) = (&*self.snapshot, &mut self.state);
                    let desk = Desk { snapshot, state, now, ingress };
                    let (message, replies) = (&self.message, &mut self.replies);
                    let refused = service::serve(desk, service, head, message, counters, replies);
                    refused.into_iter().for_each(|reason| watch.lost(i, reason));
                }
                Verdict::Answer(answer) => {
                    counters.add(Counter::Consumed, 1);
                    let (snapshot, state) = (&self.snapshot, &mut self.state);
                    self.replies.push(ingress, |reply| {
                        reply::build(snapshot, state, now, ingress, head, answer, reply)
                    });
                }
                Verdict::Consume => counters.add(Counter::Consumed, 1),
                Verdict::Drop(reason, _) => {
                    counters.dropped(reason);
                    let (snapshot, state) = (&self.snapshot, &mut self.state);
                    self.replies.push(ingress, |reply| {
                        reply::icmp_error(snapshot, state, now, ingress, head, reason, reply)
                    });
                }
            }
        }
        meter::end_burst(&self.snapshot, &mut self.state, ingress);
        counters.add(Counter::ReceivedBytes, bytes);
    }

    /// Phase 2: each egress gets its frames, in the order they came.
    fn deliver(&mut self, passing: &Passing<'_>, watch: &mut impl Watcher) {
        let Passing { ingress, burst, header_len, from, now, .. } = *passing;
        self.approach();
        while let Some((egress, frames)) = self.groups.pop() {
            let port = self.ports.get(egress.index());
            let Self { worker, snapshot, counters, heads, slow, unshown, .. } = self;
            let ours = counters.block(*worker, ingress);
            let theirs = counters.block(*worker, egress);
            let mut sum = Sum::default();
            // The answer to a frame that was consumed is no outcome of it: that is settled.
            let mut dropped = |i, reason| {
                if egress != ingress {
                    ours.dropped(reason);
                    watch.lost(i, reason);
                }
            };
            let each = frames.iter().filter_map(|i| Some((i, burst.frames.get(i)?, heads.get(i)?)));
            let delivered = if let Some(tap) = self.taps.get_mut(egress.index()).and_then(Option::as_mut) {
                each.for_each(|(i, f, head)| {
                    from.inspect(|ring| ring.leaving(i));
                    sum.add(send(tap, burst, f, header_len, head, slow), |reason| dropped(i, reason));
                });
                Counter::DeliveredUplink
            } else if let Some(mut rx) = port.and_then(|p| p.lock_rx(*worker)) {
                rx.begin(now, || sender(snapshot, ingress));
                each.for_each(|(i, f, head)| {
                    sum.add(send(&mut rx, burst, f, header_len, head, slow), |reason| dropped(i, reason));
                });
                unshown.push(Unshown { egress, ingress });
                Counter::DeliveredVm
            } else {
                let uplink = port.is_some_and(|p| p.is_uplink);
                let reason = if uplink { DropReason::UplinkDown } else { DropReason::RxNotConnected };
                each.for_each(|(i, ..)| sum.add(Sent::refused(reason), |reason| dropped(i, reason)));
                Counter::DeliveredVm
            };
            theirs.add(Counter::Emitted, sum.frames);
            theirs.add(Counter::EmittedBytes, sum.bytes);
            if sum.refused > 0 {
                theirs.add(Counter::Refused, sum.refused);
            }
            if egress != ingress {
                ours.add(delivered, sum.delivered);
            }
        }
        let mut replies = std::mem::take(&mut self.replies);
        replies.each(|to, reply| self.send_reply(ingress, to, reply));
        // Back in its place, for its memory.
        self.replies = replies;
    }

    /// Where a burst has many receivers, what is needed of each is not near. Asked for one after the other they would be
    /// waited for one after the other.
    fn approach(&mut self) {
        if self.groups.egresses().len() < MANY {
            return;
        }
        for egress in self.groups.egresses() {
            self.counters.block(self.worker, egress).fetch();
            self.ports.get(egress.index()).inspect(|port| port.fetch_rx(self.worker));
        }
        for step in Approach::STEPS {
            for egress in self.groups.egresses() {
                self.ports.get(egress.index()).inspect(|port| port.approach(self.worker, step));
            }
        }
    }

    /// Phase 3, second half: the receivers are shown what they got.
    fn publish(&mut self) {
        let Self { unshown, ports, worker, .. } = self;
        unshown.retain(|to| ports.get(to.egress.index()).is_some_and(|port| !port.finish_rx(*worker)));
    }

    /// Whether another burst of `ingress` may begin. The one before is at risk until its receivers were shown it, and another
    /// worker may be in the way of that: a kill must not find more than one burst given back and not shown. Others go on.
    fn is_settled(&mut self, ingress: PortId) -> bool {
        if !self.unshown.is_empty() {
            self.publish();
        }
        self.unshown.iter().all(|to| to.ingress != ingress)
    }

    /// Sends a frame of the router's own out of `port`, for what came in by `ingress`.
    fn send_reply(&mut self, ingress: PortId, port: PortId, frame: &[u8]) {
        let counters = self.counters.block(self.worker, port);
        let vnet = VnetHeader { num_buffers: 1, ..VnetHeader::default() };
        let outcome = if let Some(tap) = self.taps.get_mut(port.index()).and_then(Option::as_mut) {
            tap.put(vnet, frame, &[])
        } else if let Some(mut rx) = self.ports.get(port.index()).and_then(|p| p.lock_rx(self.worker)) {
            self.unshown.push(Unshown { egress: port, ingress });
            rx.put(vnet, frame, &[])
        } else {
            Err(DropReason::RxNotConnected)
        };
        match outcome {
            Ok(()) => {
                counters.add(Counter::Emitted, 1);
                counters.add(Counter::EmittedBytes, u64::try_from(frame.len()).unwrap_or(0));
            }
            Err(_) => counters.add(Counter::Refused, 1),
        }
    }
}

/// Who is charged with the room that frames from there use.
fn sender(snapshot: &Snapshot, ingress: PortId) -> Sender {
    let tenant = snapshot.port(ingress).and_then(|port| match &port.kind {
        PortKind::Nic(nic) => Some(nic.tenant),
        PortKind::Uplink(_) => None,
    });
    Sender { port: ingress, tenant }
}

/// Copies the vnet header and the frame's first bytes; `false` for a chain that was malformed.
fn peek(burst: &Burst<'_>, frame: &Frame, header_len: u32, head: &mut Headers) -> bool {
    // The guest can rewrite its buffer while we look at it. Decide on this copy, and write these same bytes out; never
    // read the headers again.
    let len = frame.len.saturating_sub(header_len);
    if let [buffer] = burst.buffers(frame) {
        // Read in the parts that are used: whoever writes two halves and reads them as one waits for both.
        let (Some(kind), Some(numbers)) = (buffer.read_array(0), buffer.read_array(2)) else { return false };
        head.begin(VnetHeader::from_parts(kind, numbers), len);
        let size = head.size();
        return buffer.read_at(header_len, head.bytes.get_mut(..size).unwrap_or_default()) == size;
    }
    let mut vnet = [0; VnetHeader::LEGACY_LEN];
    if burst.read_at(frame, 0, &mut vnet) < vnet.len() {
        return false;
    }
    head.begin(VnetHeader::from_bytes(&vnet), len);
    let size = head.size();
    burst.read_at(frame, header_len, head.bytes.get_mut(..size).unwrap_or_default()) == size
}
