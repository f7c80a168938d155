//! A partition that is being counted: its fold, and what else is to be made durable before its position moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    flush::{Part, Statements},
    fold::PartitionFold,
    grouping::{Grouping, Scratch},
};
use crate::{
    config::Config,
    event::{self, Carried, Event, EventFields, Invalid, InvalidTime},
    log::{
        Batch, Epoch,
        dead_letters::{DeadLetter, Origin, REFUSED_BY_STORE},
        record::Record,
    },
    position::{Offset, Partition, Timestamp},
    store::{Counted, Fence, History, ProcessedEvent, rebuild::Progress},
};

/// How records are read; the same for all partitions.
pub struct Reader {
    pub topic: String,
    pub generation: u32,
    /// With those of `grouping`.
    pub fields: EventFields,
    pub grouping: Grouping,
    /// What the grouping is of.
    pub counted: Arc<[Counted]>,
    /// No shadow is among them.
    pub counts_all: bool,
    /// Keep the events themselves, too.
    pub keep_events: bool,
    pub scratch: Scratch,
}

impl Reader {
    pub fn new(config: &Config, counted: &Arc<[Counted]>) -> Self {
        let (aggregates, names_only): (Vec<_>, Vec<_>) =
            counted.iter().map(|counted| (counted.aggregate.clone(), counted.names_only)).unzip();
        let grouping = Grouping::new(&aggregates, &names_only);
        Self {
            topic: config.queue.topic.clone(),
            generation: config.queue.generation,
            fields: EventFields::from(&config.event).selecting(grouping.fields()),
            grouping,
            counted: counted.clone(),
            counts_all: counted.iter().all(Counted::is_active),
            keep_events: config.store.events,
            scratch: Scratch::default(),
        }
    }
}

/// What has to be known of a partition before it is counted.
pub struct Loaded {
    /// From where on it is counted: before the position, where a shadow has less than the others.
    pub at: Offset,
    pub fences: Vec<Fence>,
    pub history: History,
    /// Records that are letters already.
    pub dead_lettered: BTreeSet<Offset>,
}

pub struct OpenPartition {
    pub fold: PartitionFold,
    /// The position before this assignment: none before it is confirmed.
    pub committed: Offset,
    /// A seek was asked for and no batch has come from there yet: batches in flight before it are not answered each.
    pub seeking: bool,
    /// Records that are letters already; the cursor leaves them behind.
    dead_lettered: BTreeSet<Offset>,
    /// Records that the store refuses for good, and why.
    refused: BTreeMap<Offset, String>,
    letters: Vec<DeadLetter>,
    events: Vec<ProcessedEvent>,
    /// About what `letters` and `events` take.
    bytes: usize,
    records: u64,
    reported: Reported,
    /// How its records are read, from which offset on; the last one that a record is beyond counts.
    fields: Vec<(Offset, EventFields)>,
    /// By aggregate: windows that began before were removed.
    removed: Vec<Option<Timestamp>>,
    /// By aggregate: which records are counted.
    progress: Vec<Progress>,
    /// When the last record was received that was taken.
    received: Option<Timestamp>,
}

/// What of the records was counted otherwise than it says itself, or not at all.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reported {
    /// By the time of their receipt, since their own is not believed.
    pub by_receipt: BTreeMap<&'static str, u64>,
    /// Not at all, since their windows are kept no longer, by aggregate.
    pub expired: BTreeMap<usize, u64>,
}

impl OpenPartition {
    /// What a letter or an event costs beside its bytes.
    const RECORD_BYTES: usize = 256;
    /// And each of its headers.
    const HEADER_BYTES: usize = 64;

    /// `fields` are those of the present configuration.
    pub fn new(
        fold: PartitionFold,
        dead_lettered: BTreeSet<Offset>,
        refused: BTreeMap<Offset, String>,
        history: History,
        fields: &EventFields,
    ) -> Self {
        let History { bounds, removed, progress } = history;
        let fields = bounds.into_iter().map(|(from, bounds)| (from, fields.within(bounds))).collect();
        let (letters, events) = (Vec::new(), Vec::new());
        let (bytes, records, reported) = (0, 0, Reported::default());
        Self {
            committed: fold.confirmed(),
            fold,
            seeking: false,
            dead_lettered,
            refused,
            letters,
            events,
            bytes,
            records,
            reported,
            fields,
            removed,
            progress,
            received: None,
        }
    }

    /// When the last record was received that was taken.
    pub fn received(&self) -> Option<Timestamp> {
        self.received
    }

