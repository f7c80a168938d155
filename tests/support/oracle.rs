//! Decides whether the daemon kept its promises. While daemons run it compares what was acknowledged with the archive,
//! and the aggregates with those computed anew from the archive; afterwards its `audit` holds everything against
//! the log itself.

mod audit;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};
use mongodb::bson::Document;
use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use self::audit::Verdict;
use super::{
    archive::Archive,
    daemon::Daemon,
    events::{Ledger, archived_form},
    log::{self, Bucket},
};

pub type Counts = BTreeMap<Bucket, u64>;

pub struct Oracle<'a> {
    ledger: &'a Ledger,
    archive: Archive,
    /// Values that came into the log by another way than HTTP; each must stand there once.
    foreign: Vec<Vec<u8>>,
    /// Those of them that are events, and that the store refuses for good: each is a dead letter, and is not counted.
    refused: Vec<Vec<u8>>,
}

/// The fields of an event that aggregates use.
#[derive(Deserialize)]
struct Known {
    n: Option<u64>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    client_id: Option<String>,
    timestamp: Option<String>,
}

impl<'a> Oracle<'a> {
    pub fn new(ledger: &'a Ledger, archive: Archive) -> Self {
        Self { ledger, archive, foreign: Vec::new(), refused: Vec::new() }
    }

    pub fn expect_foreign(&mut self, value: &[u8]) {
        self.foreign.push(value.to_vec());
    }

    /// The same, of an event that the store refuses for good.
    pub fn expect_refused(&mut self, value: &[u8]) {
        self.expect_foreign(value);
        self.refused.push(value.to_vec());
    }

    /// Waits until the archive and the aggregates hold all that was acknowledged, and each record once. `daemons` are
    /// all processes: their lag must have gone; the first is asked for the aggregates.
    #[track_caller]
    pub fn settle(&mut self, daemons: &[&Daemon], within: Duration) {
        self.until(within, daemons, |oracle| {
            oracle.archive_fault()?;
            let lags = daemons.iter().filter(|daemon| daemon.exit().is_none());
            let lag: f64 = lags.filter_map(|daemon| daemon.metric("ingestd_lag_records")).sum();
            if lag != 0.0 {
                return Err(format!("a lag of {lag} records"));
            }
            differences(&oracle.expected_counts(), &oracle.queried_counts(daemons[0]))
        });
    }

    /// Waits until the archive holds all that was acknowledged.
    #[track_caller]
    pub fn settle_archive(&mut self, within: Duration) {
        self.until(within, &[], Self::archive_fault);
    }

    /// Compares MongoDB's own documents with the archive.
    #[track_caller]
    pub fn check_documents(&self, documents: &[Document]) {
        let mut counts = Counts::new();
        for ((_, bucket), stored) in documents.iter().map(log::bucket) {
            *counts.entry(bucket).or_default() += stored.count;
        }
        differences(&self.expected_counts(), &counts).expect("the collection holds what the archive does");
    }

    /// Records in the archive.
    pub fn archived(&self) -> usize {
        self.archive.lines().count()
    }

    /// Records `from` to `to` of this partition were gone before they could be archived.
    pub fn expect_gap(&mut self, partition: i32, from: u64, to: u64) {
        self.archive.expect_gap(partition, from, to);
    }

    /// Reads the archive's new objects.
    pub fn refresh(&mut self) {
        self.archive.refresh();
    }

    /// The largest offset in the archive, of a topic with one partition.
    pub fn last_archived(&self) -> u64 {
        self.archive.lines().map(|line| line.offset).max().expect("something is archived")
    }

    /// Records in the archive that are valid events.
    pub fn valid(&self) -> u64 {
        self.expected_counts().values().sum()
    }

