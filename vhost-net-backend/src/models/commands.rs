//! Commands and configurations on their way to a worker that may be asleep.
#![expect(
    clippy::arc_with_non_send_sync,
    reason = "loom judges by itself who shares its cells, in one thread"
)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::{Event, Queue, explore};
use crate::worker::mailbox::{self, Bell, Put, Take};

/// What a worker is told; the model's `worker::Command`.
enum Command {
    Configure(Arc<Config>),
    /// The vring is disabled; answered after the running burst.
    Disable(Arc<Event>),
    Stop,
}

/// A configuration. loom fails when it is read while it is written.
struct Config {
    number: u32,
    content: UnsafeCell<()>,
}

/// What the worker and its masters share.
struct Shared {
    queue: Queue<Command>,
    wake: Event,
    /// Guest memory: the worker's while the vring is enabled, anybody's afterwards. loom fails when two touch it at once.
    memory: UnsafeCell<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The worker looks first, and silences the bell then.
    LooksBeforeSilence,
    /// The sender rings first.
    RingsBeforePut,
    /// The answer comes before the running burst is over.
    AnswersEarly,
}

/// A worker until it is told to stop: its bursts use memory and configuration; what it did is returned.
fn work(shared: &Shared, mistake: Mistake) -> Vec<u32> {
    let (mut enabled, mut seen) = (true, Vec::new());
    loop {
        if enabled {
            shared.memory.with_mut(|_| ());
        }
        shared.wake.sleep();
        let commands: Vec<_> = if mistake == Mistake::LooksBeforeSilence {
            let commands = std::iter::from_fn(|| shared.queue.take()).collect();
            shared.wake.silence();
            commands
        } else {
            mailbox::collect(&shared.queue, &shared.wake)
        };
        for command in commands {
            match command {
                Command::Configure(config) => {
                    config.content.with(|_| ());
                    seen.push(config.number);
                }
                Command::Disable(answer) => {
                    if mistake == Mistake::AnswersEarly {
                        answer.ring();
                        shared.memory.with_mut(|_| ());
                    }
                    enabled = false;
                    answer.ring();
                }
                Command::Stop => return seen,
            }
        }
    }
}

fn send(shared: &Shared, mistake: Mistake, command: Command) {
    if mistake == Mistake::RingsBeforePut {
        shared.wake.ring();
        shared.queue.put(command);
    } else {
        mailbox::post(&shared.queue, &shared.wake, command);
    }
}

/// Control sends two configurations while a session disables the vring and takes the memory away; then the end.
fn command(mistake: Mistake) {
    explore(2, move || {
        let shared = Shared { queue: Queue::new(), wake: Event::new(), memory: UnsafeCell::new(()) };
        let shared = Arc::new(shared);
        let (of_worker, of_control) = (Arc::clone(&shared), Arc::clone(&shared));
        let worker = thread::spawn(move || work(&of_worker, mistake));
        let control = thread::spawn(move || {
            for number in [1, 2] {
                let config = Arc::new(Config { number, content: UnsafeCell::new(()) });
                config.content.with_mut(|_| ());
                send(&of_control, mistake, Command::Configure(config));
            }
        });
        let answer = Arc::new(Event::new());
        send(&shared, mistake, Command::Disable(Arc::clone(&answer)));
        answer.sleep();
        shared.memory.with_mut(|_| ());
        control.join().unwrap();
        send(&shared, mistake, Command::Stop);
        assert_eq!(worker.join().unwrap(), [1, 2], "each configuration once, the newest last");
    });
}

#[test]
fn loom_a_worker_sleeps_only_when_nothing_is_pending() {
    command(Mistake::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_command_is_lost_by_looking_before_the_bell_is_silent() {
    command(Mistake::LooksBeforeSilence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_command_is_lost_by_ringing_too_early() {
    command(Mistake::RingsBeforePut);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_memory_is_used_after_an_early_answer() {
    command(Mistake::AnswersEarly);
}
