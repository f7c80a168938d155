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