    #[track_caller]
    fn until(&mut self, within: Duration, daemons: &[&Daemon], mut check: impl FnMut(&mut Self) -> Result<(), String>) {
        let deadline = Instant::now() + within;
        while let Err(missing) = check(self) {
            if Instant::now() >= deadline {
                let said: Vec<String> = daemons.iter().map(|daemon| daemon.account()).collect();
                panic!("after {within:?} still: {missing}\n{}", said.join("\n"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// `Err` for what may still come; panics for what no waiting mends.
    fn archive_fault(&mut self) -> Result<(), String> {
        // The order matters: what is read afterwards has been entered before it was sent.
        self.archive.refresh();
        let sent = self.ledger.sent();
        let mut found: BTreeMap<u64, Vec<Option<&str>>> = BTreeMap::new();
        let mut foreign: Vec<&[u8]> = self.foreign.iter().map(Vec::as_slice).collect();
        for line in self.archive.lines() {
            let value = line.value.as_deref().unwrap_or_default();
            let Some(n) = known(line.value.as_deref()).and_then(|known| known.n) else {
                let expected = foreign.iter().position(|expected| *expected == value);
                let at = expected.unwrap_or_else(|| panic!("never sent, or twice: {}", String::from_utf8_lossy(value)));
                foreign.swap_remove(at);
                continue;
            };
            let event = sent.get(&n).unwrap_or_else(|| panic!("event {n} was never sent"));
            let expected = archived_form(&event.bytes);
            assert_eq!(String::from_utf8_lossy(value), String::from_utf8_lossy(&expected), "event {n} was changed");
            assert_eq!(line.id.is_none(), event.own_id, "event {n}: the id that the server assigned, and only that");
            found.entry(n).or_default().push(line.id.as_deref());
        }
        let mut missing = foreign.len();
        for (n, event) in &sent {
            let copies = found.get(n).map(Vec::as_slice).unwrap_or_default();
            let Some(id) = &event.acknowledged else { continue };
            let most = 1 + event.uncertain;
            assert!(copies.len() <= most, "event {n} stands {} times, at most {most} are explained", copies.len());
            let with_its_id = copies.iter().filter(|assigned| assigned.is_none_or(|assigned| assigned == id)).count();
            missing += usize::from(with_its_id == 0);
            assert!(event.own_id || with_its_id <= 1, "event {n}: the record that was acknowledged stands twice");
        }
        if missing > 0 { Err(format!("{missing} of {} events are not archived", sent.len())) } else { Ok(()) }
    }

    /// Where a record counts; `None` for what is no event, or refused.
    fn bucket(&self, value: Option<&[u8]>, received: DateTime<Utc>) -> Option<Bucket> {
        let refused = self.refused.iter().any(|refused| Some(refused.as_slice()) == value);
        known(value).filter(|_| !refused).and_then(|known| known.bucket(received))
    }

    /// The aggregates as they follow from the archive.
    fn expected_counts(&self) -> Counts {
        let mut counts = Counts::new();
        for line in self.archive.lines() {
            if let Some(bucket) = self.bucket(line.value.as_deref(), line.received) {
                *counts.entry(bucket).or_default() += 1;
            }
        }
        counts
    }

    fn queried_counts(&self, daemon: &Daemon) -> Counts {
        let expected = self.expected_counts();
        let from = expected.keys().map(|bucket| bucket.0).min().unwrap_or_else(Utc::now);
        let to = expected.keys().map(|bucket| bucket.0).max().unwrap_or_else(Utc::now);
        query(daemon, from - TimeDelta::days(1), to + TimeDelta::days(1))
    }
}

/// The rows of `events_by_type`, after the checks that hold for every answer. Bounds are cut down to window starts.
pub fn query(daemon: &Daemon, from: DateTime<Utc>, to: DateTime<Utc>) -> Counts {
    let bound = |time: DateTime<Utc>| {
        let window = time.duration_trunc(TimeDelta::minutes(1)).expect("a time of today");
        window.to_rfc3339_opts(SecondsFormat::Secs, true)
    };
    let path = format!("/v1/aggregates/events_by_type?from={}&to={}&limit=1000000", bound(from), bound(to));
    let reply = daemon.get(&path);
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    assert_eq!((&answer["aggregate"], &answer["window"]), (&"events_by_type".into(), &"1m".into()), "{answer}");
    assert_ne!(answer["truncated"], true, "{answer}");
    let rows = answer["rows"].as_array().expect("rows");
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let windows: Vec<_> = rows.iter().map(|row| row["window_start"].as_str().expect("window_start")).collect();
    assert!(windows.is_sorted(), "rows are sorted by window: {windows:?}");
    let mut counts = Counts::new();
    for row in rows {
        let window =
            DateTime::parse_from_rfc3339(row["window_start"].as_str().expect("it was above")).expect("RFC 3339");
        let group = &row["group"];
        assert!(group.get("client_id").is_some(), "a missing field is null: {row}");
        let bucket = (window.to_utc(), text(&group["client_id"]), text(&group["type"]));
        *counts.entry(bucket).or_default() += row["count"].as_u64().expect("count");
    }
    counts
}

/// The fields of a value that is JSON.
fn known(value: Option<&[u8]>) -> Option<Known> {
    serde_json::from_slice(value?).ok()
}

impl Known {
    /// Where an event counts, by what design section 3 calls the window of the event's own time. `None` for what is no
    /// event.
    fn bucket(self, received: DateTime<Utc>) -> Option<Bucket> {
        let event_type = self.event_type?;
        let time = self.timestamp.map(|time| DateTime::parse_from_rfc3339(&time).expect("we sent RFC 3339").to_utc());
        let window = time.unwrap_or(received).duration_trunc(TimeDelta::minutes(1)).expect("a time of today");
        // A longer value is counted under its hash (design, 5.4).
        let client = self.client_id.map(|client| {
            let text = serde_json::to_string(&client).expect("a string");
            if text.len() > 64 << 10 { format!("sha256:{}", hex::encode(Sha256::digest(text))) } else { client }
        });
        Some((window, client, Some(event_type)))
    }
}

fn differences(expected: &Counts, found: &Counts) -> Result<(), String> {
    let buckets: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let different = buckets.into_iter().filter(|bucket| expected.get(bucket) != found.get(bucket));
    let shown: Vec<_> = different
        .map(|bucket| format!("{bucket:?}: {:?} in the archive, {:?} counted", expected.get(bucket), found.get(bucket)))
        .collect();
    let totals = (expected.values().sum::<u64>(), found.values().sum::<u64>());
    match shown.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} buckets differ (totals {totals:?}), the first: {first}", shown.len())),
    }
}

mod tests {
    //! An oracle that never says no would let everything pass.

    use std::{fs, path::Path};

    use super::*;
    use crate::support::events::Sent;

    const HOUR: &str = "topic=events/date=2026-11-23/hour=08";

    pub(super) fn ledger() -> Ledger {
        let sent = |n: u64| Sent {
            bytes: format!("{{\"n\":{n},\r\n\"type\":\"a\"}}").into_bytes(),
            acknowledged: Some(format!("id-{n}")),
            own_id: n != 1,
            uncertain: 0,
        };
        Ledger::of((0..3).map(|n| (n, sent(n))).collect())
    }

    pub(super) fn line(offset: u64, n: u64) -> String {
        let id = if n == 1 { r#""id":"id-1","# } else { "" };
        format!(r#"{{"offset":{offset},"received":"2026-11-23T08:00:00.123Z",{id}"event":{{"n":{n},  "type":"a"}}}}"#)
    }

    pub(super) fn object(root: &Path, start: u64, lines: &[String]) {
        let folder = root.join(HOUR);
        fs::create_dir_all(&folder).unwrap();
        let content = zstd::encode_all(format!("{}\n", lines.join("\n")).as_bytes(), 1).unwrap();
        fs::write(folder.join(format!("0-{start:020}.ndjson.zst")), content).unwrap();
    }

    fn fault(objects: &[(u64, &[String])]) -> Result<(), String> {
        let root = tempfile::tempdir().unwrap();
        for (start, lines) in objects {
            object(root.path(), *start, lines);
        }
        Oracle::new(&ledger(), Archive::local(root.path())).archive_fault()
    }

    #[test]
    fn each_event_once_in_a_chain_is_right() {
        assert_eq!(fault(&[(0, &[line(0, 0), line(1, 1)]), (2, &[line(2, 2)])]), Ok(()));
    }

    #[test]
    fn a_missing_event_is_missed() {
        assert!(fault(&[(0, &[line(0, 0), line(1, 1)])]).is_err());
    }

    #[test]
    #[should_panic(expected = "stands 2 times")]
    fn an_event_that_stands_twice_is_wrong() {
        let _ = fault(&[(0, &[line(0, 0), line(1, 1), line(2, 2), line(3, 2)])]);
    }

    #[test]
    #[should_panic(expected = "does not chain")]
    fn a_gap_in_the_chain_is_wrong() {
        let _ = fault(&[(0, &[line(0, 0), line(1, 1)]), (3, &[line(3, 2)])]);
    }

    #[test]
    #[should_panic(expected = "was changed")]
    fn a_changed_byte_is_wrong() {
        let _ = fault(&[(0, &[line(0, 0).replace("  ", " ")])]);
    }

    #[test]
    #[should_panic(expected = "never sent")]
    fn an_event_that_nobody_sent_is_wrong() {
        let _ = fault(&[(0, &[line(0, 0), line(1, 9)])]);
    }

    #[test]
    fn a_bucket_that_counts_too_much_differs() {
        let bucket: Bucket = (DateTime::UNIX_EPOCH, None, Some("a".to_owned()));
        let counts = |count| Counts::from([(bucket.clone(), count)]);
        assert!(differences(&counts(2), &counts(2)).is_ok());
        assert!(differences(&counts(2), &counts(3)).is_err());
        assert!(differences(&counts(2), &Counts::new()).is_err());
    }
}
