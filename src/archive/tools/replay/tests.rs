//! A chain in a folder, and a target in memory that keeps words and records as Kafka would.

use std::{cell::RefCell, collections::BTreeMap, fs};

use super::*;
use crate::{
    archive::tools::{
        Offsets,
        tests::{MadeArchive, TOPIC},
    },
    position::TopicIdentity,
};

const HOUR: &str = "2026-11-23T08:00:00Z";

/// Topic, partition and offset.
type Name = String;

#[derive(Default)]
struct Topic {
    records: RefCell<Vec<Name>>,
    words: RefCell<BTreeMap<Partition, Replayed>>,
    /// So many transactions are committed before one fails.
    fails_after: Option<usize>,
    commits: RefCell<usize>,
}

impl ReplayTarget for Topic {
    fn replayed(&self, partition: Partition, _: Option<&TopicIdentity>) -> Replayed {
        self.words.borrow().get(&partition).cloned().unwrap_or_default()
    }

    fn append(&self, source: &SourcePartition, records: &RecordBuffer, replayed: &Replayed) -> anyhow::Result<()> {
        if self.fails_after == Some(*self.commits.borrow()) {
            bail!("fenced");
        }
        *self.commits.borrow_mut() += 1;
        for record in records.iter() {
            let (name, value) = record.headers.iter().last().unwrap();
            assert_eq!(name, REPLAYED_FROM_HEADER);
            self.records.borrow_mut().push(String::from_utf8(value.unwrap().to_vec()).unwrap());
        }
        self.words.borrow_mut().insert(source.partition, replayed.clone());
        Ok(())
    }
}

impl Topic {
    fn names(&self) -> Vec<Name> {
        self.records.borrow().clone()
    }

    fn pieces(&self, partition: i32) -> String {
        serde_json::to_string(&self.words.borrow()[&Partition(partition)]).unwrap()
    }
}

fn run(archive: &MadeArchive, selection: &Selection, topic: &Topic) -> (Report, anyhow::Result<()>) {
    let mut report = Report::default();
    let done = replay(&archive.reader(), selection, topic, &ProgressBar::hidden(), &mut report);
    (report, done)
}

#[track_caller]
fn replayed(archive: &MadeArchive, selection: &Selection, topic: &Topic) -> u64 {
    let (report, done) = run(archive, selection, topic);
    done.unwrap();
    report.replayed
}

fn offsets(from: u64, to: Option<u64>) -> Selection {
    Selection { offsets: Offsets { from: Offset(from), to: to.map(Offset) }, ..Selection::default() }
}

fn names(partition: i32, offsets: impl IntoIterator<Item = u64>) -> Vec<Name> {
    offsets.into_iter().map(|offset| format!("{TOPIC}/{partition}/{offset}")).collect()
}

/// Objects of these ranges, as a chain.
fn chain(archive: &MadeArchive, partition: i32, ranges: &[(u64, u64)]) {
    for (x, end) in ranges {
        let records: Vec<_> = (*x..*end).map(|offset| (offset, HOUR)).collect();
        archive.object(partition, *x, &records);
    }
}

#[test]
fn every_record_comes_once_whatever_was_asked_for_before() {
    let archive = MadeArchive::new();
    chain(&archive, 0, &[(0, 10), (10, 20), (20, 30)]);
    chain(&archive, 1, &[(5, 9)]);
    let (topic, everything) = (Topic::default(), Selection::default());
    assert_eq!(replayed(&archive, &offsets(13, Some(17)), &topic), 4);
    assert_eq!(replayed(&archive, &offsets(8, Some(15)), &topic), 6, "5 of the first chain, and one of the second");
    assert_eq!(topic.pieces(0), "[[8,17]]");
    let second = Selection { partitions: vec![Partition(1)], ..Selection::default() };
    assert_eq!(replayed(&archive, &second, &topic), 3);
    assert_eq!(replayed(&archive, &everything, &topic), 8 + 13);
    assert_eq!(replayed(&archive, &everything, &topic), 0);
    let mut seen = topic.names();
    assert_eq!(seen[seen.len() - 21..], [names(0, 0..8), names(0, 17..30)].concat());
    seen.sort();
    let mut all = [names(0, 0..30), names(1, 5..9)].concat();
    all.sort();
    assert_eq!(seen, all);
    assert_eq!((topic.pieces(0), topic.pieces(1)), ("[[0,30]]".to_owned(), "[[5,9]]".to_owned()));
    chain(&archive, 0, &[(30, 33)]);
    assert_eq!(replayed(&archive, &everything, &topic), 3, "the archive has grown");
}

