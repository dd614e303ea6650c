use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// The two directions of connection `number` of a tenant.
fn keys(seat: &Seat, number: u32, protocol: u8) -> (Key, Key) {
    let [b0, b1, b2, b3] = number.to_be_bytes();
    let inside = End::new(seat.index(), [10, 0, b0, b1].into(), u16::from_be_bytes([b2, b3]));
    let outside = End::new(seat.index(), [192, 0, 2, 1].into(), 80);
    (Key::new(inside, outside, protocol), Key::new(outside, inside, protocol))
}

/// Opens connection `number`; with its handshake, if it is to be settled.
fn open(table: &FlowTable, seat: &Seat, number: u32, settled: bool, now: Instant) -> Result<(), DropReason> {
    let (there, back) = keys(seat, number, 6);
    table.open(&there, Event::Tcp(SYN), seat, now, 1)?;
    if settled {
        assert_eq!(table.pass(&back, Event::Tcp(SYN_ACK), now, 1), Found::Live);
        assert_eq!(table.pass(&there, Event::Tcp(ACK), now, 1), Found::Live);
    }
    Ok(())
}

fn alive(table: &FlowTable, seat: &Seat, numbers: std::ops::Range<u32>, now: Instant) -> usize {
    numbers.filter(|number| table.knows(&keys(seat, *number, 6).1, now, 1)).count()
}

/// By the tenants' own accounts.
fn held(table: &FlowTable) -> usize {
    table.tenants().iter().map(|row| usize::try_from(row.1).unwrap()).sum()
}

fn table(capacity: usize) -> FlowTable {
    FlowTable::new(capacity, [0x1234_5678_9abc_def1, 0xfedc_ba98_7654_3211, 77, 0x5555_aaaa_3333_cccd])
}

#[test]
fn three_quarters_of_the_table_can_be_used() {
    let (table, now) = (table(1 << 16), Instant::now());
    let seat = table.seats().take("acme", Some(u32::MAX)).unwrap();
    let refused = (0..49_000).filter(|number| open(&table, &seat, *number, true, now).is_err()).count();
    assert!(refused < 5, "{refused} of 49,000 refused");
    assert_eq!(alive(&table, &seat, 0..49_000, now), 49_000 - refused);
    let totals = table.totals();
    assert_eq!((totals.capacity, totals.entries, totals.displaced), (1 << 16, 49_000 - refused, 0));
}

#[test]
fn a_flood_takes_nothing_from_a_tenant_within_its_share() {
    let (table, now) = (table(8_192), Instant::now());
    let quiet = table.seats().take("quiet", None).unwrap();
    let loud = table.seats().take("loud", Some(u32::MAX)).unwrap();
    // Its share is half; some of it is settled and some not.
    for number in 0..1_000 {
        open(&table, &quiet, number, number % 2 == 0, now).unwrap();
    }
    for number in 0..100_000 {
        let _ = open(&table, &loud, number, number % 3 == 0, now);
    }
    assert_eq!(alive(&table, &quiet, 0..1_000, now), 1_000);
    // And it still gets places, also those of settled ones of who holds more than its share.
    let refused = (1_000..3_000).filter(|number| open(&table, &quiet, *number, true, now).is_err()).count();
    assert!(refused < 20, "{refused}");
    assert_eq!(table.totals().entries, held(&table));
}

#[test]
fn established_connections_outlive_their_own_tenants_flood() {
    let (table, now) = (table(8_192), Instant::now());
    let seat = table.seats().take("acme", Some(1_000)).unwrap();
    for number in 0..500 {
        open(&table, &seat, number, true, now).unwrap();
    }
    let mut quota = 0;
    for number in 1_000..50_000 {
        match open(&table, &seat, number, false, now) {
            Ok(()) => {}
            Err(reason) => {
                assert_eq!(reason, DropReason::FlowsQuota);
                quota += 1;
            }
        }
    }
    assert_eq!(alive(&table, &seat, 0..500, now), 500);
    assert!(quota > 10_000, "{quota}");
    assert_eq!(table.tenants(), [("acme".to_owned(), 1_000, 1_000)]);
    assert!(table.totals().displaced > 0);
    // Six seconds later the flood's own are worth nothing.
    let later = now + Duration::from_secs(6);
    let accepted =
        (60_000..60_500).filter(|number| open(&table, &seat, *number, false, later).is_ok()).count();
    assert_eq!(accepted, 500);
    assert_eq!(alive(&table, &seat, 0..500, later), 500);
}

