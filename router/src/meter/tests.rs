use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::offload::{Gso, GsoKind};
use crate::testing::{DB, KERNEL, LAB, OTHER, WEB, mac, topology, udp};
use crate::trace::NoTrace;
use crate::verdict::Verdict;
use crate::vnet::VnetHeader;

fn limit(per_second: u64, line: u32) -> Option<Limit> {
    Some(Limit { per_second, at: Place { line, column: 7, ..Place::default() } })
}

/// The place of a line, and why a frame was dropped there.
type Refused = Option<(DropReason, u32)>;

/// Sends a burst of so many frames of 1,000 bytes, and says what became of each.
fn burst(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    from: PortId,
    frames: usize,
) -> Vec<Refused> {
    let (source, to) = match from {
        WEB => ("10.1.0.11", "10.1.1.11"),
        DB => ("10.1.1.11", "10.1.0.11"),
        OTHER => ("10.1.0.11", "10.1.1.11"),
        _ => ("192.0.2.1", "10.1.0.11"),
    };
    let source_mac = if from == LAB { KERNEL } else { mac(from) };
    let frame = udp(source_mac, source, to, 1000 - 42);
    let mut heads = vec![Headers::of(VnetHeader::default(), &frame); frames];
    begin_burst(snapshot, state, now, from, &heads);
    let one = |head: &mut Headers| match crate::forward(snapshot, state, now, from, head, &mut NoTrace) {
        Verdict::Drop(reason, rule) => Some((reason, snapshot.place(rule).map_or(0, |place| place.line))),
        Verdict::Deliver(_) | Verdict::Uplink(_) | Verdict::Answer(_) | Verdict::Consume => None,
    };
    let outcomes = heads.iter_mut().map(one).collect();
    end_burst(snapshot, state, from);
    outcomes
}

fn passed(outcomes: &[Refused]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_none()).count()
}

#[test]
fn each_limit_is_asked_and_named_and_charges_its_sender() {
    let mut limited = topology();
    // A bucket of 8 frames of 1,000 bytes for web, 20 for its tenant, and 25 packets.
    limited.tenants[0].vms[0].nics[0].rate = limit(8 * 8000 * 4, 71);
    limited.tenants[0].rate = limit(20 * 8000 * 4, 72);
    limited.tenants[0].pps = limit(25 * 4, 73);
    let snapshot = Snapshot::build(&limited, &[KERNEL]);
    let (mut state, now) = (WorkerState::new(&snapshot), Instant::now());
    let web = burst(&snapshot, &mut state, now, WEB, 10);
    assert_eq!((passed(&web), web[8], web[9]), (8, Some((DropReason::RateNic, 71)), web[8]));
    // What its NIC refused costs web's tenant nothing: 12 are left to the others of it.
    let db = burst(&snapshot, &mut state, now, DB, 14);
    assert_eq!((passed(&db), db[12], db[13]), (12, Some((DropReason::RateTenant, 72)), db[12]));
    // The other tenant and the uplink are not theirs.
    assert_eq!(passed(&burst(&snapshot, &mut state, now, OTHER, 60)), 60);
    let incoming = burst(&snapshot, &mut state, now, LAB, 2);
    assert_eq!(incoming[0].map(|(reason, _)| reason), Some(DropReason::PolicyUngrouped));
    // Another worker shares the buckets; later there is more, and the packets are what is short.
    let mut another = WorkerState::new(&snapshot);
    assert_eq!(passed(&burst(&snapshot, &mut another, now, DB, 1)), 0);
    limited.tenants[0].rate = None;
    let meters = Meters::default();
    let build =
        |topology: &Topology| Snapshot::build_with(topology, &[KERNEL], &PortIds::fresh(topology), &meters);
    let snapshot = build(&limited);
    let db = burst(&snapshot, &mut another, now, DB, 26);
    assert_eq!((passed(&db), db[25]), (25, Some((DropReason::PpsTenant, 73))));
    // The same configuration again, and one with another rate, give nothing away; then time does.
    limited.tenants[0].pps = limit(100 * 4, 99);
    let again = build(&limited);
    assert_eq!(passed(&burst(&again, &mut another, now, DB, 1)), 0);
    assert_eq!(passed(&burst(&again, &mut another, now + Duration::from_millis(10), DB, 9)), 4);
    // Once nobody has heard of a bucket for a while, it is new.
    drop((snapshot, again));
    assert_eq!(passed(&burst(&build(&limited), &mut another, now, DB, 60)), 60);
}

#[test]
fn frames_that_stand_for_others_count_as_those() {
    let mut head = Headers { frame_len: 54 + 14_500, ..Headers::EMPTY };
    assert_eq!(packets(&head), 1);
    (head.vnet.gso_type, head.vnet.gso_size) = (1, 1450);
    head.offload.gso = Some(Gso { kind: GsoKind::Tcp4, size: 1450, ecn: false, header_len: 54 });
    assert_eq!((packets(&head), asked_packets(&head)), (10, 11));
    head.frame_len += 1;
    assert_eq!(packets(&head), 11);
    // What a guest asks for before anything was checked is any number.
    head.vnet.gso_size = 0;
    assert_eq!(asked_packets(&head), 14_555);
}

