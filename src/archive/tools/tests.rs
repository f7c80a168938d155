//! An archive in a folder, made object by object; and which objects are asked for.

use std::{fs, io::Write, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{archive::format::ObjectFormat, position::TopicIdentity};

pub(super) const TOPIC: &str = "events";

pub(super) struct MadeArchive {
    folder: TempDir,
    runtime: Runtime,
}

impl MadeArchive {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), runtime: super::runtime().unwrap() }
    }

    pub(super) fn config(&self) -> Config {
        let mut config = Config::default();
        config.archive.url = format!("file://{}", self.folder.path().display());
        config
    }

    pub(super) fn reader(&self) -> ArchiveReader {
        super::open(self.config(), None, &self.runtime).unwrap()
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    /// An object of these offsets and times, under the name that its first record gives it.
    pub(super) fn object(&self, partition: i32, x: u64, records: &[(u64, &str)]) -> PathBuf {
        let line = |(offset, received): &(u64, &str)| {
            format!("{{\"offset\":{offset},\"received\":\"{received}\",\"event\":{{\"n\":{offset}}}}}\n")
        };
        self.write(partition, x, &records[0].1[..13], &records.iter().map(line).collect::<String>())
    }

    /// `hour` as `2026-11-23T08`.
    pub(super) fn write(&self, partition: i32, x: u64, hour: &str, text: &str) -> PathBuf {
        let (date, hour) = hour.split_once('T').unwrap();
        self.put(&format!("topic={TOPIC}/date={date}/hour={hour}/{partition}-{x:020}.ndjson.zst"), &compressed(text))
    }

    pub(super) fn head(&self, partition: i32, end: u64) -> PathBuf {
        let head = format!("{{\"version\":1,\"end\":{end},\"key\":null,\"identity\":\"{}\"}}", identity());
        self.put(&format!("_chain/{TOPIC}/{partition}.json"), head.as_bytes())
    }

    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

pub(super) fn identity() -> TopicIdentity {
    TopicIdentity("id".into())
}

/// As the spool writes it.
pub(super) fn compressed(text: &str) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn object(x: u64, hour: i64) -> ListedObject {
    ListedObject {
        name: ObjectName { partition: Partition(0), chain_offset: Offset(x), hour, format: ObjectFormat::NdjsonZst },
        size: 1,
    }
}

#[test]
fn an_object_is_passed_over_only_where_the_chain_rules_it_out() {
    let selection = |from, to: Option<u64>| Selection {
        offsets: Offsets { from: Offset(from), to: to.map(Offset) },
        ..Selection::default()
    };
    let (first, second) = (object(0, 0), object(10, 0));
    assert!(!selection(10, None).may_hold(&first, Some(&second)));
    assert!(selection(9, None).may_hold(&first, Some(&second)));
    assert!(selection(10, None).may_hold(&first, None), "nobody knows where the last one ends");
    assert!(!selection(0, Some(10)).may_hold(&second, None));
    let other = Selection { partitions: vec![Partition(1)], ..Selection::default() };
    assert!(!other.may_hold(&first, None));
    let late = Selection { from: Some(Utc::now()), ..Selection::default() };
    assert!(late.may_hold(&first, Some(&second)), "a record of now may follow one of 1970");
}

#[test]
fn an_hour_is_listed_when_any_of_it_is_asked_for() {
    let at = |minutes: i64| DateTime::from_timestamp(minutes * 60, 0);
    let listed = |from, to| Selection { from, to, ..Selection::default() }.meets_hour(&object(0, 1).name);
    assert!(listed(None, None) && listed(at(119), None) && listed(None, at(61)));
    assert!(!listed(at(120), None) && !listed(None, at(60)));
}

fn offsets(reader: &ArchiveReader, selection: &Selection) -> (Vec<u64>, Vec<String>) {
    let mut out = Vec::new();
    let damaged = cat(reader, selection, &mut out).unwrap();
    let lines = String::from_utf8(out).unwrap();
    let offset = |text: &str| Line::parse(text.as_bytes()).unwrap().offset.0;
    (lines.lines().map(offset).collect(), damaged)
}

#[test]
fn lines_come_in_the_order_of_the_chains_and_of_the_partitions_asked_for() {
    let archive = MadeArchive::new();
    // The later one of the chain has the earlier date.
    archive.object(0, 0, &[(0, "2026-11-24T00:00:00Z"), (1, "2026-11-24T00:00:00Z")]);
    archive.object(0, 2, &[(2, "2026-11-23T08:00:00Z")]);
    archive.object(1, 7, &[(7, "2026-11-23T08:00:00Z")]);
    assert_eq!(offsets(&archive.reader(), &Selection::default()).0, [0, 1, 2, 7]);
    let second = Selection { partitions: vec![Partition(1)], ..Selection::default() };
    assert_eq!(offsets(&archive.reader(), &second).0, [7]);
}

#[test]
fn times_select_records_and_not_objects() {
    let archive = MadeArchive::new();
    archive.object(0, 0, &[(0, "2026-11-23T08:00:00Z"), (1, "2026-11-23T11:30:00Z"), (2, "2026-11-23T07:00:00Z")]);
    archive.object(0, 3, &[(3, "2026-11-23T09:00:00Z"), (4, "2026-11-23T11:59:59.999Z"), (5, "2026-11-23T12:00:00Z")]);
    let time = |text: &str| Some(text.parse().unwrap());
    let (from, to) = (time("2026-11-23T11:30:00Z"), time("2026-11-23T12:00:00Z"));
    assert_eq!(offsets(&archive.reader(), &Selection { from, to, ..Selection::default() }).0, [1, 4]);
    assert_eq!(offsets(&archive.reader(), &Selection { to: from, ..Selection::default() }).0, [0, 2, 3]);
    let part = Offsets { from: Offset(2), to: Some(Offset(5)) };
    assert_eq!(offsets(&archive.reader(), &Selection { offsets: part, ..Selection::default() }).0, [2, 3, 4]);
}

#[test]
fn what_is_damaged_is_named_and_the_rest_is_printed() {
    let archive = MadeArchive::new();
    let cut = archive.object(0, 0, &[(0, "2026-11-23T08:00:00Z")]);
    archive.object(0, 1, &[(1, "2026-11-23T08:00:00Z")]);
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 3]).unwrap();
    let (offsets, damaged) = offsets(&archive.reader(), &Selection::default());
    assert_eq!(offsets.last(), Some(&1));
    assert!(damaged.len() == 1 && damaged[0].contains("0-00000000000000000000"), "{damaged:?}");
}

#[test]
fn an_object_of_many_pieces_is_read_whole() {
    let archive = MadeArchive::new();
    let lines: Vec<String> = (0..100)
        .map(|offset| {
            // Random, so that the object is larger than a piece.
            let raw: String = std::iter::repeat_with(fastrand::alphanumeric).take(120_000).collect();
            format!("{{\"offset\":{offset},\"received\":\"2026-11-23T08:00:00Z\",\"event\":\"{raw}\"}}")
        })
        .collect();
    let path = archive.write(0, 0, "2026-11-23T08", &(lines.join("\n") + "\n"));
    assert!(std::fs::metadata(path).unwrap().len() > 8 << 20);
    let mut out = Vec::new();
    cat(&archive.reader(), &Selection::default(), &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), lines.join("\n") + "\n");
}
