//! What becomes of a VM: states, and what its policy does when it ends by itself. Pure: time is an argument.

use std::time::{Duration, Instant};

use topology::Restart;

/// Before the first start after a failure; twice as long before each further one.
const FIRST: Duration = Duration::from_secs(1);
/// Never longer.
const LONGEST: Duration = Duration::from_secs(60);
/// A VM that ran for so long did not fail at its start: the next failure is the first one again.
const SOUND: Duration = Duration::from_secs(60);
/// Resets that follow each other so closely are one reboot: QEMU reports each twice.
const SAME_REBOOT: Duration = Duration::from_secs(1);

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No VMM runs.
    Stopped,
    /// Its VMM was started and does not answer yet.
    Starting,
    /// The guest runs.
    Running,
    /// The operator paused it.
    Paused,
    /// It ended by itself, and its policy leaves it as it is.
    Failed,
    /// It was asked to end.
    Stopping,
    /// It is started again when that time has come.
    Waiting(Instant),
}

impl State {
    /// In one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Waiting(_) => "waiting",
        }
    }
}

/// How a VM ended by itself, or did something else that the operator wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The guest switched itself off.
    Poweroff,
    /// The guest restarted itself; its VMM goes on.
    Reboot,
    /// The guest's kernel panicked (pvpanic).
    Panic,
    /// The guest's watchdog ran out.
    Hang,
    /// The VMM ended without being asked.
    Crash,
}

impl Happened {
    /// In one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Panic => "panic",
            Self::Hang => "hang",
            Self::Crash => "crash",
        }
    }
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The VMM ends, if it still runs, and nothing else comes.
    End,
    /// The VMM ends, if it still runs, and the VM is started again after that time.
    Restart(Duration),
    /// The VM stays where it stopped, for somebody to look at.
    Keep,
}

impl Action {
    /// In one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::End => "end",
            Self::Restart(_) => "restart",
            Self::Keep => "keep",
        }
    }
}

/// One VM.
#[derive(Debug)]
pub struct Machine {
    policy: Restart,
    state: State,
    /// When its guest ran first, since its VMM was started.
    since: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// Starts after an end that nobody asked for.
    restarts: u64,
    reboot: Option<Instant>,
    /// Its guest has switched itself off since its VMM was started.
    is_off: bool,
}

