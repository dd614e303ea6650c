//! When a connection ends, whatever it is at.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The end of one connection. What was read and takes longer puts it off. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Deadline(watch::Sender<Instant>);

impl Deadline {
    /// In that time.
    pub(super) fn after(time: Duration) -> Self {
        Self(watch::Sender::new(Instant::now() + time))
    }

    /// It is in that time, from now.
    pub(super) fn put_off(&self, time: Duration) {
        self.0.send_replace(Instant::now() + time);
    }

    /// Returns when it has come, and was not put off meanwhile.
    pub(super) fn passed(&self) -> impl Future<Output = ()> + use<> {
        let mut end = self.0.subscribe();
        async move {
            loop {
                let now = *end.borrow_and_update();
                match timeout_at(now, end.changed()).await {
                    Ok(Ok(())) => {}
                    // The time has come, or nobody can put it off any more: the connection is gone.
                    Err(_) | Ok(Err(_)) => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_when_it_was_put_off_to() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (begun, ms) = (Instant::now(), Duration::from_millis);
            let deadline = Deadline::after(ms(50));
            let passed = tokio::spawn(deadline.passed());
            tokio::time::sleep(ms(10)).await;
            deadline.put_off(ms(200));
            passed.await.unwrap();
            assert!(begun.elapsed() >= ms(200), "{:?}", begun.elapsed());
            deadline.put_off(ms(0));
            deadline.passed().await;
        });
    }
}
