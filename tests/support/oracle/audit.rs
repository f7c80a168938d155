//! The whole account, when the faults are over and no daemon writes any more: what was acknowledged against the log,
//! and the log against the archive, the aggregates, the dead letters and the processed events.
//!
//! Nothing is asserted here: a run goes to its end, and its verdict names everything that is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use chrono::DateTime;

use super::{Oracle, known};
use crate::support::{
    archive::{ChainFaults, Line},
    events::{Sent, archived_form},
    log::{Bucket, Evidence, Letter, LogRecord, Stored},
    measured,
};

/// What was found. Each line names one record, bucket or letter.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records in the log.
    pub records: usize,
    pub objects: usize,
    /// Promised, or in the log, and not where it belongs.
    pub lost: Vec<String>,
    /// In a place more often than it came.
    pub doubled: Vec<String>,
    /// Not the bytes, the id, the key or the number that it was.
    pub changed: Vec<String>,
    /// Nobody sent it, or the log has nothing of it.
    pub invented: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.faults().all(|(_, faults)| faults.is_empty())
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }

    fn faults(&self) -> impl Iterator<Item = (&'static str, &Vec<String>)> {
        [("lost", &self.lost), ("doubled", &self.doubled), ("changed", &self.changed), ("invented", &self.invented)]
            .into_iter()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        write!(f, "{} records in the log, {} objects", self.records, self.objects)?;
        for (what, faults) in self.faults() {
            write!(f, "; {what}: {}", faults.len())?;
            for fault in faults.iter().take(SHOWN) {
                write!(f, "\n    {fault}")?;
            }
        }
        Ok(())
    }
}

/// Where a record stands.
type Position = (i32, u64);

impl Oracle<'_> {
    /// Holds everything against the log. Reads the archive once more.
    pub fn audit(&mut self, evidence: &Evidence) -> Verdict {
        self.archive.read_new();
        let ChainFaults { gaps, overlaps } = self.archive.chain_faults();
        let mut verdict = Verdict {
            records: evidence.log.len(),
            objects: self.archive.objects(),
            lost: gaps,
            doubled: overlaps,
            ..Verdict::default()
        };
        let log: BTreeMap<Position, &LogRecord> =
            evidence.log.iter().map(|record| ((record.partition, record.offset), record)).collect();
        self.log_against_ledger(&evidence.log, &mut verdict);
        archive_against_log(self.archive.lines(), &log, &mut verdict);
        let received = |record: &LogRecord| DateTime::from_timestamp_millis(record.received);
        let bucket_of = |record: &LogRecord| self.bucket(record.value.as_deref(), received(record)?);
        let (mut events, mut others) = (Vec::new(), Vec::new());
        for record in log.values() {
            match bucket_of(record) {
                Some(bucket) => events.push((*record, bucket)),
                None => others.push(*record),
            }
        }
        buckets_against_log(&evidence.buckets, &events, &mut verdict);
        measured_against_log(&evidence.measured, &events, &mut verdict);
        letters_against_log(&evidence.letters, &evidence.topic, &others, &mut verdict);
        if let Some(documents) = &evidence.events {
            events_against_log(documents, &evidence.topic, &events, &mut verdict);
        }
        verdict
    }

    /// Every 2xx stands in the log, no event more often than its requests explain, and nothing that nobody sent.
    fn log_against_ledger(&self, log: &[LogRecord], verdict: &mut Verdict) {
        let sent = self.ledger.sent();
        let mut foreign: Vec<&[u8]> = self.foreign.iter().map(Vec::as_slice).collect();
        let mut copies: BTreeMap<u64, Vec<Option<&str>>> = BTreeMap::new();
        for record in log {
            let at = name(record);
            let value = record.value.as_deref().unwrap_or_default();
            match known(Some(value)).and_then(|known| known.n).and_then(|n| Some((n, sent.get(&n)?))) {
                Some((n, event)) => {
                    copies.entry(n).or_default().push(record.header("id"));
                    check_record(record, event, &at, verdict);
                }
                None => match foreign.iter().position(|expected| *expected == value) {
                    Some(index) => drop(foreign.swap_remove(index)),
                    None => verdict.invented.push(format!("{at} in the log: {}", short(value))),
                },
            }
        }
        verdict.lost.extend(foreign.iter().map(|value| format!("another program's record {}", short(value))));
        for (n, event) in &sent {
            let copies = copies.get(n).map(Vec::as_slice).unwrap_or_default();
            let Some(id) = &event.acknowledged else { continue };
            let with_its_id = copies.iter().filter(|assigned| assigned.is_none_or(|assigned| assigned == id)).count();
            let most = 1 + event.uncertain;
            if with_its_id == 0 {
                verdict.lost.push(format!("event {n} had its 2xx with id {id} and is not in the log"));
            } else if copies.len() > most || (!event.own_id && with_its_id > 1) {
                let copies = copies.len();
                verdict
                    .doubled
                    .push(format!("event {n} stands {copies} times in the log, at most {most} are explained"));
            }
        }
    }
}

