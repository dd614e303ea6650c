//! Every reason to drop a frame, produced once and explained.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use router::DropReason;
use tests::hostile::{Field, Wanted as Hostile, cases};
use tests::reasons::{Case, Found, Judge, Producer, Stage, Wanted, judge, producer, rules};
use tests::{hostile, skip, step};

/// The port of the guest in [`Field`] that does what others must not.
const ATTACKED: &str = "acme/mallory.0";

type Table = BTreeMap<DropReason, (String, Found)>;

#[test]
fn every_reason_happens_once_and_is_explained() -> Result<()> {
    let programs = ["perl", "tc"].map(skip::program);
    if skip::unless("reasons", &[[skip::root(), skip::two_cpus()].as_slice(), &programs].concat()) {
        return Ok(());
    }
    let mut table = Table::new();
    let mut failed = Vec::new();
    hostile_ones(&mut table, &mut failed)?;
    staged_ones(&mut table, &mut failed)?;
    println!("{:<22} {:<16} {:>5}  {:<20} produced by", "reason", "port", "count", "place");
    for (reason, (how, found)) in &table {
        println!("{:<22} {:<16} {:>5}  {:<20} {how}", reason.name(), found.port, found.count, found.place);
    }
    let missing = DropReason::ALL.iter().filter(|reason| !table.contains_key(reason));
    let missing: Vec<_> = missing.map(|reason| reason.name()).collect();
    println!("{} of {} reasons", table.len(), DropReason::ALL.len());
    ensure!(failed.is_empty() && missing.is_empty(), "{}\nmissing: {missing:?}", failed.join("\n"));
    Ok(())
}

/// What one lone guest can do to itself.
fn hostile_ones(table: &mut Table, failed: &mut Vec<String>) -> Result<()> {
    step("what a lone guest sends");
    let folder = tempfile::tempdir()?;
    let mut field = Field::new(&[], false)?;
    let mut short = field.started()?;
    let mut judge = Judge::start(&field.daemon, folder.path(), || short.send(&[0; 12], &[0; 13]))?;
    drop(short);
    for &reason in DropReason::ALL {
        let Producer::Hostile(name) = producer(reason) else { continue };
        let case = cases().find(|case| case.name == name).with_context(|| name)?;
        ensure!(case.wanted == Hostile::Dropped(reason), "{name} is about something else");
        let wanted = Wanted { reason, port: ATTACKED, count: 1..=1, place: None };
        let found = hostile_one(&mut field, &mut judge, case, &wanted);
        take(table, failed, reason, name, found);
    }
    field.daemon.stop()
}

fn hostile_one(
    field: &mut Field,
    judge: &mut Judge,
    case: &hostile::Case,
    wanted: &Wanted<'_>,
) -> Result<Found> {
    field.silent_witness()?;
    let before = judge.before(wanted.reason)?;
    (case.attack)(field)?;
    judge.judge(&field.daemon, wanted, &before)
}

/// What takes services, rules, limits, another guest or the uplink.
fn staged_ones(table: &mut Table, failed: &mut Vec<String>) -> Result<()> {
    step("what takes more than that");
    let folder = tempfile::tempdir()?;
    let mut stage = Stage::new()?;
    let mut short = stage.guest("acme/a")?;
    let mut judge = Judge::start(&stage.daemon, folder.path(), || short.send(&[0; 12], &[0; 13]))?;
    drop(short);
    for &reason in DropReason::ALL {
        let Producer::Staged(case) = producer(reason) else { continue };
        let found = staged_one(&mut stage, &mut judge, reason, case);
        take(table, failed, reason, case.meaning, found);
    }
    step("a reload moves the lines that are to blame");
    stage.shift()?;
    for (reason, case) in [
        (DropReason::PolicyIngress, &rules::POLICY_INGRESS),
        (DropReason::PolicyPeering, &rules::POLICY_PEERING),
    ] {
        staged_one(&mut stage, &mut judge, reason, case)?;
    }
    stage.daemon.stop()
}

fn staged_one(stage: &mut Stage, judge: &mut Judge, reason: DropReason, case: &Case) -> Result<Found> {
    let place = case.blames.map(|piece| judge::place(&stage.text, piece)).transpose()?;
    let before = judge.before(reason)?;
    (case.produce)(stage)?;
    let wanted = Wanted { reason, port: case.port, count: case.counts(), place };
    judge.judge(&stage.daemon, &wanted, &before)
}

fn take(table: &mut Table, failed: &mut Vec<String>, reason: DropReason, how: &str, found: Result<Found>) {
    match found {
        Ok(found) => drop(table.insert(reason, (how.to_owned(), found))),
        Err(error) => failed.push(format!("{} by {how}: {error:#}", reason.name())),
    }
}
