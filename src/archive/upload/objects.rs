//! The names of the archive's objects, and what a LIST finds of them.

use chrono::{DateTime, NaiveDate, Utc};
use futures::TryStreamExt;
use object_store::path::Path;

use super::{
    archive::Archive,
    opening::{Head, HeadError},
};
use crate::{
    archive::{format::ObjectFormat, spool::segment::SegmentHeader},
    position::{Offset, Partition, Timestamp},
};

/// How far a look ahead follows a chain.
const MOST_HOURS: i64 = 24;

/// What an object's key says, in the order of the chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    pub partition: Partition,
    /// The chain offset: the end of the object before.
    pub chain_offset: Offset,
    /// Of the first record's timestamp, in hours since 1970-01-01T00:00:00Z.
    pub hour: i64,
    pub format: ObjectFormat,
}

impl ObjectName {
    pub fn of(header: &SegmentHeader, format: ObjectFormat) -> Self {
        let hour = hour_of(header.first_received.to_datetime());
        Self { partition: header.partition, chain_offset: header.chain_offset, hour, format }
    }

    /// The key, below the archive's prefix.
    pub fn key(&self, topic: &str) -> Path {
        self.folder(topic).join(format!("{}{}", self.stem(), self.format.suffix()))
    }

    fn folder(&self, topic: &str) -> Path {
        Path::from(format!("topic={topic}/{}", self.hour_start().format("date=%Y-%m-%d/hour=%H")))
    }

    fn stem(&self) -> String {
        format!("{}-{:020}", self.partition, self.chain_offset.0)
    }

    /// `None` where it is not exactly the key that [`Self::key`] writes.
    fn parse(key: &Path, topic: &str) -> Option<Self> {
        let mut parts = key.as_ref().rsplit('/');
        let (name, hour, date) = (parts.next()?, parts.next()?, parts.next()?);
        let (partition, chain_offset, format) = parse_name(name)?;
        let date = NaiveDate::parse_from_str(date.strip_prefix("date=")?, "%Y-%m-%d").ok()?;
        let hour = date.and_hms_opt(hour.strip_prefix("hour=")?.parse().ok()?, 0, 0)?.and_utc();
        let parsed = Self { partition, chain_offset, hour: hour_of(hour), format };
        (parsed.key(topic) == *key).then_some(parsed)
    }

    /// When the hour in the key begins.
    pub fn hour_start(&self) -> DateTime<Utc> {
        Timestamp(self.hour.saturating_mul(3_600_000)).to_datetime()
    }
}

/// The hour that a record of this time gives its object's key.
pub fn hour_of(time: DateTime<Utc>) -> i64 {
    time.timestamp().div_euclid(3600)
}

/// An object that stands in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedObject {
    pub name: ObjectName,
    /// Compressed.
    pub size: u64,
}

/// What stands below the topic's folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// In the order of the chains. A million objects take 40 MB.
    pub objects: Vec<ListedObject>,
    /// Keys that no daemon writes; at most [`Listing::MOST_STRAYS`] of them.
    pub strays: Vec<String>,
}

impl Listing {
    pub const MOST_STRAYS: usize = 1000;
}

impl Archive {
    /// All objects of the topic.
    pub async fn list_objects(&self) -> object_store::Result<Listing> {
        let folder = Path::from(format!("topic={}", self.topic));
        let mut found = self.store().await?.list(Some(&folder));
        let mut listing = Listing::default();
        while let Some(object) = self.within(found.try_next()).await? {
            match ObjectName::parse(&object.location, &self.topic) {
                Some(name) => listing.objects.push(ListedObject { name, size: object.size }),
                None if listing.strays.len() < Listing::MOST_STRAYS => {
                    listing.strays.push(object.location.to_string());
                }
                None => {}
            }
        }
        listing.objects.sort_unstable_by_key(|object| object.name);
        Ok(listing)
    }

