//! A receive vring against a model of driver and device: any sequence of offers, frames of several workers, wake-ups,
//! disabling and restarts.
//!
//! The model keeps lists where the ring keeps indices. Wanted: every chain comes back once, in the order of the offers,
//! with the bytes and `num_buffers` of its frame; nothing is shown before its worker finished; a restart offers again
//! exactly what was not shown; and there is a signal when and only when the driver asked for it.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use router::{DropReason, VnetHeader};

use super::RxRing;
use super::notify::passes;
use super::tests::{BUFFERS, Bench, EVENT_IDX, MERGE, VERSION_1, call, signals};
use crate::demo_guest::ring::Segment;

const WORKERS: usize = 3;
/// Room for each buffer.
const STRIDE: u64 = 1024;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver adds a buffer of that many bytes.
    Add(u32),
    /// It shows the device what it added.
    Publish,
    /// It takes back what was used.
    Reap,
    /// It asks to be signalled, or not to be.
    Arm(bool),
    /// A worker puts a frame of that many bytes in.
    Put(usize, usize),
    /// A worker has completed its burst.
    Finish(usize),
    /// The front end enables or disables the vring.
    Enable(bool),
    /// The front end stops the vring, and starts it where it stopped.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u32..400).prop_map(Step::Add),
        3 => Just(Step::Publish),
        2 => Just(Step::Reap),
        2 => any::<bool>().prop_map(Step::Arm),
        6 => (0..WORKERS, 14_usize..500).prop_map(|(worker, len)| Step::Put(worker, len)),
        4 => (0..WORKERS).prop_map(Step::Finish),
        1 => any::<bool>().prop_map(Step::Enable),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..200)
}

/// A buffer that the device may use.
#[derive(Clone, Copy, Debug)]
struct Offer {
    head: u16,
    capacity: u32,
}

/// A buffer that was used.
#[derive(Clone, Debug)]
struct Entry {
    offer: Offer,
    bytes: Vec<u8>,
    worker: usize,
    done: bool,
}

struct Machine {
    bench: Bench,
    rx: Option<RxRing>,
    call: OwnedFd,
    merge: bool,
    event_idx: bool,
    enabled: bool,
    frames: u8,
    /// Added, not published; published, not used; used, not shown; shown, not reaped.
    added: Vec<Offer>,
    offered: VecDeque<Offer>,
    written: VecDeque<Entry>,
    shown: VecDeque<Entry>,
    /// Used entries shown and reaped since the start, as the ring counts them.
    shown_idx: u16,
    reaped_idx: u16,
    /// What the driver asked for last: the used index that it waits for, and its flag.
    used_event: u16,
    no_interrupt: bool,
}

impl Machine {
    fn new(bits: u32, merge: bool, event_idx: bool) -> Self {
        let features = VERSION_1 | if merge { MERGE } else { 0 } | if event_idx { EVENT_IDX } else { 0 };
        let bench = Bench::new(1 << bits, features, false);
        let (ours, theirs) = call();
        let rx = RxRing::new(&mut bench.setup(0, theirs), true).unwrap();
        signals(&ours);
        Self {
            bench,
            rx: Some(rx),
            call: ours,
            merge,
            event_idx,
            enabled: true,
            frames: 0,
            added: Vec::new(),
            offered: VecDeque::new(),
            written: VecDeque::new(),
            shown: VecDeque::new(),
            shown_idx: 0,
            reaped_idx: 0,
            used_event: 0,
            no_interrupt: false,
        }
    }

