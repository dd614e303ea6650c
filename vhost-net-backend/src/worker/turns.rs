//! Who may have a turn: every source that has frames gets the same worker time, whatever its frames cost.
//!
//! A frame can cost a thousand times what another does (segmentation, long chains), so equal numbers of bursts are not
//! fair. Each source has an account of the time that it used, and each round grants all of them [`QUANTUM`] more. A source
//! goes on, burst by burst, until it has used what it was granted or has no more frames; one that used more waits. What is
//! granted depends on nothing but the others' use: when all that have frames wait, the grant jumps to where the first of
//! them may go on, so nobody waits for a source that is idle, and a source that is alone never waits.
//!
//! A guest's queue pairs share one place, and a tenant's guests do: what a pair uses is charged as often as there are pairs
//! of the guest with frames, times the guests of its tenant with some. So each tenant that has frames gets the same
//! time, and with it the same share of a tap: what the kernel does with a frame there, it does in the worker's time.
//!
//! Nobody saves time up: whoever comes back from a pause has what one round grants.

use std::time::Duration;

/// Worker time that a round grants each source: some bursts of small frames, so that the round itself does not count. What a
/// source gets does not depend on it, only how long others wait meanwhile.
const QUANTUM: Duration = Duration::from_micros(10);

/// Most that one burst is charged with: many times what the longest costs. What took longer is not the source's doing: the
/// worker was stopped, or its CPU taken.
const LONGEST: Duration = Duration::from_millis(20);

/// Worker time that one source used, on the clock of [`Turns`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Used(Duration);

/// What was granted to each source up to now.
#[derive(Debug, Default)]
pub(super) struct Turns {
    granted: Duration,
    /// The least that any source which has frames has used, as far as this round has seen.
    least: Option<Used>,
}

impl Turns {
    /// A source's place in the round has come.
    #[inline]
    pub(super) fn begin(&self, used: &mut Used) {
        used.0 = used.0.max(self.granted.saturating_sub(QUANTUM));
    }

    /// Whether a source may have a burst now.
    #[inline]
    pub(super) fn may_go_on(&self, used: Used) -> bool {
        used.0 <= self.granted
    }

    /// A source moved frames in this round, or waits with some.
    #[inline]
    pub(super) fn has_frames(&mut self, used: Used) {
        self.least = Some(self.least.map_or(used, |least| least.min(used)));
    }

    /// The round is over.
    #[inline]
    pub(super) fn next_round(&mut self) {
        let first = self.least.take().unwrap_or_default().0;
        self.granted = first.max(self.granted + QUANTUM);
    }
}

impl Used {
    /// What came after `before`.
    #[cfg(test)]
    pub(super) fn since(self, before: Self) -> Duration {
        self.0.saturating_sub(before.0)
    }

