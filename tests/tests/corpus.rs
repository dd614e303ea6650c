//! Every input that `tests/corpus` keeps, through the target that it is for: what a fuzzer once found stays found.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tests::fuzz::{TARGETS, Target};

/// For one input, in a debug build on a busy machine: targets bound their own work.
const BOUND: Duration = Duration::from_secs(10);

fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Files of a folder, in order.
fn inputs(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = listed.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What is wrong with the target for that input, if anything.
fn defect(target: &Target, data: &[u8]) -> Option<String> {
    let start = Instant::now();
    match catch_unwind(|| (target.run)(data)) {
        Err(_) => Some("panicked".to_owned()),
        Ok(Err(error)) => Some(format!("{error:#}")),
        Ok(Ok(())) if start.elapsed() > BOUND => Some(format!("took {:?}", start.elapsed())),
        Ok(Ok(())) => None,
    }
}

/// One test for all targets, because one of them counts the process's open files.
#[test]
fn every_kept_input_still_passes() -> Result<()> {
    let mut defects = Vec::new();
    for target in &TARGETS {
        let (paths, start) = (inputs(&corpus(target))?, Instant::now());
        assert!(!paths.is_empty(), "{} has no inputs", target.name);
        for path in &paths {
            let data = fs::read(path)?;
            defects.extend(defect(target, &data).map(|what| format!("{}: {what}", path.display())));
        }
        println!("{:<10} {:>5} inputs in {:?}", target.name, paths.len(), start.elapsed());
    }
    assert!(defects.is_empty(), "{}", defects.join("\n"));
    Ok(())
}

#[test]
fn every_folder_has_a_target_and_every_target_a_program() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str, end: &str| -> Result<Vec<String>> {
        let paths = inputs(&root.join(folder))?;
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(end)?.to_owned());
        Ok(paths.iter().filter_map(name).collect())
    };
    let mut wanted: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    wanted.sort_unstable();
    assert_eq!(names("corpus", "")?, wanted);
    assert_eq!(names("fuzz/fuzz_targets", ".rs")?, wanted);
    Ok(())
}