#[test]
fn what_is_over_makes_room_by_itself() {
    let (table, now) = (table(4_096), Instant::now());
    let seat = table.seats().take("acme", None).unwrap();
    for number in 0..2_000 {
        open(&table, &seat, number, true, now).unwrap();
    }
    let later = now + Duration::from_secs(7_441);
    assert_eq!(alive(&table, &seat, 0..2_000, later), 0);
    for number in 10_000..12_000 {
        open(&table, &seat, number, true, later).unwrap();
    }
    assert_eq!(alive(&table, &seat, 10_000..12_000, later), 2_000);
    assert!(table.totals().entries <= 2_048, "{:?}", table.totals());
}

#[test]
fn a_small_quota_is_free_again_when_its_connections_are_over() {
    let (table, now) = (table(FlowTable::CAPACITY), Instant::now());
    let seat = table.seats().take("acme", Some(1_000)).unwrap();
    for number in 0..1_000 {
        open(&table, &seat, number, false, now).unwrap();
    }
    let refused = (1_000..1_100).filter(|number| open(&table, &seat, *number, false, now).is_err()).count();
    assert!(refused > 90, "{refused}: it is at its limit");
    let later = now + Duration::from_secs(301);
    for number in 2_000..2_100 {
        assert_eq!(open(&table, &seat, number, false, later), Ok(()), "{number}");
    }
    assert_eq!(alive(&table, &seat, 2_000..2_100, later), 100);
    // Settled ones, of another tenant, and one at a time.
    let seat = table.seats().take("globex", Some(20)).unwrap();
    for round in 0..5_u32 {
        let now = later + Duration::from_secs(u64::from(round) * 7_441);
        for number in round * 20..round * 20 + 20 {
            // An eighth of the table for each that is refused.
            let tries = (0..8).take_while(|_| open(&table, &seat, number, true, now).is_err()).count();
            assert!(tries < 8, "{round} {number}");
        }
        assert_eq!(open(&table, &seat, 90_000 + round, true, now), Err(DropReason::FlowsQuota));
    }
}

#[test]
fn what_is_opened_again_holds_by_the_rules_of_today() {
    let (table, now) = (table(4_096), Instant::now());
    let seat = table.seats().take("acme", None).unwrap();
    let at = |seconds| now + Duration::from_secs(seconds);
    for (protocol, event, lasts) in [(17, Event::Datagram, 120), (44, Event::Piece, 110)] {
        let key = keys(&seat, 1, protocol).0;
        table.open(&key, event, &seat, now, 1).unwrap();
        table.open(&key, event, &seat, at(50), 2).unwrap();
        assert!(table.knows(&key, at(lasts), 2) && !table.knows(&key, at(lasts), 1), "{event:?}");
        assert!(!table.knows(&key, at(lasts + 1), 2), "{event:?}");
    }
}

#[test]
fn workers_share_it() {
    let (table, now) = (table(16_384), Instant::now());
    let seats = ["a", "b", "c", "d"].map(|name| table.seats().take(name, Some(3_000)).unwrap());
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (table, seats) = (&table, &seats);
            scope.spawn(move || {
                for number in 0..20_000_u32 {
                    let seat = &seats[usize::try_from((number + worker) % 4).unwrap()];
                    // All work on the same connections, and some of their own.
                    let number = if number % 2 == 0 { number } else { number + worker * 100_000 };
                    let now = now + Duration::from_millis(u64::from(number % 7_000));
                    let (there, back) = keys(seat, number, 17);
                    let _ = table.open(&there, Event::Datagram, seat, now, 1);
                    table.pass(&back, Event::Datagram, now, 1);
                    if number % 5 == 0 {
                        table.close(&there, now);
                    }
                }
            });
        }
    });
    let rows = table.tenants();
    assert_eq!(table.totals().entries, held(&table));
    // The check and the charge are two steps, so each worker may be one beyond.
    assert!(rows.iter().all(|(_, entries, limit)| *entries <= limit + 3), "{rows:?}");
    let counted: usize = table.shards.iter().map(|shard| shard.0.lock().unwrap().count()).sum();
    assert_eq!(counted, table.totals().entries);
}