    /// A burst took that long, of a source that has one of so many parts of a place (its own among them).
    #[inline]
    pub(super) fn charge(&mut self, time: Duration, sharers: u32) {
        self.0 += time.min(LONGEST) * sharers;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source whose bursts cost `burst`, and which has some in `some` of `of` rounds.
    struct Sender {
        burst: Duration,
        some: u32,
        of: u32,
        used: Used,
        sharers: u32,
        /// Worker time that it had.
        had: Duration,
    }

    fn sender(nanoseconds: u64, some: u32, of: u32) -> Sender {
        Sender {
            burst: Duration::from_nanos(nanoseconds),
            some,
            of,
            used: Used::default(),
            sharers: 1,
            had: Duration::ZERO,
        }
    }

    /// Rounds until the worker has worked for a second; returns those in which nobody had a turn.
    fn run(turns: &mut Turns, senders: &mut [Sender]) -> u32 {
        let (mut time, mut wasted) = (Duration::ZERO, 0);
        for round in 0.. {
            let before = time;
            for sender in senders.iter_mut().filter(|sender| round % sender.of < sender.some) {
                turns.begin(&mut sender.used);
                while turns.may_go_on(sender.used) {
                    sender.used.charge(sender.burst, sender.sharers);
                    sender.had += sender.burst;
                    time += sender.burst;
                }
                turns.has_frames(sender.used);
            }
            turns.next_round();
            wasted += u32::from(time == before);
            if time > Duration::from_secs(1) {
                return wasted;
            }
        }
        unreachable!("rounds have no end")
    }

    #[test]
    fn time_is_shared_equally_whatever_a_burst_costs() {
        for victim in [300, 1_000, 3_000, 6_000, 25_000, 160_000] {
            for flood in [100, 1_000, 9_999, 40_000, 166_000, 5_000_000] {
                let mut senders =
                    [sender(victim, 1, 1), sender(flood, 1, 1), sender(flood, 1, 1), sender(flood, 1, 1)];
                assert_eq!(run(&mut Turns::default(), &mut senders), 0, "{victim} {flood}");
                let had = senders[0].had.as_secs_f64();
                // One burst more or less of each.
                let slack = 3.0 * Duration::from_nanos(flood.max(victim)).as_secs_f64();
                assert!((had - 0.25).abs() < slack.max(0.000_1), "{victim} {flood}: {had}");
            }
        }
    }

    #[test]
    fn a_guest_of_many_pairs_has_the_share_of_one() {
        let pair = || Sender { sharers: 3, ..sender(5_000, 1, 1) };
        let mut senders = [sender(5_000, 1, 1), pair(), pair(), pair()];
        assert_eq!(run(&mut Turns::default(), &mut senders), 0);
        let had = senders.map(|sender| sender.had.as_secs_f64());
        assert!((had[0] - 0.5).abs() < 0.01, "{had:?}");
        assert!(had[1..].iter().all(|had| (had - 1.0 / 6.0).abs() < 0.01), "{had:?}");
    }

    #[test]
    fn a_tenant_of_many_guests_has_the_share_of_one_whatever_their_bursts_cost() {
        let of_many = || Sender { sharers: 40, ..sender(2_000_000, 1, 1) };
        let mut senders: Vec<_> =
            std::iter::once(sender(2_000_000, 1, 1)).chain((0..40).map(|_| of_many())).collect();
        assert_eq!(run(&mut Turns::default(), &mut senders), 0);
        let had = senders[0].had.as_secs_f64();
        // Each of the forty may have had a burst before it was known what it costs.
        assert!((had - 0.5).abs() < 0.09, "{had}");
    }

    #[test]
    fn one_that_is_alone_never_waits() {
        for burst in [50, 10_000, 250_000, 5_000_000] {
            assert_eq!(run(&mut Turns::default(), &mut [sender(burst, 1, 1)]), 0, "{burst}");
        }
    }

    #[test]
    fn nobody_waits_for_one_that_has_little() {
        // A long burst in each round beside one short one, in every tenth round: as good as alone.
        let mut senders = [sender(100, 1, 10), sender(200_000, 1, 1)];
        run(&mut Turns::default(), &mut senders);
        assert!(senders[1].had > Duration::from_millis(990), "{:?}", senders[1].had);
    }

    #[test]
    fn a_worker_that_was_stopped_leaves_no_endless_debt() {
        let mut turns = Turns::default();
        let mut senders = [sender(1_000, 1, 1), sender(1_000, 1, 1)];
        senders[0].used.charge(Duration::from_secs(10), 1);
        run(&mut turns, &mut senders);
        assert!(senders[0].had > Duration::from_millis(480), "{:?}", senders[0].had);
    }

    #[test]
    fn a_pause_saves_nothing_up() {
        let (mut turns, mut late) = (Turns::default(), sender(1_000, 1, 1));
        run(&mut turns, &mut [sender(1_000, 1, 1), sender(166_000, 1, 1)]);
        turns.begin(&mut late.used);
        while turns.may_go_on(late.used) {
            late.used.charge(late.burst, 1);
            late.had += late.burst;
        }
        assert!(late.had <= QUANTUM + late.burst, "{:?}", late.had);
    }
}
