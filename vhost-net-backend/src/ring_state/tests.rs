use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::counters::Boot;

fn boot() -> Boot {
    Boot { id: format!("{:032x}", 0xabcd), pid: 1, started: SystemTime::UNIX_EPOCH }
}

fn open(run_dir: &Path) -> Arc<NicState> {
    Store::open(run_dir, &boot()).unwrap().nic("acme", "web1", 0, 2).unwrap()
}

fn place() -> RingPlace {
    let region = |n| RegionId { dev: n, ino: 2, offset: 3, guest_phys: n << 20, size: 0x1000 };
    let regions = (0..32).map(region).collect();
    RingPlace { size: 256, features: 1 << 32, desc: 0x1000, avail: 0x2000, used: 0x3000, regions }
}

fn at(avail: u16, used: u16) -> Indices {
    Indices { avail, used }
}

#[test]
fn a_record_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let ring = first.ring(1).unwrap();
    assert!(first.ring(2).is_none());
    assert_eq!(ring.record(), None);
    assert_eq!(ring.take_over(&place(), 7, 5), Resume { avail: 7, sent: 0, recorded: false });
    ring.showing(at(7, 5), at(17, 15));
    ring.sending(17, 0);
    ring.sending(17, 63);
    // As a kill leaves it: the first one does nothing any more, not even at its end.
    let second = open(folder.path());
    let sent = Sent { first: 17, frames: 1 | 1 << 63 };
    let wanted = RingRecord { answered: false, place: place(), shown: at(7, 5), showing: at(17, 15), sent };
    assert_eq!(second.records(), [(1, wanted)]);
    let ring = second.ring(1).unwrap();
    assert_eq!(ring.take_over(&place(), 999, 15), Resume { avail: 17, sent: sent.frames, recorded: true });
    // And again, as if we were killed before the first burst.
    let ring = open(folder.path()).ring(1).unwrap();
    assert_eq!(ring.take_over(&place(), 0, 15), Resume { avail: 17, sent: sent.frames, recorded: true });
    ring.showing(at(17, 15), at(20, 18));
    ring.settled();
    assert_eq!(ring.take_over(&place(), 0, 18), Resume { avail: 20, sent: 0, recorded: true });
}

#[test]
fn the_used_index_in_guest_memory_says_which_half_is_true() {
    let state = NicState::anonymous(1).unwrap();
    let ring = state.ring(0).unwrap();
    let _ = ring.take_over(&place(), 65_530, 65_530);
    ring.showing(at(65_530, 65_530), at(4, 4));
    ring.sending(65_530, 3);
    let record = ring.record().unwrap();
    // Not shown yet: the burst is done again, but for the frame that left.
    assert_eq!(record.resume(&place(), 65_530), Some(Resume { avail: 65_530, sent: 8, recorded: true }));
    // Shown: what left is part of what was given back.
    assert_eq!(record.resume(&place(), 4), Some(Resume { avail: 4, sent: 0, recorded: true }));
    // Another guest's ring.
    assert_eq!(record.resume(&place(), 0), None);
}

#[test]
fn only_the_same_ring_in_the_same_memory_is_believed() {
    let state = NicState::anonymous(1).unwrap();
    let ring = state.ring(0).unwrap();
    let _ = ring.take_over(&place(), 3, 3);
    let record = ring.record().unwrap();
    let region = |change: fn(&mut RegionId)| {
        let mut place = place();
        change(&mut place.regions[31]);
        place
    };
    let mut fewer = place();
    fewer.regions.pop();
    let others = [
        ("size", RingPlace { size: 512, ..place() }),
        ("features", RingPlace { features: 0, ..place() }),
        ("desc", RingPlace { desc: 0, ..place() }),
        ("avail", RingPlace { avail: 0, ..place() }),
        ("used", RingPlace { used: 0, ..place() }),
        ("regions", fewer),
        ("device", region(|r| r.dev += 1)),
        ("inode", region(|r| r.ino += 1)),
        ("offset", region(|r| r.offset += 1)),
        ("address", region(|r| r.guest_phys += 1)),
        ("bytes", region(|r| r.size += 1)),
    ];
    for (what, other) in others {
        assert_eq!(record.resume(&other, 3), None, "{what}");
    }
    let logging = RingPlace { features: place().features | LOG_ALL, ..place() };
    assert!(record.resume(&logging, 3).is_some());
    ring.release();
    assert_eq!(ring.record(), None);
    assert_eq!(ring.take_over(&place(), 9, 3).avail, 9);
}

#[test]
fn files_that_cannot_be_right_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/acme/web1.0");
    let _ = open(folder.path()).ring(0).unwrap().take_over(&place(), 1, 1);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(folder.path().join("state")).unwrap().permissions().mode() & 0o777, 0o700);
    let good = fs::read(&path).unwrap();
    assert_eq!(open(folder.path()).records().len(), 1, "a good one stays");
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, &good).unwrap();

    let patch = |at: u64, bytes: &[u8]| {
        fs::write(&path, &good).unwrap();
        fs::File::options().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 10] = [
        ("a link", &|| symlink(&elsewhere, &path).unwrap()),
        ("a second name of another file", &|| fs::hard_link(&elsewhere, &path).unwrap()),
        ("empty", &|| fs::write(&path, []).unwrap()),
        ("short", &|| fs::write(&path, &good[..4000]).unwrap()),
        ("long", &|| fs::write(&path, [&good[..], &[0]].concat()).unwrap()),
        ("another magic", &|| patch(0, b"x")),
        ("another version", &|| patch(8, &[9])),
        ("another number of rings", &|| patch(16, &[1])),
        ("a state that does not exist", &|| patch(128, &[3])),
        ("noise", &|| patch(128 + 24, &[0xff; 1000])),
    ];
    for (what, damage) in damages {
        fs::remove_file(&path).unwrap();
        damage();
        let state = open(folder.path());
        assert!(state.records().is_empty(), "{what}");
        let _ = state.ring(0).unwrap().take_over(&place(), 1, 1);
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{what}");
        assert_eq!(open(folder.path()).records().len(), 1, "{what}: the new one is used");
    }
    assert_eq!(fs::read(&elsewhere).unwrap(), good, "nothing was written through links");
}

#[test]
fn a_link_in_place_of_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    fs::create_dir(&target).unwrap();
    symlink(&target, folder.path().join("state")).unwrap();
    assert!(Store::open(folder.path(), &boot()).is_err());
    fs::remove_file(folder.path().join("state")).unwrap();
    let store = Store::open(folder.path(), &boot()).unwrap();
    symlink(&target, folder.path().join("state/acme")).unwrap();
    assert!(store.nic("acme", "web1", 0, 2).is_err());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}