fn check_record(record: &LogRecord, event: &Sent, at: &str, verdict: &mut Verdict) {
    let value = record.value.as_deref().unwrap_or_default();
    if value != event.bytes {
        verdict.changed.push(format!("{at} in the log: {} instead of {}", short(value), short(&event.bytes)));
    }
    if record.header("id").is_none() != event.own_id {
        verdict.changed.push(format!("{at} in the log: its assigned id is {:?}", record.header("id")));
    }
    let client = known(Some(&event.bytes)).and_then(|known| known.client_id);
    if record.key.as_deref() != client.as_deref().map(str::as_bytes) {
        verdict.changed.push(format!("{at} in the log: its key is {:?} instead of {client:?}", record.key));
    }
}

/// Each record stands once, at its offset, with its bytes.
fn archive_against_log<'a>(
    lines: impl Iterator<Item = &'a Line>,
    log: &BTreeMap<Position, &LogRecord>,
    verdict: &mut Verdict,
) {
    let mut archived = BTreeSet::new();
    for line in lines {
        let position = (line.partition, line.offset);
        let Some(record) = log.get(&position) else {
            verdict.invented.push(format!("{position:?} in the archive, which the log does not hold"));
            continue;
        };
        if !archived.insert(position) {
            verdict.doubled.push(format!("{} in the archive", name(record)));
        }
        if let Some(difference) = difference(line, record) {
            verdict.changed.push(format!("{} in the archive: {difference}", name(record)));
        }
    }
    let missing = log.iter().filter(|(position, _)| !archived.contains(position));
    verdict.lost.extend(missing.map(|(_, record)| format!("{} is not in the archive", name(record))));
}

fn difference(line: &Line, record: &LogRecord) -> Option<String> {
    let json = record.value.as_deref().is_some_and(|value| {
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok();
        is_json && std::str::from_utf8(value).is_ok_and(|text| ingestd::internals::event::check(text).is_ok())
    });
    let value = if json { record.value.as_deref().map(archived_form) } else { record.value.clone() };
    if line.raw == json || line.value != value {
        let [found, expected] = [&line.value, &value].map(|value| short(value.as_deref().unwrap_or_default()));
        return Some(format!("{found} instead of {expected}"));
    }
    if line.received.timestamp_millis() != record.received {
        return Some(format!("received {} instead of {}", line.received, record.received));
    }
    if line.id.as_deref() != record.header("id") {
        return Some(format!("the id {:?}", line.id));
    }
    let held = known(record.value.as_deref()).and_then(|known| known.client_id);
    let key = record.key.clone().filter(|key| held.as_deref().map(str::as_bytes) != Some(key));
    if line.key != key {
        return Some(format!("the key {:?} instead of {key:?}", line.key));
    }
    let mut headers = record.headers.iter().filter(|(name, _)| name != "id");
    let same = line.headers.iter().all(|header| headers.next() == Some(header)) && headers.next().is_none();
    (!same).then(|| format!("the headers {:?}", line.headers))
}

/// Each bucket of a partition counts what the log says, and its fence is the last record that it counts.
fn buckets_against_log(
    buckets: &BTreeMap<(i32, Bucket), Stored>,
    events: &[(&LogRecord, Bucket)],
    verdict: &mut Verdict,
) {
    let mut expected: BTreeMap<(i32, Bucket), Stored> = BTreeMap::new();
    for (record, bucket) in events {
        let key = (record.partition, bucket.clone());
        let counted = expected.entry(key).or_insert(Stored { count: 0, last_offset: 0 });
        counted.count += 1;
        counted.last_offset = record.offset;
    }
    for (key, wanted) in &expected {
        let name = || format!("the bucket {key:?}");
        match buckets.get(key) {
            None => verdict.lost.push(format!("{} is missing: {wanted:?}", name())),
            Some(found) if found.count < wanted.count => {
                verdict.lost.push(format!("{} counts {} of {}", name(), found.count, wanted.count));
            }
            Some(found) if found.count > wanted.count => {
                verdict.doubled.push(format!("{} counts {} instead of {}", name(), found.count, wanted.count));
            }
            Some(found) if found != wanted => {
                verdict.changed.push(format!("{}: {found:?} instead of {wanted:?}", name()));
            }
            Some(_) => {}
        }
    }
    let unknown = buckets.iter().filter(|(key, _)| !expected.contains_key(key));
    verdict.invented.extend(unknown.map(|(key, stored)| format!("the bucket {key:?}: {stored:?}")));
}

