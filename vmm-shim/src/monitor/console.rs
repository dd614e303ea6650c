//! A VM's serial console, for as many as want to look at it, and a bounded log of it.
//!
//! QEMU's own socket (`<vm>.tty`) takes one client: the monitor. Everybody else connects to `<vm>.console`, and sees what
//! comes from then on. What all of them type goes to the guest. A guest may print without end: the log is renamed at its
//! limit, over the one before, and the monitor reads at its own pace.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc};

/// Bytes of the log, at most; as many again are in the one before.
const LOG: u64 = 1 << 20;
/// Of one read.
const CHUNK: usize = 8192;
/// Between two reads: a guest prints at most 800 KiB in a second.
const PACE: Duration = Duration::from_millis(10);
/// Before QEMU's socket is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Pieces that a slow reader may be behind.
const BEHIND: usize = 256;
/// Pieces typed that wait for the guest.
const TYPED: usize = 16;

/// Where it all is.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// QEMU's socket.
    pub(super) tty: PathBuf,
    /// Ours.
    pub(super) console: PathBuf,
    /// What was printed.
    pub(super) log: PathBuf,
}

impl Paths {
    /// Of a VM with those files.
    pub(super) fn of(files: &Path) -> Self {
        let file = |kind| files.with_extension(kind);
        Self { tty: file("tty"), console: file("console"), log: file("log") }
    }
}

/// Serves the console, over all VMMs that the VM has in turn.
///
/// # Errors
/// The socket or the log cannot be made.
pub(super) async fn serve(paths: &Paths) -> io::Result<()> {
    // A monitor that was killed left it there.
    let _ = std::fs::remove_file(&paths.console);
    let listener = UnixListener::bind(&paths.console)?;
    std::fs::set_permissions(&paths.console, Permissions::from_mode(0o600))?;
    let (printed, _) = broadcast::channel(BEHIND);
    let (typed, mut typing) = mpsc::channel(TYPED);
    let clients = clients(listener, printed.clone(), typed);
    let guest = async {
        let mut log = Log::open(&paths.log)?;
        loop {
            if let Ok(tty) = UnixStream::connect(&paths.tty).await {
                // What was typed for the one before is not for this one.
                while typing.try_recv().is_ok() {}
                // When its VMM ends there is another one, or none for a while.
                pass(tty, &mut log, &printed, &mut typing).await;
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        ended = guest => ended,
        () = clients => Ok(()),
    }
}

/// Between one VMM and everybody; ends with the VMM. A guest that does not read stops nothing of what it prints.
async fn pass(
    tty: UnixStream,
    log: &mut Log,
    printed: &broadcast::Sender<Vec<u8>>,
    typing: &mut mpsc::Receiver<Vec<u8>>,
) {
    let (mut from, mut to) = tty.into_split();
    let reads = async {
        let mut chunk = vec![0; CHUNK];
        while let Ok(len @ 1..) = from.read(&mut chunk).await {
            let bytes = chunk.get(..len).unwrap_or_default();
            // A full disk: what is printed is still shown.
            let _ = log.append(bytes);
            // Perhaps nobody looks.
            let _ = printed.send(bytes.to_vec());
            tokio::time::sleep(PACE).await;
        }
    };
    let writes = async {
        while let Some(bytes) = typing.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reads => {}
        () = writes => {}
    }
}

async fn clients(listener: UnixListener, printed: broadcast::Sender<Vec<u8>>, typed: mpsc::Sender<Vec<u8>>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // No descriptors: later, perhaps.
            tokio::time::sleep(RETRY).await;
            continue;
        };
        tokio::spawn(client_of(client, printed.subscribe(), typed.clone()));
    }
}

/// One that is too slow misses some and goes on.
async fn client_of(
    client: UnixStream,
    mut printed: broadcast::Receiver<Vec<u8>>,
    typed: mpsc::Sender<Vec<u8>>,
) {
    let (mut from, mut to) = client.into_split();
    let mut chunk = [0; CHUNK];
    loop {
        tokio::select! {
            piece = printed.recv() => match piece {
                Ok(piece) => if to.write_all(&piece).await.is_err() { return },
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            read = from.read(&mut chunk) => {
                let bytes = read.ok().and_then(|len| chunk.get(..len)).unwrap_or_default();
                if bytes.is_empty() {
                    return;
                }
                // What finds no place is lost, as on a serial line.
                let _ = typed.try_send(bytes.to_vec());
            }
        }
    }
}

/// What was printed last.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len >= LOG {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(&self.path)?;
        }
        self.len += u64::try_from(bytes.len()).unwrap_or(0);
        self.file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_sees_it_and_may_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let paths = Paths { tty: path("tty"), console: path("console"), log: path("log") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let vmm = UnixListener::bind(&paths.tty).unwrap();
            let served = paths.clone();
            tokio::spawn(async move { serve(&served).await });
            // Twice: another VMM takes its place.
            for _ in 0..2 {
                let (mut tty, _) = vmm.accept().await.unwrap();
                let mut clients = Vec::new();
                for _ in 0..2 {
                    clients.push(UnixStream::connect(&paths.console).await.unwrap());
                }
                let mut byte = [0; 5];
                for client in &mut clients {
                    client.write_all(b"typed").await.unwrap();
                    tty.read_exact(&mut byte).await.unwrap();
                    assert_eq!(&byte, b"typed");
                }
                tty.write_all(b"hello").await.unwrap();
                for client in &mut clients {
                    client.read_exact(&mut byte).await.unwrap();
                    assert_eq!(&byte, b"hello");
                }
            }
        });
        assert_eq!(std::fs::read(path("log")).unwrap(), b"hellohello");
    }

    #[test]
    fn the_log_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(&folder.path().join("web1.log")).unwrap();
        for _ in 0..40 {
            log.append(&vec![b'x'; 100_000]).unwrap();
        }
        let sizes: u64 = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!((LOG..=2 * LOG + 200_000).contains(&sizes), "{sizes}");
        assert!(folder.path().join("web1.log.1").exists());
    }
}
