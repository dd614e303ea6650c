//! A client of QEMU's control socket (QMP: docs/interop/qmp-spec.rst of QEMU): one JSON object a line, answers by `id`, events
//! in between.
//!
//! The crate `qapi` brings types for each of QEMU's commands and none of its own for the socket that tokio needs; of those
//! commands the monitor takes a dozen.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// A QEMU that takes longer hangs.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// No line of QEMU's is longer: a compromised one could send without end.
const LINE: u64 = 1 << 20;
/// Events that wait to be taken. A QEMU that has more to tell makes no sense.
const EVENTS: usize = 64;
/// Events that are handed on. A guest can cause some others without end.
const HEARD: [&str; 6] = ["SHUTDOWN", "RESET", "GUEST_PANICKED", "WATCHDOG", "STOP", "RESUME"];
/// Between two lines that nobody asked for: a guest may reset itself as fast as it can.
const PACE: Duration = Duration::from_millis(2);
/// Characters of a text of QEMU's.
const TEXT: usize = 100;

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// It does not do that; its own words.
    #[error("QEMU refuses {command}: {said}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        said: String,
    },
    /// No answer in time.
    #[error("QEMU does not answer {0} in time")]
    Silent(String),
    /// The connection ended.
    #[error("QEMU closed its control socket")]
    Closed,
}

/// Something that happened inside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Event {
    /// As QEMU names it: `SHUTDOWN`.
    #[serde(rename = "event")]
    pub name: String,
    /// What belongs to it.
    #[serde(default)]
    pub data: Data,
}

/// What belongs to an event, as far as anybody cares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Data {
    /// Whether the guest did it.
    #[serde(default)]
    pub guest: bool,
    /// Why; printable and short.
    #[serde(default, deserialize_with = "short")]
    pub reason: String,
}

/// Nothing of QEMU's reaches a terminal as it is.
fn short<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(clip(&String::deserialize(from)?))
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT).collect()
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// A connection; dropping it closes it.
#[derive(Debug)]
pub struct Qmp {
    hears: JoinHandle<()>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    next: AtomicU64,
}

impl Qmp {
    /// Connects, and agrees on the protocol. Events come through the second value until QEMU closes.
    ///
    /// # Errors
    /// Nobody listens, or it is no QEMU.
    pub async fn connect(path: &Path) -> io::Result<(Self, mpsc::Receiver<Event>)> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let (waiting, (events, heard)) = (Waiting::default(), mpsc::channel(EVENTS));
        let hears = tokio::spawn(hear(reader, Arc::clone(&waiting), events));
        let qmp = Self { hears, writer: tokio::sync::Mutex::new(writer), waiting, next: AtomicU64::new(1) };
        qmp.execute("qmp_capabilities", Value::Null).await.map_err(io::Error::other)?;
        Ok((qmp, heard))
    }

    /// Its answer to a command; `arguments` are an object, or null.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        locked(&self.waiting).insert(id, tell);
        let mut line = json!({ "execute": command, "id": id });
        if let (false, Some(object)) = (arguments.is_null(), line.as_object_mut()) {
            object.insert("arguments".to_owned(), arguments);
        }
        let asked = async {
            let text = format!("{line}\n");
            self.writer.lock().await.write_all(text.as_bytes()).await.map_err(|_| QmpError::Closed)?;
            told.await.map_err(|_| QmpError::Closed)
        };
        let answer = tokio::time::timeout(ANSWER_TIME, asked).await;
        locked(&self.waiting).remove(&id);
        if answer.is_err() {
            // Perhaps half of a line was written: whatever follows would make no sense.
            self.hears.abort();
        }
        let answer = answer.map_err(|_| QmpError::Silent(command.to_owned()))??;
        answer.map_err(|said| QmpError::Refused { command: command.to_owned(), said })
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.hears.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line of QEMU's; its greeting has none of these.
#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    desc: String,
}

/// Hands out what comes, until it closes or makes no sense.
async fn hear(reader: OwnedReadHalf, waiting: Waiting, events: mpsc::Sender<Event>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LINE).read_until(b'\n', &mut line).await;
        if read.is_err() || line.last() != Some(&b'\n') {
            break;
        }
        if let Ok(event) = serde_json::from_slice::<Event>(&line) {
            if HEARD.contains(&&*event.name) && events.try_send(event).is_err() {
                break;
            }
            tokio::time::sleep(PACE).await;
            continue;
        }
        let Ok(Line { id, answer, error }) = serde_json::from_slice(&line) else { break };
        let Some(tell) = id.and_then(|id| locked(&waiting).remove(&id)) else {
            tokio::time::sleep(PACE).await;
            continue;
        };
        let answer = error.map_or(Ok(answer.unwrap_or_default()), |said| Err(clip(&said.desc)));
        // It did not want to wait any longer.
        let _ = tell.send(answer);
    }
    // Whoever waits is told.
    locked(&waiting).clear();
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(future)
    }

    /// Says each of `lines` after a line from the client; `{id}` is the number of that.
    async fn serve(listener: UnixListener, lines: Vec<&str>) {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        writer.write_all(b"{\"QMP\": {\"version\": {}}}\n").await.unwrap();
        let mut asked = BufReader::new(reader).lines();
        for line in lines {
            let Ok(Some(asked)) = asked.next_line().await else { return };
            let asked: Value = serde_json::from_str(&asked).unwrap();
            let line = line.replace("{id}", &asked["id"].to_string());
            writer.write_all(line.as_bytes()).await.unwrap();
        }
    }

    #[test]
    fn answers_and_events_find_their_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        run(async {
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(serve(
                listener,
                vec![
                    "{\"return\": {}, \"id\": {id}}\n",
                    "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {\"status\": \"paused\"}, \"id\": {id}}\n",
                    "{\"id\": {id}, \"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\n",
                    "nonsense\n",
                ],
            ));
            let (qmp, mut events) = Qmp::connect(&path).await.unwrap();
            let status = qmp.execute("query-status", Value::Null).await.unwrap();
            assert_eq!(status["status"], "paused");
            assert_eq!(
                events.recv().await.unwrap(),
                Event { name: "STOP".to_owned(), data: Data::default() }
            );
            let refused = qmp.execute("cont", json!({})).await.unwrap_err().to_string();
            assert_eq!(refused, "QEMU refuses cont: not now");
            let closed = qmp.execute("stop", Value::Null).await.unwrap_err();
            assert!(matches!(closed, QmpError::Closed), "{closed}");
            assert_eq!(events.recv().await, None);
        });
    }

    #[test]
    fn what_is_no_qemu_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        run(async {
            assert!(Qmp::connect(&path).await.is_err());
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(serve(listener, vec!["SSH-2.0\n"]));
            assert!(Qmp::connect(&path).await.is_err());
        });
    }
}
