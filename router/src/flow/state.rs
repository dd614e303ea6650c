//! How far a connection is, by the packets that were seen of it, and how long it may be idle there.
//!
//! | state | idle, seconds | why |
//! |---|---|---|
//! | TCP opening, closing, closed, reset, picked up | 240 | RFC 5382, REQ-5: transitory; RFC 7857, section 2.2: after RST too |
//! | TCP established | 7,440 | RFC 5382, REQ-5 |
//! | UDP and others, one side spoke | 120 | RFC 4787, REQ-5: two minutes at least |
//! | UDP and others, both did | 300 | RFC 4787, REQ-5: five recommended |
//! | echo | 60 | RFC 5508, REQ-1 |
//! | fragments of a datagram | 60 | RFC 8200, section 4.5 |
//!
//! Sequence numbers are not followed: whoever knows both ends and ports could also guess them, and a window that is
//! wrong cuts good connections. That is why a reset only makes a connection transitory, and one that goes on in spite of it
//! is established again (RFC 6146, section 3.5.2.2: TRANS).
//!
//! A connection whose beginning nobody saw (the router was started anew) is picked up by a packet of the side that
//! the rules let begin one; replies alone do not.

use std::time::Duration;

/// Tenths of a second since the table was first asked; 13 years until it wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u32);

impl Tick {
    pub(super) fn of(since: Duration) -> Self {
        Self(u32::try_from(since.as_millis() / 100).unwrap_or(u32::MAX))
    }

    /// Whole time from `self` to `later`, in ticks; none if it is not later.
    pub(super) fn until(self, later: Self) -> u32 {
        later.0.saturating_sub(self.0)
    }
}

const fn seconds(seconds: u32) -> u32 {
    seconds * 10
}

/// What is left of the idle time of an entry that is not settled, of a tenant at its limit.
pub(super) const PRESSED: u32 = seconds(5);

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What a packet means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A TCP segment with those flags.
    Tcp(u8),
    /// A packet of a protocol whose connections do not end.
    Datagram,
    /// An echo request.
    Ask,
    /// The answer to one.
    Answer,
    /// The first fragment of a datagram.
    Piece,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// The initiator sent SYN.
    #[default]
    SynSent,
    /// The other side answered it.
    SynReceived,
    /// First seen in the middle, and only one side of it.
    PickedUp,
    /// Both sides are synchronized.
    Established,
    /// The initiator has ended its half.
    ForwardEnded,
    /// The other side has.
    ReplyEnded,
    /// It was reset, or somebody wants us to think so.
    Reset,
    /// Both halves were ended, or it was refused.
    Closed,
    /// No TCP: only the initiator has sent.
    Asked,
    /// No TCP: the other side has answered.
    Answered,
    /// No TCP: and the initiator has gone on.
    Talking,
    /// Echo, whoever has sent.
    Echo,
    /// A datagram that comes in fragments.
    Pieces,
}

/// What the state says to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observed {
    /// It belongs there, and this is the state behind it.
    Pass(State),
    /// It does not.
    Unfit,
    /// The connection is over, and this begins another: for the rules to decide.
    Anew,
}

impl Event {
    /// Whether it ends or answers something and begins nothing: without a connection, rules alone decide on it. After a
    /// restart of the router such packets are still good for something.
    pub(crate) fn is_last(self) -> bool {
        match self {
            Self::Tcp(flags) => flags & (SYN | RST) == RST,
            Self::Answer => true,
            Self::Datagram | Self::Ask | Self::Piece => false,
        }
    }

    /// The state of a connection that this packet begins, if it can begin one.
    pub(super) fn begins(self) -> Option<State> {
        match self {
            Self::Tcp(flags) => match flags & (SYN | ACK | RST | FIN) {
                SYN => Some(State::SynSent),
                ACK => Some(State::PickedUp),
                both if both == ACK | FIN => Some(State::ForwardEnded),
                _ => None,
            },
            Self::Datagram => Some(State::Asked),
            Self::Ask => Some(State::Echo),
            Self::Answer => None,
            Self::Piece => Some(State::Pieces),
        }
    }
}