/// The same of the aggregates that measure more, and of all that they measure.
fn measured_against_log(
    buckets: &BTreeMap<measured::Key, measured::Bucket>,
    events: &[(&LogRecord, Bucket)],
    verdict: &mut Verdict,
) {
    let events = events.iter().map(|(record, (time, client, _))| measured::Event {
        partition: record.partition,
        offset: record.offset,
        value: record.value.as_deref().unwrap_or_default(),
        time: *time,
        client: client.as_deref(),
    });
    let expected = measured::expected(events);
    for (key, wanted) in &expected {
        let name = || format!("the bucket {key:?}");
        let Some(found) = buckets.get(key) else {
            verdict.lost.push(format!("{} is missing: {} records", name(), wanted.count));
            continue;
        };
        if found.count != wanted.count {
            let wrong = if found.count < wanted.count { &mut verdict.lost } else { &mut verdict.doubled };
            wrong.push(format!("{} counts {} instead of {}", name(), found.count, wanted.count));
        } else if found.last_offset != wanted.last_offset {
            let (found, wanted) = (found.last_offset, wanted.last_offset);
            verdict.changed.push(format!("{}: its fence is {found} instead of {wanted}", name()));
        } else if let Some(difference) = wanted.difference(key.0, &found.state) {
            verdict.changed.push(format!("{}: {difference}, expected {wanted:?}", name()));
        }
    }
    let unknown = buckets.keys().filter(|key| !expected.contains_key(key));
    verdict.invented.extend(unknown.map(|key| format!("the bucket {key:?}")));
}

/// What is no event, or refused, has a letter, and nothing else has one.
fn letters_against_log(letters: &[Letter], topic: &str, others: &[&LogRecord], verdict: &mut Verdict) {
    let mut first: BTreeMap<&str, &Letter> = BTreeMap::new();
    for letter in letters {
        // Readers keep the first of each id.
        first.entry(&letter.id).or_insert(letter);
    }
    for record in others {
        match first.remove(id(topic, record).as_str()) {
            None => verdict.lost.push(format!("{} has no dead letter", name(record))),
            Some(letter) if letter.reason.is_empty() || !(letter.omitted || letter.value == record.value) => {
                verdict.changed.push(format!("the dead letter of {}: {}", name(record), letter.reason));
            }
            Some(_) => {}
        }
    }
    verdict.invented.extend(first.keys().map(|id| format!("the dead letter {id}")));
}

/// Each event is one document.
fn events_against_log(documents: &[String], topic: &str, events: &[(&LogRecord, Bucket)], verdict: &mut Verdict) {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    for event in documents {
        if !found.insert(event) {
            verdict.doubled.push(format!("the processed event {event}"));
        }
    }
    for (record, _) in events {
        if !found.remove(id(topic, record).as_str()) {
            verdict.lost.push(format!("the processed event of {}", name(record)));
        }
    }
    verdict.invented.extend(found.iter().map(|event| format!("the processed event {event}")));
}

/// Of dead letters and processed events.
fn id(topic: &str, record: &LogRecord) -> String {
    format!("{topic}/{}/{}", record.partition, record.offset)
}

fn name(record: &LogRecord) -> String {
    format!("partition {} offset {}", record.partition, record.offset)
}

fn short(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(&value[..value.len().min(200)]).into_owned();
    if value.len() > 200 { format!("{text}… ({} bytes)", value.len()) } else { text }
}

mod tests {
    //! Each of them takes a whole that is right, breaks one thing, and wants it to be found.

    use ingestd::internals::measure::Measures;

    use crate::support::{
        archive::Archive,
        events::Ledger,
        oracle::tests::{ledger, line, object},
    };

