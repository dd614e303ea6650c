//! Topologies that ran: `STATE_DIR/generations/`, which outlives the daemon and the machine's boot.
//!
//! | file | what |
//! |---|---|
//! | `N.toml` | the topology file of generation N as it was given, and those of its tenants behind it |
//! | `N.json` | its [`Record`] |
//! | `current` | the number of the one that the next `vmrouter run` without a file starts with |
//! | `used` | a number that was used without a file: that of a configuration which came back |
//!
//! Every file appears whole, by a rename, and is on the disk before `current` names it: a crash at any moment leaves the
//! generation before or the one after. One daemon uses the folder at a time.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Below STATE_DIR.
pub const FOLDER: &str = "generations";
/// So many of the operator's are kept, the newest, and as many of owners'; and the current one.
const KEPT: usize = 100;
/// A record says no more of what changed.
const CHANGES: usize = 100;

/// A topology file as somebody gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Where it came from: for people.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// What is known of one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub generation: u64,
    /// When it began to run, seconds since 1970.
    pub time: u64,
    /// The user who asked for it.
    pub uid: u32,
    /// The tenant whose owner's tables it changed; none: it is the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The file that it came from.
    pub name: String,
    /// "1 to add, 0 to change, 0 to remove".
    pub summary: String,
    /// What changed, a line each; the first hundred.
    pub changes: Vec<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It runs, or ran until the next one.
    Applied,
    /// It runs, and waits to be confirmed.
    Unconfirmed,
    /// Nobody confirmed it: the one before came back.
    RolledBack,
}

impl Record {
    /// Of a generation that begins now.
    #[must_use]
    pub fn new(generation: u64, uid: u32, name: &str, plan: &topology::Plan, outcome: Outcome) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let changes = plan.changes.iter().take(CHANGES).map(ToString::to_string).collect();
        let (name, summary) = (name.to_owned(), plan.summary());
        Self { generation, time, uid, tenant: None, name, summary, changes, outcome }
    }
}

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub struct Generations {
    folder: PathBuf,
    _lock: File,
}

impl Generations {
    /// The folder below `state_dir`, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or another daemon has it. The message names it.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join(FOLDER);
        let opened =
            DirBuilder::new().recursive(true).mode(0o750).create(&folder).and_then(|()| lock(&folder));
        let lock =
            opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?;
        Ok(Self { folder, _lock: lock })
    }

    /// The greatest number that was used; 0: there is none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        let used = fs::read_to_string(self.folder.join("used")).ok();
        let used = used.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        numbers(&self.folder).last().copied().unwrap_or(0).max(used)
    }

    /// No generation gets that number any more, though it has no file.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn use_up(&self, generation: u64) -> io::Result<()> {
        self.put("used", format!("{generation}\n").as_bytes())
    }

    /// Writes a generation down. It is not the current one yet: see [`Self::set_current`].
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn add(&self, record: &Record, text: &str) -> io::Result<()> {
        self.put(&format!("{}.toml", record.generation), text.as_bytes())?;
        self.record(record)
    }

    /// Writes what is known of a generation, again.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn record(&self, record: &Record) -> io::Result<()> {
        self.put(&format!("{}.json", record.generation), &serde_json::to_vec_pretty(record)?)
    }

    /// Takes one back that never ran.
    pub fn forget(&self, generation: u64) {
        for kind in ["toml", "json"] {
            let _ = fs::remove_file(self.folder.join(format!("{generation}.{kind}")));
        }
    }

    /// The next `vmrouter run` without a file starts with that one. Old ones are removed.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn set_current(&self, generation: u64) -> io::Result<()> {
        if matches!(current(&self.folder), Ok(Some(current)) if current == generation) {
            return Ok(());
        }
        self.put("current", format!("{generation}\n").as_bytes())?;
        let old = self.surplus().into_iter().filter(|number| *number != generation);
        old.for_each(|number| self.forget(number));
        Ok(())
    }

    /// Those that are too many. No owner drives the operator's out, nor those of an owner that has fewer.
    fn surplus(&self) -> Vec<u64> {
        let mut operators = Vec::new();
        let mut owners: BTreeMap<String, VecDeque<u64>> = BTreeMap::new();
        for number in numbers(&self.folder) {
            match record(&self.folder, number).and_then(|record| record.tenant) {
                Some(tenant) => owners.entry(tenant).or_default().push_back(number),
                None => operators.push(number),
            }
        }
        operators.truncate(operators.len().saturating_sub(KEPT));
        for _ in KEPT..owners.values().map(VecDeque::len).sum() {
            let most = owners.values_mut().max_by_key(|numbers| numbers.len());
            operators.extend(most.and_then(VecDeque::pop_front));
        }
        operators
    }

    /// What is known of all, the oldest first, and which is the current one.
    #[must_use]
    pub fn history(&self) -> (Vec<Record>, Option<u64>) {
        let records = numbers(&self.folder).into_iter().filter_map(|number| record(&self.folder, number));
        (records.collect(), current(&self.folder).ok().flatten())
    }

    /// The topology file of a generation.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn text(&self, generation: u64) -> io::Result<Text> {
        text(&self.folder, generation)
    }

    /// The topology file of the current generation, if there is one.
    ///
    /// # Errors
    /// There is one, and it cannot be read.
    pub fn current(&self) -> io::Result<Option<(u64, Text)>> {
        newest(&self.folder)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let naming = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.folder.join(name).display()))
        };
        let new = self.folder.join(format!("{name}.new"));
        let written = || {
            let _ = fs::remove_file(&new);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, self.folder.join(name))?;
            File::open(&self.folder)?.sync_all()
        };
        written().map_err(naming)
    }
}