#[test]
fn times_and_offsets_without_records_leave_pieces_that_join_when_what_is_between_them_has_come() {
    let archive = MadeArchive::new();
    let late = "2026-11-23T08:30:00Z";
    archive.object(0, 0, &[(0, HOUR), (1, late), (3, late), (4, HOUR), (7, late)]);
    archive.object(0, 8, &[(9, late)]);
    let topic = Topic::default();
    let late = Selection { from: Some(late.parse().unwrap()), ..Selection::default() };
    assert_eq!(replayed(&archive, &late, &topic), 4);
    assert_eq!(topic.pieces(0), "[[1,4],[7,10]]");
    assert_eq!(replayed(&archive, &Selection::default(), &topic), 2);
    assert_eq!(topic.pieces(0), "[[0,10]]");
}

#[test]
fn what_a_failed_run_has_sent_stands_and_the_next_one_goes_on_behind_it() {
    let archive = MadeArchive::new();
    let all = 2 * BATCH_RECORDS as u64 + 10;
    chain(&archive, 0, &[(0, 7), (7, all)]);
    let topic = Topic { fails_after: Some(1), ..Topic::default() };
    let (report, done) = run(&archive, &Selection::default(), &topic);
    assert_eq!(done.unwrap_err().to_string(), "fenced");
    let to = BATCH_RECORDS as u64;
    assert_eq!((report.replayed, report.partitions[0].to), (to, Some(Offset(to))));
    let topic = Topic { fails_after: None, ..topic };
    assert_eq!(replayed(&archive, &Selection::default(), &topic), all - to);
    assert_eq!(topic.names(), names(0, 0..all));
}

#[test]
fn nothing_of_a_damaged_object_is_sent_and_what_is_behind_it_only_when_it_is_asked_for() {
    let archive = MadeArchive::new();
    chain(&archive, 0, &[(0, 5), (5, 8), (8, 9)]);
    let path = archive.object(0, 5, &[(5, HOUR), (6, HOUR), (7, HOUR)]);
    let mut bytes = fs::read(&path).unwrap();
    // The checksum, which stands at its end.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let topic = Topic::default();
    let (report, done) = run(&archive, &Selection::default(), &topic);
    let why = done.unwrap_err().to_string();
    assert!(why.contains("0-00000000000000000005") && why.contains("--offset 8.."), "{why}");
    assert_eq!((report.replayed, topic.names()), (5, names(0, 0..5)));
    assert_eq!(replayed(&archive, &offsets(8, None), &topic), 1);
    chain(&archive, 0, &[(5, 8)]);
    assert_eq!(replayed(&archive, &Selection::default(), &topic), 3, "it was restored");
    assert_eq!(topic.pieces(0), "[[0,9]]");
}

#[test]
fn a_chain_that_is_not_whole_is_said() {
    let sentence = |make: &dyn Fn(&MadeArchive)| {
        let archive = MadeArchive::new();
        make(&archive);
        run(&archive, &Selection::default(), &Topic::default()).1.unwrap_err().to_string()
    };
    let line = |offset: u64, rest: &str| format!("{{\"offset\":{offset},\"received\":\"{HOUR}\",{rest}}}\n");
    let hour = &HOUR[..13];
    for (make, words) in [
        (
            &|archive: &MadeArchive| chain(archive, 0, &[(0, 5), (9, 10)]) as _,
            "offsets 5 to 9 of partition 0 stand in no object",
        ),
        (&|archive: &MadeArchive| _ = archive.write(0, 0, hour, "{}\n"), "a line of it cannot be read: missing field"),
        (
            &|archive: &MadeArchive| _ = archive.write(0, 0, hour, &line(0, "\"key\":7,\"event\":1")),
            "\"key\" is neither",
        ),
        (
            &|archive: &MadeArchive| _ = archive.write(0, 0, hour, &line(0, "\"headers\":[7],\"event\":1")),
            "one of its headers",
        ),
        (&|archive: &MadeArchive| _ = archive.object(0, 0, &[(3, HOUR), (2, HOUR)]), "offset 2 stands behind 4"),
        (
            &|archive: &MadeArchive| {
                chain(archive, 0, &[(0, 5)]);
                archive.put(&format!("_chain/{TOPIC}/0.json"), b"{");
            },
            "the archive's chain cannot be read",
        ),
    ] as [(&dyn Fn(&MadeArchive), &str); 6]
    {
        let why = sentence(make);
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn a_record_that_stands_in_two_objects_is_one() {
    let archive = MadeArchive::new();
    chain(&archive, 0, &[(0, 5), (3, 7)]);
    let topic = Topic::default();
    assert_eq!(replayed(&archive, &Selection::default(), &topic), 7);
    assert_eq!(topic.names(), names(0, 0..7));
}