    use super::*;

    /// The log of the ledger's three events, and of a fourth record that is none.
    fn right() -> Evidence {
        let record = |offset: u64, value: &str, id: Option<&str>| LogRecord {
            partition: 0,
            offset,
            received: 1_795_420_800_123,
            key: None,
            value: Some(value.as_bytes().to_vec()),
            headers: id.map(|id| ("id".to_owned(), Some(id.as_bytes().to_vec()))).into_iter().collect(),
        };
        let event = |n: u64| format!("{{\"n\":{n},\r\n\"type\":\"a\"}}");
        let log = vec![
            record(0, &event(0), None),
            record(1, &event(1), Some("id-1")),
            record(2, &event(2), None),
            record(3, "no event", None),
        ];
        let window = DateTime::from_timestamp_millis(1_795_420_800_000).unwrap();
        let letter = |offset: u64| Letter {
            id: format!("events/0/{offset}"),
            reason: "invalid_json".to_owned(),
            value: Some(b"no event".to_vec()),
            omitted: false,
        };
        Evidence {
            topic: "events".to_owned(),
            log,
            buckets: [((0, (window, None, Some("a".to_owned()))), Stored { count: 3, last_offset: 2 })].into(),
            measured: measured_of(window),
            // Written twice, read once.
            letters: vec![letter(3), letter(3)],
            events: Some((0..3).map(|offset| format!("events/0/{offset}")).collect()),
        }
    }

