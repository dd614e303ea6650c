//! What happened: the last of it to read, and what comes to follow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::control::api::Event;

/// Events that are kept.
const KEPT: usize = 1000;
/// That somebody who follows may be behind.
const BEHIND: usize = 256;

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    kept: Arc<Mutex<VecDeque<Event>>>,
    live: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: Arc::default(), live: broadcast::channel(BEHIND).0 }
    }
}

impl Events {
    /// One more; the log has it, too.
    pub(crate) fn tell(&self, vm: &str, event: &str, detail: &str, action: Option<&str>) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let (detail, action) = (detail.to_owned(), action.map(str::to_owned));
        tracing::info!(vm, event, detail, action, "event");
        let event = Event { at_ms, vm: vm.to_owned(), event: event.to_owned(), detail, action };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Perhaps nobody follows.
        let _ = self.live.send(event);
    }

    /// Those that are kept, the oldest first, and what comes after them.
    pub(crate) fn all(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.live.subscribe())
    }
}