    /// Windows of this aggregate that began before are counted in no more.
    pub fn remove_before(&mut self, aggregate: usize, before: Timestamp) {
        if let Some(removed) = self.removed.get_mut(aggregate) {
            *removed = (*removed).max(Some(before));
        }
    }

    /// Which records of an aggregate are counted.
    pub fn progress(&self, aggregate: usize) -> Progress {
        self.progress.get(aggregate).copied().unwrap_or_default()
    }

    /// About the memory that is held until the next flush begins.
    pub fn bytes(&self) -> usize {
        self.bytes + self.fold.bytes()
    }

    /// Takes the records of a batch that continues at the cursor.
    pub fn take(&mut self, batch: &Batch, reader: &mut Reader) {
        let cursor = self.fold.cursor();
        for record in batch.records.iter().filter(|record| record.offset >= cursor) {
            self.received = Some(record.received);
            if self.dead_lettered.remove(&record.offset) {
                continue;
            }
            if let Some(why) = self.refused.remove(&record.offset) {
                self.bury(batch.partition, record, REFUSED_BY_STORE, why, reader);
            } else if let Err(invalid) = self.take_record(batch.partition, record, reader) {
                self.bury(batch.partition, record, invalid.code.as_str(), invalid.message, reader);
            }
        }
        self.fold.advance(batch.to);
        self.seeking = false;
    }

    fn take_record(&mut self, partition: Partition, record: Record<'_>, reader: &mut Reader) -> Result<(), Invalid> {
        let value = record.value.unwrap_or_default();
        let by = self.fields.iter().rfind(|(from, _)| *from <= record.offset);
        let by = by.map_or(&reader.fields, |(_, fields)| fields);
        let (event, found) = event::read(value, record.headers.iter(), by, record.received)?;
        // Before anything is counted: whatever is refused is a letter, and nothing else.
        let carried = reader.keep_events.then(|| Carried::of(value, record.headers.iter())).transpose()?;
        let time = event.time.unwrap_or(record.received);
        // It is read again for a shadow: all else was done with it.
        let again = record.offset < self.committed;
        if let Some(reason) = event.invalid_time.and_then(InvalidTime::reason).filter(|_| !again) {
            *self.reported.by_receipt.entry(reason).or_default() += 1;
        }
        let (fold, removed, expired) = (&mut self.fold, &self.removed, &mut self.reported.expired);
        let (progress, counts_all) = (&self.progress, reader.counts_all);
        let mut counted = false;
        reader.grouping.buckets(&found, time, record.received, &mut reader.scratch, |falls| {
            if !counts_all {
                let counts = progress.get(falls.aggregate).is_none_or(|progress| progress.counts(record.offset));
                if !counts || !reader.counted[falls.aggregate].range.has(falls.window_start) {
                    return;
                }
            }
            if falls.is_expired || removed.get(falls.aggregate).is_some_and(|before| Some(falls.window_start) < *before)
            {
                *expired.entry(falls.aggregate).or_default() += 1;
                return;
            }
            counted |= fold.add(falls.aggregate, record.offset, falls.window_start, falls.group, |measures| {
                measures.add_values(falls.plan, &falls)
            });
        });
        self.records += u64::from(counted);
        if let Some(carried) = carried.filter(|_| !again) {
            self.keep(partition, record, carried, &event, time);
        }
        Ok(())
    }

    fn keep(
        &mut self,
        partition: Partition,
        record: Record<'_>,
        carried: Carried<'_>,
        event: &Event<'_>,
        time: Timestamp,
    ) {
        let data = carried.data.into_owned();
        let attributes: Vec<(String, String)> =
            carried.attributes.into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let id = event.id.as_deref().or_else(|| record.headers.id()).map(str::to_owned);
        let indexed = event.client.as_deref().map_or(0, str::len) + id.as_ref().map_or(0, String::len);
        let beside = attributes.iter().map(|(name, value)| Self::HEADER_BYTES + name.len() + value.len());
        self.bytes += Self::RECORD_BYTES + data.len() + indexed + beside.sum::<usize>();
        self.events.push(ProcessedEvent {
            partition,
            offset: record.offset,
            time: time.to_datetime(),
            received: record.received,
            event_type: event.event_type.to_string(),
            client: event.client.as_deref().map(str::to_owned),
            id,
            attributes,
            data,
        });
    }