/// One step against the table, of a tenant and one of its connections.
#[derive(Clone, Copy, Debug)]
enum Do {
    Open,
    Answer,
    Again,
    Close,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<(Do, usize, u32)>> {
    let what = prop_oneof![
        6 => Just(Do::Open),
        3 => Just(Do::Answer),
        2 => Just(Do::Again),
        1 => Just(Do::Close),
        1 => (1u64..200).prop_map(Do::Wait),
    ];
    prop::collection::vec((what, 0usize..3, 0u32..40), 0..300)
}

/// A connection of the slow table: who has spoken, and when the last did.
#[derive(Clone, Copy, Debug)]
struct Talk {
    answered: bool,
    settled: bool,
    seen: Duration,
}

/// Against a slow table that never has to make room: what it says is there, is there, unless it was displaced; what it
/// says is not, is not; nobody is refused who need not be; and the accounts are right.
fn compare(steps: Vec<(Do, usize, u32)>) -> Result<(), TestCaseError> {
    let table = table(1);
    let seats = [("a", None), ("b", Some(10)), ("c", Some(200))];
    let seats = seats.map(|(name, limit)| table.seats().take(name, limit).unwrap());
    let mut slow: HashMap<(usize, u32), Talk> = HashMap::new();
    let (start, mut now) = (Instant::now(), Duration::ZERO);
    for (what, tenant, number) in steps {
        let (there, back) = keys(&seats[tenant], number, 17);
        let idle = |talk: &Talk| Duration::from_secs(if talk.answered { 300 } else { 120 });
        slow.retain(|_, talk| now - talk.seen <= idle(talk));
        let known = slow.get(&(tenant, number)).copied();
        let is_there = table.knows(&there, start + now, 1);
        prop_assert!(known.is_some() || !is_there, "made up");
        prop_assert!(is_there || known.is_none_or(|talk| !talk.settled), "a settled one was lost");
        // Of a tenant at its limit, what is not settled goes after five seconds.
        let lost = known.is_some() && !is_there;
        prop_assert!(!lost || tenant == 1 || table.totals().displaced > 0, "lost for nothing");
        let pass = |key| table.pass(key, Event::Datagram, start + now, 1);
        match what {
            Do::Open => match table.open(&there, Event::Datagram, &seats[tenant], start + now, 1) {
                Ok(()) if !is_there => {
                    slow.insert((tenant, number), Talk { answered: false, settled: false, seen: now });
                }
                Ok(()) => {}
                Err(DropReason::FlowsQuota) => {
                    let held = slow.keys().filter(|(of, _)| *of == tenant).count();
                    prop_assert!(tenant == 1 && held >= 10, "{tenant} is refused with {held}");
                }
                Err(reason) => prop_assert!(slow.len() >= 8, "{reason:?} with {}", slow.len()),
            },
            Do::Answer | Do::Again => {
                let answers = matches!(what, Do::Answer);
                match (pass(if answers { &back } else { &there }), known) {
                    (Found::Live, Some(talk)) if is_there => {
                        let settled = talk.settled || talk.answered && !answers;
                        let talk = Talk { answered: talk.answered || answers, settled, seen: now };
                        slow.insert((tenant, number), talk);
                    }
                    (Found::Nothing, _) => {
                        slow.remove(&(tenant, number));
                    }
                    (found, known) => prop_assert!(false, "{found:?} {known:?}"),
                }
            }
            Do::Close => {
                table.close(&there, start + now);
                slow.remove(&(tenant, number));
            }
            Do::Wait(seconds) => now += Duration::from_secs(seconds),
        }
        let counted: usize = table.shards.iter().map(|shard| shard.0.lock().unwrap().count()).sum();
        prop_assert_eq!(counted, table.totals().entries);
        prop_assert!(table.tenants().iter().all(|(_, entries, limit)| entries <= limit));
    }
    Ok(())
}

proptest! {
    #[test]
    fn says_what_a_slow_table_says(steps in steps()) {
        compare(steps)?;
    }
}