#[test]
fn nobody_is_too_large_for_a_bucket() {
    let meters = [meter(8)];
    let (mut allowance, start) = (Allowance::default(), Instant::now());
    // Two bits are in it, and a frame of 100 bytes takes 100 seconds.
    let mut at = |seconds, wanted| {
        allowance.take(
            &meters,
            start + Duration::from_secs(seconds),
            &[Headers { frame_len: 100, ..Headers::EMPTY }],
        );
        assert_eq!(allowance.charge_all(&meters, 800, 1).is_ok(), wanted, "{seconds} s");
        allowance.give_back(&meters);
    };
    for (seconds, wanted) in [(0, true), (1, false), (99, false), (100, true), (199, false)] {
        at(seconds, wanted);
    }
}

fn meter(per_second: u64) -> Meter {
    let (unit, rule) = (Unit::Bits, RuleId::BUILT_IN);
    Meter { unit, per_second, bucket: Arc::default(), reason: DropReason::RateNic, rule }
}

/// The same, slowly: billionths of a token, filled at each step.
struct Model {
    per_second: i128,
    level: i128,
    at: Duration,
}

impl Model {
    const TOKEN: i128 = 1_000_000_000;

    fn new(per_second: u64) -> Self {
        let per_second = i128::from(per_second);
        Self { per_second, level: per_second * Self::TOKEN / 4, at: Duration::ZERO }
    }

    fn change(&mut self, at: Duration, tokens: i128) {
        let elapsed = i128::try_from((at - self.at).as_nanos()).unwrap();
        let full = self.per_second * Self::TOKEN / 4;
        self.level = (self.level + elapsed * self.per_second).min(full);
        self.level = (self.level + tokens * Self::TOKEN).min(full);
        self.at = at;
    }

    fn take(&mut self, at: Duration, want: u64) -> u64 {
        self.change(at, 0);
        let granted = u64::try_from(self.level.max(0) / Self::TOKEN).unwrap().min(want);
        self.change(at, -i128::from(granted));
        granted
    }
}

/// A burst that a worker has begun.
struct Open {
    allowance: Allowance,
    frames: Vec<u32>,
    granted: u64,
}

proptest! {
    /// Workers whose bursts overlap in any way: what the bucket gives is what the model's gives, but for what rounding
    /// takes, and what passes is within the bound.
    #[test]
    fn workers_share_a_bucket_as_if_there_were_one(
        rate in prop::sample::select(vec![9, 64_000, 1_000_000, 100_000_000, 10_000_000_000_u64]),
        steps in prop::collection::vec((0_usize..4, 0_u64..60_000, prop::collection::vec(14_u32..65_549, 1..64)), 1..80),
    ) {
        let (meters, start) = ([meter(rate)], Instant::now());
        let (mut model, mut at, mut done) = (Model::new(rate), Duration::ZERO, 0_u64);
        let mut workers: [Option<Open>; 4] = Default::default();
        let steps_count = u64::try_from(steps.len()).unwrap();
        for (worker, pause, frames) in steps {
            at += Duration::from_micros(pause);
            let slot = &mut workers[worker];
            let Some(mut open) = slot.take() else {
                let heads: Vec<_> = frames.iter().map(|len| Headers { frame_len: *len, ..Headers::EMPTY }).collect();
                let mut allowance = Allowance::default();
                allowance.take(&meters, start + at, &heads);
                let granted = allowance.parts[0].granted;
                let wanted = model.take(at, frames.iter().map(|len| bits(*len)).sum());
                prop_assert!(granted.abs_diff(wanted) <= steps_count, "{granted} of {wanted}");
                // From here on with what was really given, so that differences do not add up.
                model.change(at, i128::from(wanted) - i128::from(granted));
                *slot = Some(Open { allowance, frames, granted });
                continue;
            };
            let passed: Vec<u64> = open.frames.iter().map(|len| bits(*len))
                .filter(|bits| open.allowance.charge_all(&meters, *bits, 1).is_ok()).collect();
            let used: u64 = passed.iter().sum();
            // All that is given is used, if there is enough to send.
            let sent: u64 = open.frames.iter().map(|len| bits(*len)).sum();
            prop_assert!(used >= open.granted.min(sent));
            prop_assert!(used - passed.last().copied().unwrap_or(0) < open.granted.max(1));
            open.allowance.give_back(&meters);
            model.change(at, i128::from(open.granted) - i128::from(used));
            done += used;
        }
        let bound = u128::from(rate) * (at.as_nanos() + 250_000_000) / 1_000_000_000;
        prop_assert!(u128::from(done) <= bound + 4 * 8 * 65_549, "{done} of {bound}");
    }
}

#[test]
fn threads_never_use_a_token_twice() {
    const WORKERS: u32 = 4;
    let meters = [meter(1_000_000)];
    let start = Instant::now();
    let heads = vec![Headers { frame_len: 125, ..Headers::EMPTY }; 16];
    let work = |worker: u32| {
        let (mut allowance, mut passed) = (Allowance::default(), 0);
        // Two seconds, as each thread sees them pass.
        for step in 0..20_000 {
            let now = start + Duration::from_micros(100) * step + Duration::from_nanos(worker.into());
            allowance.take(&meters, now, &heads);
            passed += (0..16).filter(|_| allowance.charge_all(&meters, 1000, 1).is_ok()).count() * 1000;
            allowance.give_back(&meters);
        }
        passed
    };
    let total: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // A full bucket, and two seconds of the rate; a frame of debt for each.
    assert!((2_245_000..=2_254_000).contains(&total), "{total}");
}