impl Machine {
    /// A VM that does not run.
    #[must_use]
    pub fn new(policy: Restart) -> Self {
        Self {
            policy,
            state: State::Stopped,
            since: None,
            failures: 0,
            restarts: 0,
            reboot: None,
            is_off: false,
        }
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// When it is to be started again, if it is.
    #[must_use]
    pub fn starts_at(&self) -> Option<Instant> {
        if let State::Waiting(at) = self.state { Some(at) } else { None }
    }

    /// How often it was started again by its policy.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Its VMM was started.
    pub fn starts(&mut self) {
        self.restarts += u64::from(matches!(self.state, State::Waiting(_)));
        (self.state, self.since, self.is_off) = (State::Starting, None, false);
    }

    /// Its VMM answers: the guest runs, or does not.
    pub fn answers(&mut self, runs: bool, now: Instant) {
        let goes_on = runs && self.state == State::Failed;
        // Somebody may let one go on that failed.
        if matches!(self.state, State::Starting | State::Running | State::Paused) || goes_on {
            self.state = if runs { State::Running } else { State::Paused };
            self.since = self.since.or(Some(now));
        }
    }

    /// It does not run, and is left so: a monitor before this one has seen its end.
    pub fn rests(&mut self, state: State) {
        self.state = state;
    }

    /// The operator asked for its end.
    pub fn stops(&mut self) {
        self.state = if matches!(self.state, State::Waiting(_)) { State::Stopped } else { State::Stopping };
        self.failures = 0;
    }

    /// Its VMM ended, as was to be.
    pub fn ended(&mut self) {
        if matches!(self.state, State::Starting | State::Running | State::Paused | State::Stopping) {
            self.state = State::Stopped;
        }
    }

    /// Something happened that nobody asked for. `None`: nothing new.
    pub fn happened(&mut self, what: Happened, now: Instant) -> Option<Action> {
        let is_asked = matches!(self.state, State::Stopping | State::Stopped);
        match what {
            Happened::Reboot => {
                let is_same = self.reboot.is_some_and(|at| now.saturating_duration_since(at) < SAME_REBOOT);
                self.reboot = Some(now);
                (!is_same).then_some(Action::None)
            }
            // A guest that obeys. It can say so again and again.
            Happened::Poweroff if is_asked => {
                (!std::mem::replace(&mut self.is_off, true)).then_some(Action::End)
            }
            _ if is_asked || matches!(self.state, State::Waiting(_) | State::Failed) => None,
            Happened::Poweroff if self.policy != Restart::Always => {
                (self.state, self.is_off) = (State::Stopping, true);
                Some(Action::End)
            }
            Happened::Poweroff => Some(self.restart(now)),
            Happened::Panic | Happened::Hang | Happened::Crash if self.policy == Restart::Never => {
                self.state = State::Failed;
                Some(Action::Keep)
            }
            Happened::Panic | Happened::Hang | Happened::Crash => Some(self.restart(now)),
        }
    }

    fn restart(&mut self, now: Instant) -> Action {
        if self.since.is_some_and(|since| now.saturating_duration_since(since) >= SOUND) {
            self.failures = 0;
        }
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures += 1;
        self.state = State::Waiting(now + wait);
        Action::Restart(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(policy: Restart, now: Instant) -> Machine {
        let mut machine = Machine::new(policy);
        machine.starts();
        machine.answers(true, now);
        assert_eq!(machine.state(), State::Running);
        machine
    }

    #[test]
    fn each_end_has_the_action_of_its_policy() {
        use Happened::{Crash, Hang, Panic, Poweroff};
        let (now, again) = (Instant::now(), Action::Restart(FIRST));
        for (policy, poweroff, failure) in [
            (Restart::Always, again, again),
            (Restart::OnFailure, Action::End, again),
            (Restart::Never, Action::End, Action::Keep),
        ] {
            assert_eq!(running(policy, now).happened(Poweroff, now), Some(poweroff), "{policy:?}");
            for failed in [Panic, Hang, Crash] {
                let mut machine = running(policy, now);
                assert_eq!(machine.happened(failed, now), Some(failure), "{policy:?} {failed:?}");
                // What follows from it is not another one.
                assert_eq!(machine.happened(Crash, now), None);
            }
        }
    }

    #[test]
    fn a_vm_that_fails_at_once_is_started_ever_more_seldom() {
        let (mut now, mut machine) = (Instant::now(), Machine::new(Restart::OnFailure));
        let mut waits = Vec::new();
        for _ in 0..9 {
            machine.starts();
            machine.answers(true, now);
            let Some(Action::Restart(wait)) = machine.happened(Happened::Crash, now) else { panic!() };
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(machine.restarts(), 8);
        machine.starts();
        machine.answers(true, now);
        assert_eq!(machine.happened(Happened::Crash, now + SOUND), Some(Action::Restart(FIRST)));
    }

    #[test]
    fn what_was_asked_for_is_no_failure() {
        let now = Instant::now();
        let mut machine = running(Restart::Always, now);
        machine.stops();
        assert_eq!(machine.happened(Happened::Poweroff, now), Some(Action::End));
        assert_eq!(machine.happened(Happened::Poweroff, now), None, "it says so again");
        assert_eq!(machine.happened(Happened::Crash, now), None);
        machine.ended();
        assert_eq!(machine.state(), State::Stopped);
        let mut waiting = running(Restart::Always, now);
        waiting.happened(Happened::Crash, now);
        waiting.stops();
        assert_eq!(waiting.state(), State::Stopped, "there is nothing to wait for");
    }

    #[test]
    fn a_reboot_is_reported_once() {
        let now = Instant::now();
        let mut machine = running(Restart::Never, now);
        let at = |ms| now + Duration::from_millis(ms);
        let found = [0, 5, 4000].map(|ms| machine.happened(Happened::Reboot, at(ms)));
        assert_eq!(found, [Some(Action::None), None, Some(Action::None)]);
        assert_eq!(machine.state(), State::Running);
    }

    #[test]
    fn a_pause_is_seen() {
        let now = Instant::now();
        let mut machine = running(Restart::Never, now);
        for (runs, state) in [(false, State::Paused), (true, State::Running)] {
            machine.answers(runs, now);
            assert_eq!(machine.state(), state);
        }
        machine.happened(Happened::Panic, now);
        machine.answers(false, now);
        assert_eq!(machine.state(), State::Failed);
        machine.answers(true, now);
        assert_eq!(machine.happened(Happened::Crash, now), Some(Action::Keep), "it is looked after again");
    }
}
