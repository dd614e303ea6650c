//! What the router itself says to a burst, in memory that is used again.

use router::PortId;

/// Frames that the router sends itself, waiting for the end of the deciding.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// With the port that each leaves by.
    frames: Vec<(PortId, Vec<u8>)>,
    used: usize,
}

impl Replies {
    /// Keeps the frame that `build` writes for `port`, if it writes one.
    pub(super) fn push(&mut self, port: PortId, build: impl FnOnce(&mut Vec<u8>) -> bool) {
        self.push_to(|frame| build(frame).then_some(port));
    }

    /// The same, where `build` says by which port it leaves.
    pub(super) fn push_to(&mut self, build: impl FnOnce(&mut Vec<u8>) -> Option<PortId>) {
        if self.used == self.frames.len() {
            self.frames.push((PortId(0), Vec::new()));
        }
        let Some((to, frame)) = self.frames.get_mut(self.used) else { return };
        frame.clear();
        if let Some(port) = build(frame) {
            *to = port;
            self.used += 1;
        }
    }

    /// Gives each to `send`; none is left.
    pub(super) fn each(&mut self, mut send: impl FnMut(PortId, &[u8])) {
        for (to, frame) in self.frames.iter().take(std::mem::take(&mut self.used)) {
            send(*to, frame);
        }
    }
}
