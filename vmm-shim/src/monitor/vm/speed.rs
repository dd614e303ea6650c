//! How fast a VM is: its share of CPU time, and the most that it gets.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use topology::Speed;

use super::Vm;
use crate::control::api::Change;

/// What an operator has set, beside the VM's other files.
const SET: &str = "set";

/// A virtual CPU (QEMU: `query-cpus-fast`).
#[derive(Deserialize)]
struct Cpu {
    #[serde(rename = "thread-id")]
    thread: i32,
}

/// That of the topology, with what an operator has set since. `files`: those of the VM, without what comes behind the dot.
pub(super) fn set(files: &Path, file: Speed) -> Speed {
    let text = std::fs::read(files.with_extension(SET)).unwrap_or_default();
    let set: Change = serde_json::from_slice(&text).unwrap_or_default();
    changed(file, set)
}

fn changed(speed: Speed, change: Change) -> Speed {
    Speed {
        share: change.share.unwrap_or(speed.share),
        quota: change.quota.map_or(speed.quota, |percent| Some(percent).filter(|&percent| percent > 0)),
    }
}

impl Vm {
    /// Changes it at once, and for every start to come.
    pub(super) async fn change_speed(&mut self, change: Change) -> Result<(), String> {
        if change.share.is_some_and(|share| !(1..=10_000).contains(&share)) {
            return Err("share is outside 1..=10000".to_owned());
        }
        let before = self.speed;
        self.speed = changed(before, change);
        if let Err(error) = self.limit().await {
            self.speed = before;
            return Err(error);
        }
        let set = Change { share: Some(self.speed.share), quota: Some(self.speed.quota.unwrap_or(0)) };
        let text = serde_json::to_vec(&set).unwrap_or_default();
        std::fs::write(self.file(SET), text)
            .map_err(|error| format!("the next monitor will not know: {error}"))?;
        let quota = self.speed.quota.map_or("none".to_owned(), |quota| format!("{quota}%"));
        self.tell("changed", &format!("share {}, quota {quota}", self.speed.share), None);
        Ok(())
    }

    /// Holds the guest to its CPU time from now on; what does not work is shown.
    pub(super) async fn hold(&self) {
        let trouble = self.limit().await.err();
        if let Some(why) = &trouble {
            tracing::warn!(vm = self.name(), why, "its CPU time is not limited");
        }
        let is_asked = self.speed != Speed::default() || self.most.is_some();
        let shown = trouble.filter(|_| is_asked).map(|why| format!("its CPU time is not limited: {why}"));
        self.change(|vm| vm.trouble = shown);
    }

    async fn limit(&self) -> Result<(), String> {
        let group = self.group.as_ref().map_err(String::clone)?;
        // A VM that does not run is held once it does.
        let (Some(process), Some(qmp)) = (&self.process, &self.qmp) else { return Ok(()) };
        let cpus = qmp.execute("query-cpus-fast", Value::Null).await.map_err(|error| error.to_string())?;
        let cpus: Vec<Cpu> = serde_json::from_value(cpus).map_err(|error| format!("no CPUs: {error}"))?;
        let threads: Vec<i32> = cpus.iter().map(|cpu| cpu.thread).collect();
        let held = group.take(process.pid(), &threads).and_then(|()| group.set(self.speed, self.most));
        held.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_stays() {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("web1");
        let file = Speed { share: 100, quota: Some(150) };
        assert_eq!(set(&files, file), file);
        std::fs::write(files.with_extension(SET), "{\"quota\":0}").unwrap();
        assert_eq!(set(&files, file), Speed { share: 100, quota: None });
        std::fs::write(files.with_extension(SET), "{\"share\":7,\"quota\":25}").unwrap();
        assert_eq!(set(&files, file), Speed { share: 7, quota: Some(25) });
    }
}
