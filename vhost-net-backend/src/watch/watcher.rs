//! The worker's side: what is noted of each frame of a burst.

use std::sync::Arc;
use std::time::SystemTime;

use router::{DropReason, Headers, NoTrace, PortId, RuleId, Snapshot, Step, Verdict};

use super::feed::{Feed, Receiving};
use super::seen::{Seen, egress};
use crate::vring::{BURST, Burst, Frame};

/// Who looks at the frames of a burst, by their place in it.
pub(crate) trait Watcher {
    /// Follows the decision.
    type Trace: router::Trace;
    /// The frame's headers are as they came.
    fn begins(&mut self, i: usize, head: &Headers) -> &mut Self::Trace;
    /// What was decided.
    fn decided(&mut self, i: usize, verdict: Verdict);
    /// The receiver did not take it.
    fn lost(&mut self, i: usize, reason: DropReason);
}

/// Nobody looks: nothing is left of this in the program.
#[derive(Debug, Default)]
pub(crate) struct Nobody(NoTrace);

impl Watcher for Nobody {
    type Trace = NoTrace;

    #[inline(always)]
    fn begins(&mut self, _: usize, _: &Headers) -> &mut NoTrace {
        &mut self.0
    }

    #[inline(always)]
    fn decided(&mut self, _: usize, _: Verdict) {}

    #[inline(always)]
    fn lost(&mut self, _: usize, _: DropReason) {}
}

/// Somebody looks.
#[derive(Debug)]
pub(crate) struct Watch {
    feeds: Vec<Feed>,
    notes: Vec<Note>,
    /// For frames beyond a burst; there are none.
    spare: Vec<Step>,
}

/// What is noted of one frame.
#[derive(Clone, Debug)]
struct Note {
    head: Headers,
    steps: Vec<Step>,
    verdict: Option<Verdict>,
    to: Option<PortId>,
}

impl Watch {
    /// Nobody yet.
    pub(crate) fn new() -> Self {
        let note = Note { head: Headers::EMPTY, steps: Vec::new(), verdict: None, to: None };
        Self { feeds: Vec::new(), notes: vec![note; BURST], spare: Vec::new() }
    }

    /// One more.
    pub(crate) fn add(&mut self, mut feed: Feed, snapshot: &Snapshot) {
        feed.fit(snapshot);
        self.feeds.retain(|feed| !feed.is_gone());
        self.feeds.push(feed);
    }

    /// Another configuration.
    pub(crate) fn fit(&mut self, snapshot: &Snapshot) {
        self.feeds.iter_mut().for_each(|feed| feed.fit(snapshot));
    }

    /// Whether somebody may want frames that come in there, or is gone and should be forgotten.
    pub(crate) fn looks_at(&self, ingress: PortId) -> bool {
        self.feeds.iter().any(|feed| feed.looks_at(ingress) || feed.is_gone())
    }

    /// The feeds that lead to a NIC.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (&Feed, Receiving)> {
        let here = self.feeds.iter().filter(|feed| !feed.is_gone());
        here.filter_map(|feed| Some((feed, feed.receiving()?)))
    }

    /// The frames of a burst that a feed wants, as they came.
    pub(crate) fn wanted<'w>(
        &'w self,
        feed: &'w Feed,
        ingress: PortId,
        burst: &'w Burst<'_>,
    ) -> impl Iterator<Item = (&'w Headers, &'w Frame)> {
        let frames = self.notes.iter().zip(&burst.frames);
        frames.filter_map(move |(note, frame)| {
            let wanted = feed.wants(ingress, note.verdict?, note.to);
            wanted.then_some((&note.head, frame))
        })
    }

    /// The burst was delivered, and its buffers are still there: gives every listener what he wants. Whether anybody is left.
    pub(crate) fn tell(
        &mut self,
        snapshot: &Arc<Snapshot>,
        ingress: PortId,
        burst: &Burst<'_>,
        header_len: u32,
    ) -> bool {
        self.feeds.retain(|feed| !feed.is_gone());
        let listened = || self.feeds.iter().filter(|feed| feed.has_listener());
        if listened().next().is_none() {
            self.notes.iter_mut().for_each(|note| note.verdict = None);
            return !self.feeds.is_empty();
        }
        let at = SystemTime::now();
        for (note, frame) in self.notes.iter_mut().zip(&burst.frames) {
            // Those that a daemon before this one forwarded have none.
            let Some(verdict) = note.verdict.take() else { continue };
            for feed in listened().filter(|feed| feed.wants(ingress, verdict, note.to)) {
                let len = note.head.frame_len.min(feed.snaplen());
                let size = usize::try_from(len).unwrap_or(0);
                feed.offer(size, || {
                    let mut bytes = vec![0; size];
                    let known = note.head.as_bytes();
                    let (first, rest) = bytes.split_at_mut(size.min(known.len()));
                    first.iter_mut().zip(known).for_each(|(to, from)| *to = *from);
                    burst.read_at(frame, header_len.saturating_add(note.head.len), rest);
                    Seen {
                        at,
                        snapshot: Arc::clone(snapshot),
                        ingress,
                        steps: note.steps.clone(),
                        verdict,
                        to: note.to,
                        len: note.head.frame_len,
                        bytes,
                    }
                });
            }
        }
        !self.feeds.is_empty()
    }
}

impl Watcher for Watch {
    type Trace = Vec<Step>;

    fn begins(&mut self, i: usize, head: &Headers) -> &mut Vec<Step> {
        let Some(note) = self.notes.get_mut(i) else { return &mut self.spare };
        note.head.clone_from(head);
        note.steps.clear();
        &mut note.steps
    }

    fn decided(&mut self, i: usize, verdict: Verdict) {
        self.notes.get_mut(i).into_iter().for_each(|note| {
            note.verdict = Some(verdict);
            note.to = egress(verdict);
        });
    }

    fn lost(&mut self, i: usize, reason: DropReason) {
        // Whom it was for stays known.
        let lost = Verdict::Drop(reason, RuleId::BUILT_IN);
        self.notes.get_mut(i).into_iter().for_each(|note| note.verdict = Some(lost));
    }
}