    /// The last object that a chain has grown by since its head was written, of those in the head's hour, in the ones that
    /// follow it without a break (at most [`MOST_HOURS`]), and in the present one. What stands elsewhere is found by a LIST
    /// of everything, or met.
    pub(super) async fn newest_after(
        &self,
        partition: Partition,
        head: &Head,
        now: DateTime<Utc>,
    ) -> object_store::Result<Option<ObjectName>> {
        let now = hour_of(now);
        let key = head.key.as_deref().and_then(|key| ObjectName::parse(&Path::parse(key).ok()?, &self.topic));
        let began = key.map_or(now, |name| name.hour);
        let mut newest = self.newest_in(began, partition, head.end).await?;
        let mut hour = began;
        while hour < now && hour - began < MOST_HOURS {
            hour += 1;
            match self.newest_in(hour, partition, head.end).await? {
                // The times of records need not ascend.
                Some(found) => newest = newest.max(Some(found)),
                None => break,
            }
        }
        if hour != now {
            newest = newest.max(self.newest_in(now, partition, head.end).await?);
        }
        Ok(newest)
    }

    /// The last object of a partition's in this hour, at or beyond `end`.
    async fn newest_in(
        &self,
        hour: i64,
        partition: Partition,
        end: Offset,
    ) -> object_store::Result<Option<ObjectName>> {
        let first = ObjectName { partition, chain_offset: end, hour, format: self.format };
        let folder = first.folder(&self.topic);
        // Comes right before that object's key: a LIST gives what comes after it.
        let after = folder.clone().join(first.stem());
        let mut found = self.store().await?.list_with_offset(Some(&folder), &after);
        let mut newest = None;
        while let Some(object) = self.within(found.try_next()).await? {
            match ObjectName::parse(&object.location, &self.topic) {
                Some(name) if name.partition == partition => newest = newest.max(Some(name)),
                _ if self.lists_in_order => break,
                _ => {}
            }
        }
        Ok(newest.filter(|name| name.chain_offset >= end))
    }

    /// Where an object ends.
    pub(super) async fn object_end(&self, key: &Path, format: ObjectFormat) -> Result<Offset, HeadError> {
        // An error would say that the semaphore is closed, which it never is.
        let _turn = self.ends.acquire().await;
        self.settle(key).await?;
        let object = self.get(key).await?;
        // Decompressing a large object would hold up the other uploads.
        match tokio::task::spawn_blocking(move || format.end(&object)).await {
            Ok(Ok(end)) => Ok(end),
            Ok(Err(error)) => Err(HeadError::Unreadable(format!("{key}: {error:#}"))),
            Err(error) => Err(HeadError::Unreadable(format!("{key}: {error}"))),
        }
    }

    /// The last object of a partition's chain, by LIST over all of the topic's: the dates in their keys are those of the
    /// records, which need not ascend.
    pub(super) async fn last_object(&self, partition: Partition) -> object_store::Result<Option<(Path, ObjectFormat)>> {
        let folder = Path::from(format!("topic={}", self.topic));
        let mut objects = self.store().await?.list(Some(&folder));
        let mut last: Option<(Path, Offset, ObjectFormat)> = None;
        while let Some(object) = self.within(objects.try_next()).await? {
            let Some((found, at, format)) = object.location.filename().and_then(parse_name) else { continue };
            if found == partition && last.as_ref().is_none_or(|(_, last, _)| *last < at) {
                last = Some((object.location, at, format));
            }
        }
        Ok(last.map(|(key, _, format)| (key, format)))
    }
}

