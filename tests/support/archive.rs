//! Reads all objects of an archive, and checks the rules that hold for each by itself and for each partition's chain.

use std::{cmp::Ordering, collections::BTreeMap, path::Path, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as ObjectPath};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::runtime::{Builder, Runtime};

/// What it read stays: objects never change.
pub struct Archive {
    io: Runtime,
    store: Arc<dyn ObjectStore>,
    objects: BTreeMap<ObjectPath, Object>,
    /// Partition, end of the object before, start of the one behind.
    gaps: Vec<(i32, u64, u64)>,
}

pub struct Object {
    /// `topic`, or `topic@generation`.
    topic: String,
    partition: i32,
    start: u64,
    pub lines: Vec<Line>,
}

/// One record.
#[derive(Debug, Clone)]
pub struct Line {
    pub partition: i32,
    pub offset: u64,
    pub received: DateTime<Utc>,
    /// Assigned by the server.
    pub id: Option<String>,
    /// Written where the event does not hold it.
    pub key: Option<Vec<u8>>,
    /// Those beside the id.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The value's bytes; `None` for a null value.
    pub value: Option<Vec<u8>>,
    /// It stands as `raw`, not as `event`.
    pub raw: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineAsWritten {
    offset: u64,
    received: DateTime<Utc>,
    id: Option<String>,
    key: Option<TextOrBytes>,
    #[serde(default)]
    headers: Vec<HeaderAsWritten>,
    #[serde(default, deserialize_with = "present")]
    event: Option<Box<RawValue>>,
    raw: Option<String>,
}

/// Of an event that is `null`, too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrBytes {
    Text(String),
    Bytes { base64: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderAsWritten {
    name: String,
    value: Option<String>,
    base64: Option<String>,
}

impl Archive {
    /// `folder` is the root of a `file:` archive; it may come into being later.
    pub fn local(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("the folder can be made");
        Self::new(Arc::new(LocalFileSystem::new_with_prefix(folder).expect("the folder is there")))
    }

    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        let io = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        Self { io, store, objects: BTreeMap::new(), gaps: Vec::new() }
    }

    /// Reads the objects that are new. Panics where one breaks a rule.
    pub fn refresh(&mut self) {
        self.read_new();
        let faults = self.chain_faults();
        assert_eq!(faults, ChainFaults::default());
    }

    /// The same, however the objects chain.
    pub fn read_new(&mut self) {
        let paths: Vec<ObjectPath> = self
            .io
            .block_on(self.store.list(None).map_ok(|found| found.location).try_collect())
            .expect("the archive can be listed");
        let records = |path: &ObjectPath| path.as_ref().ends_with(".ndjson.zst") && !path.as_ref().contains("_chain/");
        let paths: Vec<_> = paths.into_iter().filter(records).collect();
        for known in self.objects.keys() {
            assert!(paths.contains(known), "{known} was deleted");
        }
        for path in paths {
            if !self.objects.contains_key(&path) {
                let bytes = self.io.block_on(async { self.store.get(&path).await?.bytes().await });
                let object = read(&path, &bytes.expect("a listed object can be read"));
                self.objects.insert(path, object);
            }
        }
    }

    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.objects.values().flat_map(|object| &object.lines)
    }

    /// The log has lost these, and the operator said to go on behind them.
    pub fn expect_gap(&mut self, partition: i32, from: u64, to: u64) {
        self.gaps.push((partition, from, to));
    }

    /// Objects so far.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Each object starts where the one before it ends, and the first at 0; but for the gaps that were announced.
    pub fn chain_faults(&self) -> ChainFaults {
        let mut faults = ChainFaults::default();
        let mut partitions: BTreeMap<(&str, i32), Vec<(&ObjectPath, &Object)>> = BTreeMap::new();
        for (path, object) in &self.objects {
            partitions.entry((&object.topic, object.partition)).or_default().push((path, object));
        }
        for ((_, partition), mut chain) in partitions {
            chain.sort_by_key(|(_, object)| object.start);
            let mut end = 0;
            for (path, object) in chain {
                let start = object.start;
                let announced = self.gaps.contains(&(partition, end, start));
                let fault = || format!("{path} does not chain: partition {partition} ends at {end} before it");
                match start.cmp(&end) {
                    Ordering::Greater if !announced => faults.gaps.push(fault()),
                    Ordering::Less => faults.overlaps.push(fault()),
                    _ => {}
                }
                end = start;
                for line in &object.lines {
                    if line.offset < end {
                        faults.overlaps.push(format!("{path}: offset {} comes after {end}", line.offset));
                    }
                    end = line.offset + 1;
                }
            }
        }
        faults
    }
}

/// Where objects do not chain.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChainFaults {
    pub gaps: Vec<String>,
    pub overlaps: Vec<String>,
}

/// `…topic=<topic>/date=YYYY-MM-DD/hour=HH/<partition>-<20 digits>.ndjson.zst`
fn read(path: &ObjectPath, bytes: &[u8]) -> Object {
    let text = path.as_ref();
    let name = path.filename().and_then(|name| name.strip_suffix(".ndjson.zst"));
    let (partition, start) = name.and_then(|name| name.split_once('-')).unwrap_or_else(|| panic!("{text}: name"));
    assert_eq!(start.len(), 20, "{text}: the chain position has 20 digits");
    let content = zstd::decode_all(bytes).unwrap_or_else(|error| panic!("{text} is not zstd: {error}"));
    assert_eq!(content.last(), Some(&b'\n'), "{text} ends with a line");
    let partition: i32 = partition.parse().unwrap_or_else(|_| panic!("{text}: partition"));
    let lines = content[..content.len() - 1].split(|byte| *byte == b'\n');
    let lines: Vec<Line> = lines.map(|it| line(text, partition, it)).collect();
    let first = lines[0].received;
    let folder = first.format("/date=%Y-%m-%d/hour=%H/").to_string();
    assert!(text.contains(&folder), "{text}: the first record came at {first}");
    let topic = text.split('/').find_map(|folder| folder.strip_prefix("topic="));
    Object {
        topic: topic.unwrap_or_else(|| panic!("{text}: topic")).to_owned(),
        partition,
        start: start.parse().unwrap_or_else(|_| panic!("{text}: chain position")),
        lines,
    }
}

fn line(path: &str, partition: i32, text: &[u8]) -> Line {
    let line: LineAsWritten = serde_json::from_slice(text)
        .unwrap_or_else(|error| panic!("{path}: {error} in {}", String::from_utf8_lossy(text)));
    let bytes = |text: &str| BASE64_STANDARD.decode(text).unwrap_or_else(|error| panic!("{path}: {error}"));
    let raw = line.event.is_none();
    let value = match (line.event, line.raw) {
        (Some(event), None) => Some(event.get().as_bytes().to_vec()),
        (None, raw) => raw.as_deref().map(bytes),
        (Some(_), Some(_)) => panic!("{path}: both event and raw"),
    };
    let key = line.key.map(|key| match key {
        TextOrBytes::Text(text) => text.into_bytes(),
        TextOrBytes::Bytes { base64 } => bytes(&base64),
    });
    let headers = line.headers.into_iter().map(|HeaderAsWritten { name, value, base64 }| {
        (name, value.map(String::into_bytes).or_else(|| base64.as_deref().map(bytes)))
    });
    let headers = headers.collect();
    Line { partition, offset: line.offset, received: line.received, id: line.id, key, headers, value, raw }
}
