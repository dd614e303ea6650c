//! Copies of frames for a guest: what a mirror of the topology file asks for. None of it is on the way of other frames.
//!
//! They go into the guest's receive vring after the burst was delivered, one lock for a burst and mirror, and are shown with
//! everything else. They are counted as emitted there and by the mirror. A frame whose copy finds no room is missed, and that
//! is all: what became of the frame itself is settled.

use super::{Datapath, Passing, Sum, Unshown, sender};
use crate::counters::Counter;
use crate::egress::send_copy;
use crate::watch::Watch;

/// An Ethernet header: what has no more is no frame.
const SHORTEST: u32 = 14;

impl Datapath {
    /// Gives each guest its copies.
    #[cold]
    pub(super) fn copy(&mut self, passing: &Passing<'_>, watch: &Watch) {
        let Passing { ingress, burst, header_len, now, .. } = *passing;
        for (feed, to) in watch.copies() {
            let frames = || watch.wanted(feed, ingress, burst).filter(|(head, _)| head.frame_len >= SHORTEST);
            if frames().next().is_none() {
                continue;
            }
            let mut sum = Sum::default();
            let port = self.ports.get(to.port.index());
            if let Some(mut rx) = port.and_then(|port| port.lock_rx(self.worker)) {
                rx.begin(now, || sender(&self.snapshot, ingress));
                for (head, frame) in frames() {
                    sum.add(send_copy(&mut rx, burst, frame, header_len, head, to.most), drop);
                }
                self.unshown.push(Unshown { egress: to.port, ingress });
            } else {
                sum.refused = u64::try_from(frames().count()).unwrap_or(0);
            }
            let counters = self.counters.block(self.worker, to.port);
            counters.add(Counter::Emitted, sum.frames);
            counters.add(Counter::EmittedBytes, sum.bytes);
            feed.count(sum.frames, sum.bytes, sum.refused);
        }
    }
}
