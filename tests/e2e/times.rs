//! Times as programs write them: what the door says of each, and the window in which it is counted.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    http::Reply,
};

/// What programs write by default at some moment of the minute from [`MINUTE`] on, as JSON.
const TAKEN: [(&str, &str); 38] = [
    ("Python: isoformat", r#""2024-11-28T08:00:00.123456+00:00""#),
    ("Python: str", r#""2024-11-28 08:00:00.123456+00:00""#),
    ("Python: time.time()", "1732780800.1234567"),
    ("Python: time.time_ns()", "1732780800123456789"),
    ("pydantic, orjson", r#""2024-11-28T08:00:00Z""#),
    ("pandas: to_json", "1732780800123"),
    ("JavaScript: toISOString", r#""2024-11-28T08:00:00.123Z""#),
    ("JavaScript: Date.now()", "1732780800123"),
    ("Java: Instant", r#""2024-11-28T08:00:00.123456Z""#),
    ("Java: OffsetDateTime", r#""2024-11-28T08:00Z""#),
    ("Java: ZonedDateTime", r#""2024-11-28T09:00+01:00[Europe/Berlin]""#),
    ("Jackson: Instant", "1732780800.123456789"),
    ("log4j", r#""2024-11-28T08:00:00.123+0000""#),
    ("log4j: ISO8601_OFFSET_DATE_TIME_HHMM", r#""2024-11-28T09:00:00,123+0100""#),
    ("Go: RFC3339Nano", r#""2024-11-28T09:00:00.123456789+01:00""#),
    ("Go: UnixMicro", "1732780800123456"),
    ("PHP: DATE_ATOM", r#""2024-11-28T08:00:00+00:00""#),
    ("PHP: DATE_ISO8601", r#""2024-11-28T08:00:00+0000""#),
    ("PHP: microtime(true)", "1732780800.1235"),
    ("Ruby: iso8601", r#""2024-11-28T03:00:00-05:00""#),
    ("Ruby: to_json", r#""2024-11-28 03:00:00 -0500""#),
    ("Ruby: to_json, UTC", r#""2024-11-28 08:00:00 UTC""#),
    ("Rust: chrono", r#""2024-11-28T08:00:00.123456789Z""#),
    ("MongoDB: $dateToString", r#""2024-11-28T08:00:00.123Z""#),
    ("PostgreSQL", r#""2024-11-28 08:00:00.123456+00""#),
    ("PostgreSQL: extract(epoch)", "1732780800.123456"),
    ("DuckDB", r#""2024-11-28 09:00:00+01""#),
    ("SQLite: unixepoch", "1732780800"),
    ("Fluent Bit: double", "1732780800.123457"),
    ("collectd", "1732780800.123"),
    ("Telegraf", "1732780800"),
    ("Snowplow: dtm", r#""1732780800123""#),
    ("OTLP: timeUnixNano", r#""1732780800123456789""#),
    ("syslog-ng: $UNIXTIME", r#""1732780800""#),
    ("Lua: a float", "1.7327808e+12"),
    ("in small letters", r#""2024-11-28t08:00:00z""#),
    ("escaped", r#""2024-11-28\u002008:00:00\u005a""#),
    ("many decimals", r#""2024-11-28T08:00:59.99999999999999999999Z""#),
];
const MINUTE: &str = "2024-11-28T08:00:00Z";

/// What cannot be read without a guess, or is absurd.
const NAMED: [(&str, &str); 19] = [
    ("Python: utcnow().isoformat()", r#""2024-11-28T08:00:00.123456""#),
    ("Python: logging", r#""2024-11-28 08:00:00,123""#),
    ("SQLite: datetime()", r#""2024-11-28 08:00:00""#),
    ("pandas: iso", r#""2024-11-28T08:00:00.000""#),
    ("Java: LocalDateTime", r#""2024-11-28T08:00""#),
    ("Java: Date", r#""Thu Nov 28 08:00:00 UTC 2024""#),
    ("HTTP", r#""Thu, 28 Nov 2024 08:00:00 GMT""#),
    ("a zone alone", r#""2024-11-28T08:00:00[Europe/Berlin]""#),
    ("a date", r#""2024-11-28""#),
    ("a date in digits", r#""20241128""#),
    ("Go: the zero time", r#""0001-01-01T00:00:00Z""#),
    ("before 1970", r#""1969-12-31T23:59:59.999Z""#),
    ("a negative number", "-1"),
    ("the last millisecond", r#""9999-12-31T23:59:59.999Z""#),
    ("beyond all", "1e300"),
    ("words", r#""yesterday""#),
    ("nothing", r#""""#),
    ("a boolean", "true"),
    ("an object", r#"{"$date":"2024-11-28T08:00:00Z"}"#),
];

/// What the door names, and no reader of the log mistakes.
const ODD: [(&str, &str); 2] =
    [("a second 60", r#""2024-11-28T08:00:60Z""#), ("U+2212", "\"2024-11-28T07:01:00\u{2212}01:00\"")];
const ODD_MINUTE: &str = "2024-11-28T08:01:00Z";

fn event((name, time): (&str, &str)) -> String {
    format!(r#"{{"type":"{name}","timestamp":{time}}}"#)
}

fn post(daemon: &Daemon, events: &[String]) -> Reply {
    daemon.post(None, format!("[{}]", events.join(",")).as_bytes())
}

/// Index and code of each, and that it says something.
fn remarks(reply: &Reply, name: &str) -> Vec<(u64, String)> {
    let json = reply.json();
    let remark = |remark: &Value| {
        assert!(remark["message"].as_str().is_some_and(|message| message.len() > 20), "{remark}");
        (remark["index"].as_u64().expect("an index"), remark["code"].as_str().expect("a code").to_owned())
    };
    json[name].as_array().map(|all| all.iter().map(remark).collect()).unwrap_or_default()
}

fn invalid(indexes: std::ops::Range<usize>) -> Vec<(u64, String)> {
    indexes.map(|index| (index as u64, "invalid_timestamp".to_owned())).collect()
}

/// The events of each type, in the windows from the one of `from` to that of `to`.
fn counted(daemon: &Daemon, from: DateTime<Utc>, to: DateTime<Utc>) -> BTreeMap<String, u64> {
    let minute = TimeDelta::minutes(1);
    let start = |time: DateTime<Utc>| {
        time.duration_trunc(minute).expect("a time of today").to_rfc3339_opts(SecondsFormat::Secs, true)
    };
    let path = format!("/v1/aggregates/events_by_type?from={}&to={}", start(from), start(to + minute));
    let reply = daemon.get(&path);
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut counts = BTreeMap::new();
    for row in reply.json()["rows"].as_array().expect("rows") {
        *counts.entry(row["group"]["type"].as_str().expect("a type").to_owned()).or_default() +=
            row["count"].as_u64().expect("a count");
    }
    counts
}

fn once(events: &[(&str, &str)]) -> BTreeMap<String, u64> {
    events.iter().map(|(name, _)| ((*name).to_owned(), 1)).collect()
}

fn instant(text: &str) -> DateTime<Utc> {
    text.parse().expect("RFC 3339")
}

#[track_caller]
fn wait_counted(daemon: &Daemon, events: usize) {
    eventually("all is counted and archived", PATIENCE, || {
        let has = |name: &str| daemon.metric(name).is_some_and(|count| count >= events as f64);
        (has("ingestd_events_aggregated_total") && has("ingestd_events_archived_total")).then_some(())
    });
}

#[test]
fn a_time_counts_in_its_own_window_however_a_program_writes_it_and_any_other_in_that_of_its_receipt() {
    let mut daemon = Setup::new("times-taken").start();
    let before = Utc::now();
    let events: Vec<_> = TAKEN.iter().chain(&NAMED).chain(&ODD).map(|entry| event(*entry)).collect();
    let reply = post(&daemon, &events);
    let after = Utc::now();
    assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(events.len())), "{reply:?}");
    assert_eq!(reply.json().get("errors"), None, "{reply:?}");
    assert_eq!(remarks(&reply, "warnings"), invalid(TAKEN.len()..events.len()), "{reply:?}");
    let plain = daemon.post(None, event(TAKEN[0]).replace("Python: isoformat", "alone").as_bytes());
    assert_eq!((plain.status, plain.json().get("warnings")), (200, None), "{plain:?}");

    wait_counted(&daemon, events.len() + 1);
    let mut taken = once(&TAKEN);
    taken.insert("alone".to_owned(), 1);
    let check = |daemon: &Daemon| {
        assert_eq!(counted(daemon, instant(MINUTE), instant(MINUTE)), taken);
        assert_eq!(counted(daemon, before, after), once(&NAMED));
        assert_eq!(counted(daemon, instant(ODD_MINUTE), instant(ODD_MINUTE)), once(&ODD));
    };
    check(&daemon);
    let warned = (NAMED.len() + ODD.len()) as f64;
    assert_eq!(daemon.metric("ingestd_events_warned_total"), Some(warned));
    assert_eq!(daemon.metric("ingestd_events_dead_lettered_total"), Some(0.0));
    assert_eq!(daemon.metric("ingestd_events_rejected_total"), None);

    let archived = daemon.run(&["archive", "cat"]);
    let lines = String::from_utf8(archived.stdout).expect("text");
    for event in &events {
        assert!(lines.contains(&format!("\"event\":{event}}}")), "{event} stands as it came in: {lines}");
    }
    daemon.kill();
    daemon.wait_exit(PATIENCE);
    daemon.restart();
    check(&daemon);
    daemon.terminate();
}

#[test]
fn where_the_configuration_says_so_a_time_that_is_not_believed_is_refused() {
    let daemon = Setup::new("times-refused").set("event.on_invalid_time", "reject").start();
    let events: Vec<_> = TAKEN.iter().chain(&NAMED).chain(&ODD).map(|entry| event(*entry)).collect();
    let reply = post(&daemon, &events);
    assert_eq!((reply.status, &reply.json()["accepted"]), (207, &json!(TAKEN.len())), "{reply:?}");
    assert_eq!(remarks(&reply, "errors"), invalid(TAKEN.len()..events.len()), "{reply:?}");
    assert_eq!(reply.json().get("warnings"), None, "{reply:?}");
    let alone = daemon.post(None, event(NAMED[0]).as_bytes());
    assert_eq!((alone.status, remarks(&alone, "errors")), (400, invalid(0..1)), "{alone:?}");
    wait_counted(&daemon, TAKEN.len());
    assert_eq!(counted(&daemon, instant(MINUTE), instant(MINUTE)), once(&TAKEN));
    assert_eq!(counted(&daemon, Utc::now() - TimeDelta::minutes(10), Utc::now()), BTreeMap::new());
    assert_eq!(daemon.metric("ingestd_events_warned_total"), None);
    daemon.terminate();
}

#[test]
fn a_time_ahead_of_its_receipt_is_believed_as_far_as_the_configuration_says() {
    for (max_future, near, far) in [("1day", 23 * 60 + 50, 24 * 60 + 10), ("1h", 50, 70)] {
        let daemon = Setup::new("times-ahead").set("event.max_future", max_future).start();
        let now = Utc::now();
        let ahead = |minutes| now + TimeDelta::minutes(minutes);
        let number = |time: DateTime<Utc>| time.timestamp_millis().to_string();
        let text = |time: DateTime<Utc>| format!("\"{}\"", time.to_rfc3339_opts(SecondsFormat::Millis, true));
        let events = [
            event(("near", &text(ahead(near)))),
            event(("near", &number(ahead(near)))),
            event(("far", &text(ahead(far)))),
            event(("far", &number(ahead(far)))),
        ];
        let reply = post(&daemon, &events);
        assert_eq!((reply.status, remarks(&reply, "warnings")), (200, invalid(2..4)), "{max_future}: {reply:?}");
        wait_counted(&daemon, events.len());
        let two = |name: &str| BTreeMap::from([(name.to_owned(), 2)]);
        assert_eq!(counted(&daemon, ahead(near), ahead(near)), two("near"), "{max_future}");
        assert_eq!(counted(&daemon, now, Utc::now()), two("far"), "{max_future}");
        daemon.terminate();
    }
}

/// What a change of the bounds means for records that were counted, and for those that were not.
#[test]
fn a_change_of_how_far_times_may_lie_holds_for_what_comes() {
    let mut daemon = Setup::new("times-changed").set("event.max_past", "1h").start();
    let now = Utc::now();
    let (own, receipt) = (now - TimeDelta::minutes(90), now);
    let late = |name: &str| event((name, &format!("\"{}\"", own.to_rfc3339_opts(SecondsFormat::Millis, true))));
    let reply = post(&daemon, &[late("before")]);
    assert_eq!((reply.status, remarks(&reply, "warnings")), (200, invalid(0..1)), "{reply:?}");
    wait_counted(&daemon, 1);
    daemon.terminate();
    daemon.wait_exit(PATIENCE);
    daemon.set("event.max_past", "2h");
    daemon.restart();
    let reply = post(&daemon, &[late("after")]);
    assert_eq!((reply.status, reply.json().get("warnings")), (200, None), "{reply:?}");
    wait_counted(&daemon, 1);
    let once = |name: &str| BTreeMap::from([(name.to_owned(), 1)]);
    assert_eq!(counted(&daemon, own, own), once("after"));
    assert_eq!(counted(&daemon, receipt, Utc::now()), once("before"));
    daemon.terminate();
}

#[test]
fn windows_are_kept_for_so_long_and_what_belongs_to_earlier_ones_is_not_counted() {
    let aggregate = "[[aggregate]]\nname = \"short\"\nwindow = \"1s\"\ngroup_by = [\"type\"]\nretention = \"4s\"\n";
    let daemon = Setup::new("times-kept").config(aggregate).start();
    let late = (Utc::now() - TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Millis, true);
    let reply = post(&daemon, &[event(("now", "null")), event(("late", &format!("\"{late}\"")))]);
    assert_eq!(reply.status, 200, "{reply:?}");
    wait_counted(&daemon, 1);
    let rows = || {
        let reply = daemon.get("/v1/aggregates/short?from=1970-01-01T00:00:00Z");
        reply.json()["rows"].as_array().unwrap_or_else(|| panic!("{reply:?}")).len()
    };
    assert_eq!(rows(), 1);
    assert_eq!(daemon.try_metric("ingestd_events_expired_total", "aggregate=\"short\""), Some(1.0));
    eventually("the window is removed", PATIENCE, || (rows() == 0).then_some(()));
    daemon.terminate();
}