    fn rx(&mut self) -> &mut RxRing {
        self.rx.as_mut().unwrap()
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let shown_before = self.shown_idx;
        let mut starts = 0;
        match step {
            Step::Add(capacity) => self.add(capacity),
            Step::Publish => {
                self.bench.driver.publish().unwrap();
                self.offered.extend(self.added.drain(..));
            }
            Step::Reap => self.reap()?,
            Step::Arm(true) => {
                let work = self.bench.driver.arm().unwrap();
                prop_assert_eq!(work, !self.shown.is_empty());
                (self.used_event, self.no_interrupt) = (self.reaped_idx, false);
            }
            Step::Arm(false) => {
                self.bench.driver.disarm().unwrap();
                (self.used_event, self.no_interrupt) = (self.reaped_idx.wrapping_sub(1), true);
            }
            // `PortShared::lock_rx` gives no vring that is disabled.
            Step::Put(worker, len) if self.enabled => self.put(worker, len)?,
            Step::Put(..) => {}
            Step::Finish(worker) => {
                self.rx().finish(worker);
                self.written.iter_mut().filter(|entry| entry.worker == worker).for_each(|e| e.done = true);
                while let Some(entry) = self.written.pop_front_if(|entry| entry.done) {
                    self.shown.push_back(entry);
                    self.shown_idx = self.shown_idx.wrapping_add(1);
                }
            }
            Step::Enable(true) => (self.rx().enabled, self.enabled) = (true, true),
            Step::Enable(false) => {
                let waits: BTreeSet<_> = self.rx().disable().into_iter().collect();
                let wanted: BTreeSet<_> = self.written.iter().map(|entry| entry.worker).collect();
                prop_assert_eq!(waits, wanted, "whom a front end has to wait for");
                self.enabled = false;
            }
            Step::Restart => {
                self.restart()?;
                starts = 1;
            }
        }
        let wanted = match shown_before != self.shown_idx {
            false => false,
            true if self.event_idx => passes(self.used_event, shown_before, self.shown_idx),
            true => !self.no_interrupt,
        };
        prop_assert_eq!(signals(&self.call), u64::from(wanted) + starts, "signals after {:?}", step);
        prop_assert_eq!(usize::from(self.bench.driver.pending().unwrap()), self.shown.len());
        Ok(())
    }

    fn add(&mut self, capacity: u32) {
        let Some(head) = self.bench.driver.next_head(1) else { return };
        let addr = BUFFERS + STRIDE * u64::from(head);
        self.bench.driver.add(&[Segment { addr, len: capacity }], true).unwrap();
        self.added.push(Offer { head, capacity });
    }

    fn put(&mut self, worker: usize, len: usize) -> Result<(), TestCaseError> {
        self.frames = self.frames.wrapping_add(1);
        let frame = vec![self.frames; len];
        let need = 12 + len;
        let mut room = 0;
        let enough = |offer: &&Offer| {
            let more = room < need;
            room += usize::try_from(offer.capacity).unwrap();
            more
        };
        let count = self.offered.iter().take_while(enough).count();
        let room: usize = self.offered.iter().take(count).map(|o| usize::try_from(o.capacity).unwrap()).sum();
        let wanted = match (room >= need, count) {
            (_, 2..) if !self.merge => Err(DropReason::RxBufferSmall),
            (true, _) => Ok(()),
            // One buffer, too small, and no other.
            (false, _) => Err(DropReason::RxRingFull),
        };
        let outcome = self.rx().put(worker, VnetHeader::default(), &frame, &[]);
        prop_assert_eq!(outcome, wanted);
        if wanted.is_ok() {
            let vnet = VnetHeader { num_buffers: u16::try_from(count).unwrap(), ..VnetHeader::default() };
            let mut left = &[&vnet.to_bytes()[..], &frame].concat()[..];
            for offer in self.offered.drain(..count) {
                let (bytes, rest) = left.split_at(left.len().min(usize::try_from(offer.capacity).unwrap()));
                self.written.push_back(Entry { offer, bytes: bytes.to_vec(), worker, done: false });
                left = rest;
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), TestCaseError> {
        while let Some(used) = self.bench.driver.pop_used().unwrap() {
            let entry = self.shown.pop_front().unwrap();
            let found = (used.head, usize::try_from(used.len).unwrap());
            prop_assert_eq!(found, (entry.offer.head, entry.bytes.len()));
            let bytes = self.bench.read(BUFFERS + STRIDE * u64::from(used.head), entry.bytes.len());
            prop_assert_eq!(bytes, entry.bytes);
            self.reaped_idx = self.reaped_idx.wrapping_add(1);
        }
        Ok(())
    }

    /// Chains that were not shown are offered again, in front of the others.
    fn restart(&mut self) -> Result<(), TestCaseError> {
        let base = u16::try_from(self.rx.take().unwrap().stop()).unwrap();
        prop_assert_eq!(base, self.shown_idx);
        for entry in self.written.drain(..).rev() {
            self.offered.push_front(entry.offer);
        }
        let call = self.call.try_clone().unwrap();
        self.rx = Some(RxRing::new(&mut self.bench.setup(base, Some(call)), true).unwrap());
        self.enabled = true;
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_receive_vring_agrees_with_its_model(
        steps in steps(), bits in 2_u32..6, merge: bool, event_idx: bool,
    ) {
        let mut machine = Machine::new(bits, merge, event_idx);
        for step in steps {
            machine.step(step)?;
        }
        // In the end everybody finishes, and the driver gets every chain back that a frame is in.
        for worker in 0..WORKERS {
            machine.step(Step::Finish(worker))?;
        }
        prop_assert!(machine.written.is_empty());
        machine.step(Step::Reap)?;
        prop_assert!(machine.shown.is_empty());
    }
}
