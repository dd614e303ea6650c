//! `packet-stats top`: who sends how much now, what is dropped, and how busy the workers are.
//!
//! Two answers of the daemon make a picture: what was counted between them, a second. [`Picture::between`] knows no
//! terminal, [`draw`] knows no daemon.

mod draw;
mod picture;

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};

use self::draw::draw;
use self::picture::{Picture, Sample};
use super::packet_stats::Context;
use super::{Exit, Failure, Page, source, stats};
use crate::control::api::Threads;

/// Between two looks.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Shows it until `q`.
///
/// # Errors
/// There is no terminal, no daemon, or no NIC of such a name.
pub fn page(context: &Context, pause: Duration) -> Result<Page, Failure> {
    if !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return Err(Failure::usage("top needs a terminal; without one: packet-stats --watch"));
    }
    // What can be wrong with the command line or the daemon is said before the screen is taken.
    let first = sample(context)?;
    let mut terminal = ratatui::try_init().map_err(|error| no_terminal(&error))?;
    let ended = run(context, &mut terminal, pause, first);
    let restored = ratatui::try_restore();
    ended.and(restored).map_err(|error| no_terminal(&error))?;
    Ok(Page::default())
}

fn no_terminal(error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot use the terminal: {error}"))
}

fn run(
    context: &Context,
    terminal: &mut DefaultTerminal,
    pause: Duration,
    first: Sample,
) -> std::io::Result<()> {
    let mut last = first;
    let mut picture = Picture::between(&last, &last, Duration::ZERO);
    loop {
        show(terminal, &picture, context.paint.0)?;
        let next_look = Instant::now() + pause;
        while Instant::now() < next_look {
            if event::poll(next_look.saturating_duration_since(Instant::now()))? {
                match event::read()? {
                    Event::Key(key) if ends(key) => return Ok(()),
                    Event::Resize(..) => show(terminal, &picture, context.paint.0)?,
                    Event::Key(_)
                    | Event::FocusGained
                    | Event::FocusLost
                    | Event::Mouse(_)
                    | Event::Paste(_) => {}
                }
            }
        }
        match sample(context) {
            Ok(now) => {
                picture = Picture::between(&last, &now, now.at.duration_since(last.at));
                last = now;
            }
            Err(failure) => picture.trouble = Some(failure.message),
        }
    }
}

fn show<B: ratatui::backend::Backend>(
    terminal: &mut Terminal<B>,
    picture: &Picture,
    colours: bool,
) -> Result<(), B::Error> {
    terminal.draw(|frame| draw(frame, picture, colours)).map(drop)
}

/// q, Escape or Ctrl-C.
fn ends(key: KeyEvent) -> bool {
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || interrupt)
}

/// What the daemon says now.
fn sample(context: &Context) -> Result<Sample, Failure> {
    let mut found = source::stats(context.endpoint())?;
    if found.exit != Exit::Ok {
        return Err(Failure { exit: found.exit, message: found.notes.join("; ") });
    }
    stats::filter(context, &mut found.stats)?;
    let threads = match source::threads(context.endpoint()) {
        Ok((threads, ..)) => threads,
        // The owner of a tenant is told nothing about workers.
        Err(refused) if refused.exit == Exit::Failed => Threads::default(),
        Err(failure) => return Err(failure),
    };
    Ok(Sample { at: Instant::now(), stats: found.stats, threads })
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEventState;

    use super::*;

    #[test]
    fn q_ends_it() {
        let key = |code, modifiers| KeyEvent {
            code,
            modifiers,
            kind: KeyEventKind::Press,
            state: KeyEventState::NONE,
        };
        for (code, modifiers, wanted) in [
            (KeyCode::Char('q'), KeyModifiers::NONE, true),
            (KeyCode::Esc, KeyModifiers::NONE, true),
            (KeyCode::Char('c'), KeyModifiers::CONTROL, true),
            (KeyCode::Char('c'), KeyModifiers::NONE, false),
            (KeyCode::Enter, KeyModifiers::NONE, false),
        ] {
            assert_eq!(ends(key(code, modifiers)), wanted, "{code:?}");
        }
    }
}