    /// As the daemon counts these events; none of them has a cost.
    fn measured_of(window: DateTime<chrono::Utc>) -> BTreeMap<measured::Key, measured::Bucket> {
        let bucket = |name: &'static str, group: &str, numbers: &[u64]| {
            let bucket = measured::Bucket {
                count: numbers.len() as u64,
                last_offset: numbers[numbers.len() - 1],
                state: state(name, numbers),
            };
            ((name, 0, window.timestamp_millis(), group.to_owned()), bucket)
        };
        let first = (0..3).map(|n| bucket("first_ones", &format!("[{n}]"), &[n]));
        first.chain([bucket("costs", "[null,null]", &[0, 1, 2])]).collect()
    }

    fn state(name: &str, numbers: &[u64]) -> Vec<u8> {
        let (plan, mut measures) = (measured::plan(name), Measures::default());
        for n in numbers {
            let n = n.to_string();
            measures.add(&plan, |field| (plan.fields()[field] == "n").then_some(n.as_str()));
        }
        measures.more.expect("more than the count is measured").to_bytes()
    }

    fn archived() -> Vec<String> {
        let raw = r#"{"offset":3,"received":"2026-11-23T08:00:00.123Z","raw":"bm8gZXZlbnQ="}"#;
        vec![line(0, 0), line(1, 1), line(2, 2), raw.to_owned()]
    }

    fn audit(ledger: &Ledger, evidence: &Evidence, lines: &[String]) -> Verdict {
        let root = tempfile::tempdir().unwrap();
        object(root.path(), 0, lines);
        let mut oracle = Oracle::new(ledger, Archive::local(root.path()));
        oracle.expect_foreign(b"no event");
        oracle.audit(evidence)
    }

    fn broken(breaks: impl FnOnce(&mut Evidence, &mut Vec<String>)) -> [usize; 4] {
        let (mut evidence, mut lines) = (right(), archived());
        breaks(&mut evidence, &mut lines);
        let verdict = audit(&ledger(), &evidence, &lines);
        [&verdict.lost, &verdict.doubled, &verdict.changed, &verdict.invented].map(Vec::len)
    }

    #[test]
    fn what_is_right_is_clean() {
        let verdict = audit(&ledger(), &right(), &archived());
        assert_eq!(verdict, Verdict { records: 4, objects: 1, ..Verdict::default() }, "{verdict}");
    }

    #[test]
    fn a_lost_record_is_found_wherever_it_is_missing() {
        // In the log: its 2xx is broken, and archive, buckets and processed event have too much.
        assert_eq!(broken(|evidence, _| drop(evidence.log.remove(0))), [1, 2, 0, 3]);
        assert_eq!(broken(|_, lines| drop(lines.remove(2))), [1, 0, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.buckets.values_mut().for_each(|it| it.count -= 1)), [1, 0, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.buckets.clear()), [1, 0, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.measured.clear()), [4, 0, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.measured.values_mut().for_each(|it| it.count -= 1)), [4, 0, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.letters.clear()), [1, 0, 0, 0]);
        assert_eq!(broken(|evidence, _| drop(evidence.events.as_mut().map(Vec::pop))), [1, 0, 0, 0]);
    }

    #[test]
    fn a_doubled_record_is_found_wherever_it_stands_twice() {
        let twice = |evidence: &mut Evidence, _: &mut Vec<String>| {
            let again = LogRecord { offset: 4, ..evidence.log[1].clone() };
            evidence.log.push(again);
        };
        // And the second one is neither archived, nor counted by three aggregates, nor a processed event.
        assert_eq!(broken(twice), [5, 1, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.measured.values_mut().for_each(|it| it.count += 1)), [0, 4, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.buckets.values_mut().for_each(|it| it.count += 1)), [0, 1, 0, 0]);
        assert_eq!(broken(|evidence, _| evidence.events.as_mut().unwrap().push("events/0/0".to_owned())), [0, 1, 0, 0]);
    }

    #[test]
    fn a_changed_record_is_found_whatever_was_changed() {
        assert_eq!(
            broken(|evidence, _| evidence.log[0].value = Some(b"{\"n\":0,\"type\":\"a\"}".to_vec())),
            [0, 0, 2, 0]
        );
        assert_eq!(broken(|_, lines| lines[0] = lines[0].replace("  ", " ")), [0, 0, 1, 0]);
        assert_eq!(broken(|_, lines| lines[1] = lines[1].replace("id-1", "id-2")), [0, 0, 1, 0]);
        assert_eq!(broken(|_, lines| lines[0] = lines[0].replace("00.123", "00.124")), [0, 0, 1, 0]);
        assert_eq!(
            broken(|_, lines| lines[0] = lines[0].replace("\"event\"", "\"key\":\"k\",\"event\"")),
            [0, 0, 1, 0]
        );
        assert_eq!(broken(|_, lines| lines[3] = lines[3].replace("bm8", "bn8")), [0, 0, 1, 0]);
        assert_eq!(broken(|evidence, _| evidence.log[0].key = Some(b"k".to_vec())), [0, 0, 2, 0]);
        assert_eq!(
            broken(|evidence, _| evidence.buckets.values_mut().for_each(|it| it.last_offset += 1)),
            [0, 0, 1, 0]
        );
        assert_eq!(broken(|evidence, _| evidence.letters[0].value = None), [0, 0, 1, 0]);
        assert_eq!(
            broken(|evidence, _| evidence.measured.values_mut().for_each(|it| it.last_offset += 1)),
            [0, 0, 4, 0]
        );
        // The right number of records, and of others: two of one kind, none of another.
        let others = |evidence: &mut Evidence, _: &mut Vec<String>| {
            let costs = evidence.measured.iter_mut().find(|(key, _)| key.0 == "costs").unwrap();
            costs.1.state = state("costs", &[0, 1, 1]);
        };
        assert_eq!(broken(others), [0, 0, 1, 0]);
    }

    #[test]
    fn an_invented_record_is_found_wherever_it_appears() {
        let unknown = |evidence: &mut Evidence, _: &mut Vec<String>| {
            let invented = LogRecord { value: Some(b"{\"n\":9}".to_vec()), offset: 4, ..evidence.log[0].clone() };
            evidence.log.push(invented);
        };
        // Nobody sent it; and the archive and the dead letters lack it.
        assert_eq!(broken(unknown), [2, 0, 0, 1]);
        assert_eq!(broken(|_, lines| lines.push(line(4, 0))), [0, 0, 0, 1]);
        let bucket = ((1, (DateTime::UNIX_EPOCH, None, None)), Stored { count: 1, last_offset: 0 });
        assert_eq!(broken(|evidence, _| evidence.buckets.extend([bucket])), [0, 0, 0, 1]);
        let bucket = |window: DateTime<chrono::Utc>| measured_of(window).pop_first().unwrap();
        assert_eq!(broken(|evidence, _| evidence.measured.extend([bucket(DateTime::UNIX_EPOCH)])), [0, 0, 0, 1]);
        assert_eq!(broken(|evidence, _| evidence.letters[1].id = "events/0/9".to_owned()), [0, 0, 0, 1]);
        assert_eq!(broken(|evidence, _| evidence.events.as_mut().unwrap().push("events/0/9".to_owned())), [0, 0, 0, 1]);
    }
}
