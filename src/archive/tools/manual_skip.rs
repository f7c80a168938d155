//! For tests: an archive in a folder, made object by object.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::ArchiveReader;
use crate::{config::Config, position::TopicIdentity};

pub(super) const TOPIC: &str = "events";

pub(super) struct ManualSkip {
    folder: TempDir,
    runtime: Runtime,
}

impl ManualSkip {
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
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
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