impl State {
    /// Ticks that it may be idle.
    pub(super) fn idle(self) -> u32 {
        match self {
            Self::SynSent
            | Self::SynReceived
            | Self::PickedUp
            | Self::ForwardEnded
            | Self::ReplyEnded
            | Self::Reset
            | Self::Closed => seconds(240),
            Self::Established => seconds(7_440),
            Self::Asked => seconds(120),
            Self::Answered | Self::Talking => seconds(300),
            Self::Echo | Self::Pieces => seconds(60),
        }
    }

    /// Both sides have spoken, the initiator behind the other's answer, and neither has ended it: one question and its answer
    /// are no talk.
    pub(super) fn is_settled(self) -> bool {
        matches!(self, Self::Established | Self::Talking)
    }

    /// Whether packets keep it alive. One that is closed lasts for its time and no longer.
    pub(super) fn is_refreshed(self) -> bool {
        !matches!(self, Self::Closed | Self::Reset | Self::Pieces)
    }

    /// What a packet of the initiator (`forward`) or the other side does to it.
    #[inline]
    pub(super) fn observe(self, forward: bool, event: Event) -> Observed {
        match event {
            Event::Tcp(flags) => self.segment(forward, flags),
            Event::Datagram => Observed::Pass(match (self, forward) {
                (Self::Asked, false) => Self::Answered,
                (Self::Answered, true) => Self::Talking,
                _ => self,
            }),
            // The key says which end asks, so neither comes from the wrong one.
            Event::Ask | Event::Answer | Event::Piece => Observed::Pass(self),
        }
    }

    /// RFC 9293, section 3.3.2, as far as somebody in the middle can tell.
    fn segment(self, forward: bool, flags: u8) -> Observed {
        use Observed::{Anew, Pass, Unfit};
        if flags & RST != 0 {
            let spoken = matches!(
                self,
                Self::SynReceived | Self::Established | Self::ForwardEnded | Self::ReplyEnded | Self::Reset
            );
            return Pass(if spoken { Self::Reset } else { Self::Closed });
        }
        match flags & (SYN | ACK) {
            0 => Unfit,
            SYN => match (self, forward) {
                (Self::Closed | Self::Reset, _) => Anew,
                // Both sides open at once (RFC 5382, REQ-2).
                (Self::SynSent, false) => Pass(Self::SynReceived),
                (Self::SynReceived, false) | (_, true) => Pass(self),
                // The other side may only answer.
                (_, false) => Unfit,
            },
            ACK => Pass(self.acknowledged(forward, flags & FIN != 0)),
            _ => match (self, forward) {
                (Self::SynSent, false) => Pass(Self::SynReceived),
                _ => Pass(self),
            },
        }
    }