/// The file of the generation that ran last below `state_dir`, if there is one.
///
/// # Errors
/// There is one, and it cannot be read. The message names the file.
pub fn last(state_dir: &Path) -> io::Result<Option<(u64, Text)>> {
    newest(&state_dir.join(FOLDER))
}

fn newest(folder: &Path) -> io::Result<Option<(u64, Text)>> {
    current(folder)?.map(|number| Ok((number, text(folder, number)?))).transpose()
}

fn text(folder: &Path, generation: u64) -> io::Result<Text> {
    let path = folder.join(format!("{generation}.toml"));
    let naming = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let text = fs::read_to_string(&path).map_err(naming)?;
    // What it says is found where it came from.
    let name = record(folder, generation).map_or_else(|| path.display().to_string(), |record| record.name);
    Ok(Text { name, text })
}

fn record(folder: &Path, generation: u64) -> Option<Record> {
    let bytes = fs::read(folder.join(format!("{generation}.json"))).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// None only if there is no such file: whatever else is wrong must not pass for that, or what owners have set is lost.
fn current(folder: &Path) -> io::Result<Option<u64>> {
    let path = folder.join("current");
    let naming = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(naming)?,
    };
    let number = text.trim().parse();
    let wrong =
        |_| naming(io::Error::new(io::ErrorKind::InvalidData, "it is not the number of a generation"));
    number.map(Some).map_err(wrong)
}

/// Of all generations, the least first.
fn numbers(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".toml")?.parse().ok();
    let mut numbers: Vec<u64> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

fn lock(folder: &Path) -> io::Result<File> {
    let file = File::open(folder)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon keeps its topologies there"))
        }
        locked => Ok(locked.map(|()| file)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(generation: u64) -> Record {
        Record::new(generation, 7, "/etc/t.toml", &topology::Plan::default(), Outcome::Applied)
    }

    #[test]
    fn what_was_applied_is_found_again_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(last(folder.path()).unwrap(), None);
        let generations = Generations::open(folder.path()).unwrap();
        assert_eq!(Generations::open(folder.path()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!((generations.newest(), generations.current().unwrap()), (0, None));
        for number in 1..=150 {
            generations.add(&record(number), &format!("# {number}")).unwrap();
            if number <= 2 {
                generations.set_current(number).unwrap();
            }
        }
        // 150 was written and never became the current one, as in a crash.
        assert_eq!(last(folder.path()).unwrap().unwrap().1.text, "# 2");
        generations.set_current(3).unwrap();
        let (records, now) = generations.history();
        let numbers: Vec<_> = records.iter().map(|record| record.generation).collect();
        assert_eq!((numbers.len(), numbers[0], numbers[1], now), (101, 3, 51, Some(3)));
        assert_eq!(records[0], Record { time: records[0].time, ..record(3) });
        generations.record(&Record { outcome: Outcome::RolledBack, ..record(150) }).unwrap();
        assert_eq!(generations.history().0.last().unwrap().outcome, Outcome::RolledBack);
        generations.forget(150);
        assert_eq!(generations.newest(), 149);
        generations.use_up(151).unwrap();
        assert_eq!(generations.newest(), 151);
        drop(generations);
        assert_eq!(Generations::open(folder.path()).unwrap().current().unwrap().unwrap().0, 3);
    }

    #[test]
    fn only_a_missing_current_generation_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let generations = Generations::open(folder.path()).unwrap();
        let current = folder.path().join(FOLDER).join("current");
        generations.add(&record(1), "# 1").unwrap();
        assert_eq!(last(folder.path()).unwrap(), None);
        for (bytes, wanted) in [("", "current: it is"), ("x\n", "current: it is"), ("2\n", "2.toml: ")] {
            fs::write(&current, bytes).unwrap();
            let error = last(folder.path()).unwrap_err().to_string();
            assert!(error.contains(wanted) && generations.current().is_err(), "{bytes}: {error}");
        }
        fs::remove_file(&current).unwrap();
        fs::create_dir(&current).unwrap();
        assert!(last(folder.path()).unwrap_err().to_string().contains("generations/current: "));
        // What runs next repairs it.
        fs::remove_dir(&current).unwrap();
        fs::write(&current, "2\n").unwrap();
        generations.set_current(1).unwrap();
        assert_eq!(last(folder.path()).unwrap().unwrap().1.text, "# 1");
    }

    #[test]
    fn an_owner_with_many_drives_out_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let generations = Generations::open(folder.path()).unwrap();
        let whose = |number| match number {
            1..=10 => None,
            11..=20 => Some("zorg".to_owned()),
            _ => Some("acme".to_owned()),
        };
        for number in 1..=130 {
            generations.add(&Record { tenant: whose(number), ..record(number) }, "").unwrap();
        }
        generations.set_current(130).unwrap();
        let kept: Vec<u64> = generations.history().0.iter().map(|record| record.generation).collect();
        assert_eq!(kept, (1..=20).chain(41..=130).collect::<Vec<_>>());
    }
}
