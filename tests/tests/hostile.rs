//! The suite of hostile front ends, guests and clients: every case of the table, against one daemon.

use std::time::Instant;

use anyhow::{Result, ensure};
use tests::hostile::{Case, Field, cases, packed};
use tests::skip;

/// Only cases whose name contains this run, if it is set.
fn chosen() -> String {
    std::env::var("VMROUTER_HOSTILE").unwrap_or_default()
}

#[test]
fn nobody_is_hurt() -> Result<()> {
    run(&[], false, cases())
}

#[test]
fn nobody_is_hurt_by_packed_vrings() -> Result<()> {
    run(&[], true, packed::CASES.iter())
}

#[test]
fn nobody_is_hurt_with_two_workers() -> Result<()> {
    if skip::unless("nobody_is_hurt_with_two_workers", &[skip::two_cpus()]) {
        return Ok(());
    }
    run(&[0, 1], false, cases())
}

fn run(cpus: &[usize], packed: bool, cases: impl Iterator<Item = &'static Case>) -> Result<()> {
    let only = chosen();
    let mut field = Field::new(cpus, packed)?;
    let mut failed = Vec::new();
    let mut count = 0;
    println!(
        "{:<42} {:<28} {:<7} {:>6} {:>6} {:>6}  meaning",
        "case", "wanted", "result", "ms", "fresh", "worst"
    );
    for case in cases.filter(|case| case.name.contains(&only)) {
        let start = Instant::now();
        let result = field.run(case);
        let millis = start.elapsed().as_millis();
        let (word, cost) = result.as_ref().map_or(("FAILED", Default::default()), |cost| ("ok", *cost));
        let [fresh, worst] = [cost.fresh, cost.worst].map(|time| time.as_millis());
        let (name, wanted, meaning) = (case.name, case.wanted.to_string(), case.meaning);
        println!("{name:<42} {wanted:<28} {word:<7} {millis:>6} {fresh:>6} {worst:>6}  {meaning}");
        count += 1;
        if let Err(error) = result {
            println!("    {error:#}");
            failed.push(case.name);
            // What it broke must not fail the next one.
            field = Field::new(cpus, packed)?;
        }
    }
    println!("{count} cases, {} failed", failed.len());
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

#[test]
fn names_are_unique_and_sorted_by_section() {
    let names: Vec<_> = cases().chain(packed::CASES).map(|case| case.name).collect();
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len());
    assert!(names.len() >= 120, "{} cases", names.len());
}