/// `<partition>-<chain offset>`, and what objects of a format end in.
fn parse_name(name: &str) -> Option<(Partition, Offset, ObjectFormat)> {
    let (format, stem) = ObjectFormat::of_name(name)?;
    let (partition, chain_offset) = stem.split_once('-')?;
    Some((Partition(partition.parse().ok()?), Offset(chain_offset.parse().ok()?), format))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{config::Config, position::TopicIdentity};

    #[test]
    fn keys_read_back_and_others_are_not_taken_for_ours() {
        let name = ObjectName {
            partition: Partition(3),
            chain_offset: Offset(42),
            hour: 498_728,
            format: ObjectFormat::NdjsonZst,
        };
        let key = name.key("t@2");
        assert_eq!(key.as_ref(), "topic=t@2/date=2026-11-23/hour=08/3-00000000000000000042.ndjson.zst");
        assert_eq!(ObjectName::parse(&key, "t@2"), Some(name));
        for stray in [
            "topic=t@2/date=2026-11-23/hour=08/3-42.ndjson.zst",
            "topic=t@2/date=2026-11-23/hour=8/3-00000000000000000042.ndjson.zst",
            "topic=t@2/date=2026-11-23/hour=24/3-00000000000000000042.ndjson.zst",
            "topic=t@2/date=2026-11-31/hour=08/3-00000000000000000042.ndjson.zst",
            "topic=t@2/x/date=2026-11-23/hour=08/3-00000000000000000042.ndjson.zst",
            "topic=t/date=2026-11-23/hour=08/3-00000000000000000042.ndjson.zst",
            "topic=t@2/date=2026-11-23/hour=08/3-00000000000000000042.ndjson.gz",
        ] {
            assert_eq!(ObjectName::parse(&Path::from(stray), "t@2"), None, "{stray}");
        }
    }

    #[tokio::test]
    async fn a_look_ahead_finds_what_follows_the_head_in_its_hour_the_next_ones_and_the_present_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.archive.url = format!("file:{}", dir.path().display());
        let archive = Archive::open(&config).unwrap();
        let time = Utc::now();
        let now = hour_of(time);
        let began = now - 30;
        let key = |x, hour, partition| {
            let format = ObjectFormat::NdjsonZst;
            ObjectName { partition: Partition(partition), chain_offset: Offset(x), hour, format }.key(&archive.topic)
        };
        let mut head = Head {
            version: 1,
            end: Offset(9),
            key: Some(key(5, began, 1).to_string()),
            identity: TopicIdentity("id".into()),
        };
        let look = async |head: &Head| {
            archive.newest_after(Partition(1), head, time).await.unwrap().map(|name| name.key(&archive.topic))
        };
        assert_eq!(look(&head).await, None);
        // Of others, before the head's end, and behind a break.
        let others = [key(5, began, 1), key(20, began, 2), key(20, began, 11), key(100, began + 4, 1)];
        let following =
            [key(9, began, 1), key(10, began, 1), key(12, began + 1, 1), key(20, began + 2, 1), key(99, now, 1)];
        for other in others {
            archive.create(&other, Bytes::new()).await.unwrap();
            assert_eq!(look(&head).await, None, "{other}");
        }
        for next in following {
            archive.create(&next, Bytes::new()).await.unwrap();
            assert_eq!(look(&head).await, Some(next));
        }
        let late = key(120, began + 1, 1);
        archive.create(&late, Bytes::new()).await.unwrap();
        assert_eq!(look(&head).await, Some(late), "a clock that stepped back");
        head.key = Some(key(5, now + 2, 1).to_string());
        assert_eq!(look(&head).await, Some(key(99, now, 1)), "a clock that was ahead");
        head.key = None;
        assert_eq!(look(&head).await, Some(key(99, now, 1)), "of a chain without objects, the present hour");
    }

    #[test]
    fn a_record_of_a_far_year_has_a_key_that_reads_back() {
        // Microseconds that a foreign producer wrote where milliseconds belong.
        let time = Timestamp(1_795_420_800_123_000).to_datetime();
        let name = ObjectName {
            partition: Partition(0),
            chain_offset: Offset(0),
            hour: hour_of(time),
            format: ObjectFormat::NdjsonZst,
        };
        assert_eq!(ObjectName::parse(&name.key("t"), "t"), Some(name), "{}", name.key("t"));
    }

    #[test]
    fn names_read_back() {
        assert_eq!(
            parse_name("3-00000000000000000042.ndjson.zst"),
            Some((Partition(3), Offset(42), ObjectFormat::NdjsonZst))
        );
        assert_eq!(parse_name("3-42.json"), None);
        assert_eq!(parse_name("probe.json"), None);
    }
}