    fn bury(&mut self, partition: Partition, record: Record<'_>, reason: &str, message: String, reader: &Reader) {
        if record.offset < self.committed {
            // It is a letter, or was one that has been removed since.
            return;
        }
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name.to_owned(), owned(value))).collect();
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let carried = record.headers.iter().map(|(name, value)| Self::HEADER_BYTES + name.len() + length(value));
        self.bytes += Self::RECORD_BYTES + length(record.key) + length(record.value) + carried.sum::<usize>();
        self.letters.push(DeadLetter {
            topic: reader.topic.clone(),
            generation: reader.generation,
            partition,
            origin: Origin::Record(record.offset),
            received: record.received,
            reason: reason.to_owned(),
            message: event::shortened(message).into_owned(),
            time: Timestamp::now(),
            key: owned(record.key),
            value: record.value.map(Bytes::copy_from_slice),
            headers,
        });
    }

    /// Moves what is to be made durable into `statements`.
    pub fn begin_flush(&mut self, partition: Partition, epoch: Epoch, statements: &mut Statements) -> Part {
        let letters = self.letters.len() as u64;
        statements.letters.append(&mut self.letters);
        statements.events.append(&mut self.events);
        statements.reported.insert(partition, std::mem::take(&mut self.reported));
        statements.folded.append(&mut self.fold.begin_flush());
        self.bytes = 0;
        Part { partition, epoch, records: std::mem::take(&mut self.records), letters }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::{
        config::OnInvalidTime,
        log::{ByteBudget, record::RecordBuffer},
    };

    /// The partition after these records, which are all.
    fn after(records: RecordBuffer, to: Offset, reader: &mut Reader) -> OpenPartition {
        let permit = ByteBudget::new(1, Gauge::default()).take(1);
        let (partition, epoch, from) = (Partition(0), Epoch::fresh(), Offset(0));
        let fold = PartitionFold::assign(partition, from, &["[]".into()], Vec::new());
        let (history, fields) = (
            History { bounds: Vec::new(), removed: vec![None], progress: vec![Progress::default()] },
            reader.fields.clone(),
        );
        let mut open = OpenPartition::new(fold, BTreeSet::new(), BTreeMap::new(), history, &fields);
        open.take(&Batch { partition, epoch, from, to, records: Arc::new(records), permit }, reader);
        open
    }

    #[test]
    fn a_record_whose_time_is_not_believed_is_counted_and_kept_by_that_of_its_receipt() {
        let mut config = Config::default();
        // What the ingestor does with it changes nothing here.
        config.event.on_invalid_time = OnInvalidTime::Reject;
        config.store.events = true;
        let (minute, received) = (60_000, Timestamp(1_795_939_200_000));
        let mut records = RecordBuffer::default();
        let times = ["1795939140", "1796025600", "1796025601", "-1", "\"2026-11-29T07:00:00\"", "{}", "null"];
        for (offset, time) in (0..).zip(times) {
            let value = format!("{{\"type\":\"t\",\"timestamp\":{time}}}");
            records.push(Offset(offset), received, None, Some(value.as_bytes()), std::iter::empty());
        }
        let mut reader = Reader::new(&config, &Arc::from([Counted::configured(&config.aggregate[0])]));
        let mut open = after(records, Offset(times.len() as u64), &mut reader);
        assert_eq!(open.letters, []);
        let own = [received.0 - minute, received.0 + 24 * 60 * minute].map(Some);
        let expected: Vec<_> = own.into_iter().chain([None; 5]).map(|own| own.unwrap_or(received.0)).collect();
        let kept: Vec<_> = open.events.iter().map(|event| event.time.timestamp_millis()).collect();
        assert_eq!(kept, expected);
        let mut buckets: Vec<_> = open.fold.begin_flush();
        buckets.sort_by_key(|bucket| bucket.key.window_start);
        let counts: Vec<_> = buckets
            .iter()
            .map(|bucket| (bucket.key.window_start.0, bucket.folded.uncounted.as_ref().unwrap().measures.count))
            .collect();
        assert_eq!(counts, [(expected[0], 1), (received.0, 5), (expected[1], 1)]);
    }

    #[test]
    fn a_dead_letter_takes_the_memory_of_its_key_and_headers_too() {
        let large = vec![b'x'; 100_000];
        let mut records = RecordBuffer::default();
        records.push(Offset(0), Timestamp(0), Some(&large), Some(b"no event"), [("h", Some(&large[..])), ("g", None)]);
        let open = after(records, Offset(1), &mut Reader::new(&Config::default(), &Arc::from([])));
        assert_eq!(open.letters.len(), 1);
        assert!(open.bytes() >= 200_000, "{}", open.bytes());
    }
}
