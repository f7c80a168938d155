//! More groups than an aggregate may have: what they take is bounded, and none of their records is lost.

use std::fmt::Write as _;

use chrono::{DurationRound, SecondsFormat, TimeDelta, Utc};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    services::services,
};

const DEFINITIONS: &str = r#"
[[aggregate]]
name = "endless"
window = "1h"
group_by = ["user_id"]
max_groups = 1000
measures = ["count", { sum = "n" }, { min = "n" }, { max = "n" }, { avg = "n" }, { unique = "user_id" },
            { top = "user_id", k = 3 }]
"#;
const MOST_GROUPS: u64 = 1_000;
const AT_ONCE: u64 = 1_000;
/// What the first groups, and as many events, may take less than all: a fold of 8 MiB that is filled, one that is flushed, and what
/// the allocator keeps of them.
const GROWTH: u64 = 64 << 20;

/// 150,000 groups, or `INGESTD_TEST_GROUPS`, each of one event; all in one window.
fn offered() -> u64 {
    std::env::var("INGESTD_TEST_GROUPS")
        .map_or(150_000, |groups| groups.parse().expect("INGESTD_TEST_GROUPS is a number"))
}

fn send(daemon: &Daemon, time: &str, from: u64, to: u64) {
    for first in (from..to).step_by(AT_ONCE as usize) {
        let mut body = String::new();
        for n in first..to.min(first + AT_ONCE) {
            let comma = if n == first { '[' } else { ',' };
            write!(body, r#"{comma}{{"type":"t","client_id":"c","timestamp":"{time}","user_id":"user-{n}","n":{n}}}"#)
                .expect("into a string");
        }
        body.push(']');
        eventually("they are taken", PATIENCE, || {
            let reply = daemon.post(None, body.as_bytes());
            assert!(matches!(reply.status, 200 | 429 | 503), "{reply:?}");
            (reply.status == 200).then_some(())
        });
    }
}

fn check(daemon: &Daemon) {
    let (offered, begin) = (offered(), Utc::now() - TimeDelta::hours(2));
    let begin = begin.duration_trunc(TimeDelta::hours(1)).expect("a time of today");
    let time = begin.to_rfc3339_opts(SecondsFormat::Secs, true);
    let counted = |records: u64| {
        eventually("all are counted", PATIENCE, || {
            (daemon.metric("ingestd_events_aggregated_total")? >= records as f64).then_some(())
        });
    };
    let first = 10 * MOST_GROUPS;
    send(daemon, &time, 0, first);
    counted(first);
    let before = daemon.peak_memory();
    send(daemon, &time, first, offered);
    counted(offered);
    let after = daemon.peak_memory();
    eprintln!("{offered} groups: peak memory {} MiB at {first}, {} MiB at the end", before >> 20, after >> 20);
    assert!(after - before < GROWTH, "{before} bytes, then {after}");

    let others = offered - MOST_GROUPS;
    assert_eq!(daemon.metric("ingestd_events_in_other_total"), Some(others as f64));
    let end = (begin + TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Secs, true);
    let answer = daemon.get(&format!("/v1/aggregates/endless?from={time}&to={end}&order=-count")).json();
    let rows = answer["rows"].as_array().expect("rows");
    assert_eq!(rows.len() as u64, MOST_GROUPS + 1);
    let other = &rows[0];
    assert_eq!((&other["group"]["user_id"], &other["count"]), (&"…other".into(), &others.into()), "{other}");
    // The first ones have groups of their own.
    let sum = (MOST_GROUPS..offered).sum::<u64>();
    for (measure, exact) in [("sum(n)", sum), ("min(n)", MOST_GROUPS), ("max(n)", offered - 1)] {
        assert_eq!(other["measures"][measure], exact, "{other}");
    }
    let unique = other["measures"]["unique(user_id)"].as_u64().expect("a number");
    assert!(unique.abs_diff(others) as f64 <= 4.5 * 0.017 * others as f64, "{unique} instead of {others}");
    for row in &rows[1..] {
        assert_eq!((&row["count"], &row["measures"]["unique(user_id)"]), (&1.into(), &1.into()), "{row}");
        assert!(row["measures"]["sum(n)"].as_u64() < Some(MOST_GROUPS), "{row}");
    }
}

#[test]
fn groups_without_end_are_counted_in_bounded_memory_on_the_embedded_store() {
    let daemon = Setup::new("endless").config(DEFINITIONS).start();
    check(&daemon);
    daemon.terminate();
}

#[test]
fn groups_without_end_are_counted_in_bounded_memory_on_mongodb() {
    let Some(services) = services() else { return };
    let daemon = Setup::new("endless")
        .config(DEFINITIONS)
        .set("store.kind", "mongodb")
        .set("store.url", format!("mongodb://{}/?directConnection=true", services.mongodb.address()))
        .set("store.database", "endless")
        .start();
    check(&daemon);
    daemon.terminate();
}