    fn acknowledged(self, forward: bool, fin: bool) -> Self {
        let opened = match (self, forward) {
            (Self::SynReceived, true) | (Self::PickedUp, false) | (Self::Reset, _) => Self::Established,
            _ => self,
        };
        match (opened, forward) {
            _ if !fin => opened,
            (Self::ForwardEnded, false) | (Self::ReplyEnded, true) | (Self::Closed, _) => Self::Closed,
            (_, true) => Self::ForwardEnded,
            (_, false) => Self::ReplyEnded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN_ACK: u8 = SYN | ACK;
    const FIN_ACK: u8 = FIN | ACK;

    /// The states behind each segment of a connection; true: sent by the initiator.
    fn states(segments: &[(bool, u8)]) -> Vec<State> {
        let mut state = Event::Tcp(segments[0].1).begins().unwrap();
        let mut states = vec![state];
        for (forward, flags) in &segments[1..] {
            match state.observe(*forward, Event::Tcp(*flags)) {
                Observed::Pass(next) => state = next,
                other @ (Observed::Unfit | Observed::Anew) => panic!("{other:?} after {states:?}"),
            }
            states.push(state);
        }
        states
    }

    #[test]
    fn connections_open_and_close() {
        use State::*;
        type Row<'r> = (&'r [(bool, u8)], &'r [State]);
        let table: [Row<'_>; 8] = [
            (
                &[(true, SYN), (false, SYN_ACK), (true, ACK), (true, FIN_ACK), (false, FIN_ACK), (true, ACK)],
                &[SynSent, SynReceived, Established, ForwardEnded, Closed, Closed],
            ),
            (
                &[
                    (true, SYN),
                    (true, SYN),
                    (false, SYN_ACK),
                    (false, SYN_ACK),
                    (true, ACK),
                    (false, FIN_ACK),
                    (true, ACK),
                ],
                &[SynSent, SynSent, SynReceived, SynReceived, Established, ReplyEnded, ReplyEnded],
            ),
            (
                &[(true, SYN), (false, SYN), (true, SYN_ACK), (false, SYN_ACK), (true, ACK)],
                &[SynSent, SynReceived, SynReceived, SynReceived, Established],
            ),
            (&[(true, SYN), (false, RST | ACK), (false, ACK)], &[SynSent, Closed, Closed]),
            // Reset, but not by anybody whom the two believe.
            (
                &[(true, ACK), (false, ACK), (false, RST), (false, RST), (true, ACK), (true, FIN_ACK)],
                &[PickedUp, Established, Reset, Reset, Established, ForwardEnded],
            ),
            (
                &[(true, FIN_ACK), (true, RST | ACK), (true, FIN_ACK), (false, FIN_ACK), (false, RST)],
                &[ForwardEnded, Reset, ForwardEnded, Closed, Closed],
            ),
            (&[(true, ACK), (true, ACK), (false, ACK)], &[PickedUp, PickedUp, Established]),
            (&[(true, FIN_ACK), (false, FIN_ACK)], &[ForwardEnded, Closed]),
        ];
        for (segments, wanted) in table {
            assert_eq!(states(segments), wanted, "{segments:x?}");
        }
    }

    #[test]
    fn what_does_not_fit() {
        use State::*;
        for (state, forward, flags, wanted) in [
            (Established, false, SYN, Observed::Unfit),
            (PickedUp, false, SYN, Observed::Unfit),
            (ForwardEnded, false, SYN, Observed::Unfit),
            (Established, true, 0, Observed::Unfit),
            (Established, true, FIN, Observed::Unfit),
            (Closed, true, SYN, Observed::Anew),
            (Reset, false, SYN, Observed::Anew),
            (Reset, true, SYN_ACK, Observed::Pass(Reset)),
            (Reset, true, 0, Observed::Unfit),
            (Closed, false, SYN, Observed::Anew),
            (Closed, false, ACK, Observed::Pass(Closed)),
        ] {
            assert_eq!(state.observe(forward, Event::Tcp(flags)), wanted, "{state:?} {forward} {flags:x}");
        }
        for flags in [0, SYN_ACK, RST, RST | ACK, FIN, SYN | FIN, SYN | RST] {
            assert_eq!(Event::Tcp(flags).begins(), None, "{flags:x}");
        }
        assert_eq!(Event::Tcp(SYN | 0xc0).begins(), Some(SynSent), "with ECN (RFC 3168)");
        assert_eq!(Event::Answer.begins(), None);
    }

    #[test]
    fn a_question_and_its_answer_are_not_settled() {
        use State::*;
        let mut state = Event::Datagram.begins().unwrap();
        for (forward, wanted, idle) in [
            (true, Asked, 120),
            (false, Answered, 300),
            (false, Answered, 300),
            (true, Talking, 300),
            (false, Talking, 300),
        ] {
            assert_eq!(state.observe(forward, Event::Datagram), Observed::Pass(wanted));
            state = wanted;
            assert_eq!((state.idle(), state.is_settled()), (seconds(idle), wanted == Talking));
        }
    }

    #[test]
    fn whatever_comes_a_connection_is_settled_only_when_both_have_spoken() {
        for first in 0..=u8::MAX {
            let Some(state) = Event::Tcp(first).begins() else { continue };
            for second in 0..=u8::MAX {
                if let Observed::Pass(next) = state.observe(true, Event::Tcp(second)) {
                    assert!(!next.is_settled(), "{first:x} {second:x}");
                }
            }
        }
    }
}
