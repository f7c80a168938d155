//! Records of one partition on their way into a batch.

use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::{
    config::BatchConfig,
    log::{Batch, Epoch, Permit, kafka::headers::headers, record::RecordBuffer},
    position::{Offset, Partition, Timestamp},
};

/// What is delivered of one partition since the latest `Begin`.
///
/// Invariant: everything in `[Begin's at, from)` was handed on, `[from, next)` is in `buffer`, and `next` is where
/// librdkafka is (re)started. librdkafka's own position is never asked for.
pub(super) struct Delivery {
    pub epoch: Epoch,
    from: Offset,
    next: Offset,
    buffer: RecordBuffer,
    /// What the batch before took.
    expected: usize,
    /// When the oldest record of the buffer arrived.
    since: Option<Instant>,
}

impl Delivery {
    pub fn new(epoch: Epoch, at: Offset) -> Self {
        Self { epoch, from: at, next: at, buffer: RecordBuffer::default(), expected: 0, since: None }
    }

    /// The next offset to be fetched.
    pub fn next(&self) -> Offset {
        self.next
    }

    pub fn size(&self) -> usize {
        self.buffer.size()
    }

    /// Since when its oldest record waits.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes a message over. Those below `next` were taken before; offsets skipped have no record (a transaction's
    /// markers, aborted records).
    pub fn take(&mut self, message: &BorrowedMessage<'_>) {
        let Some(offset) = Offset::from_kafka(message.offset()) else { return };
        let received = Timestamp(message.timestamp().to_millis().unwrap_or_default());
        let headers = headers(message);
        let headers = headers.iter().map(|(name, value)| (name.as_ref(), *value));
        self.push(offset, received, message.key(), message.payload(), headers);
    }

    fn push<'h>(
        &mut self,
        offset: Offset,
        received: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
    ) {
        if offset < self.next {
            return;
        }
        if self.buffer.is_empty() {
            // A batch's worth at once: untouched it costs nothing, and growing by doubling would copy it twice.
            self.buffer.reserve(self.expected);
        }
        self.buffer.push(offset, received, key, value, headers);
        self.next = offset.next();
        // Once a batch: the clock's answer costs as much as what is done for a record.
        self.since.get_or_insert_with(Instant::now);
    }

    /// The buffer holds a whole batch.
    pub fn is_full(&self, limits: &BatchConfig) -> bool {
        self.buffer.len() >= limits.max_records || self.buffer.size() >= limits.max_bytes.as_usize()
    }

    /// How long its oldest record may wait yet; `None` when there is none.
    pub fn due_in(&self, limits: &BatchConfig, now: Instant) -> Option<Duration> {
        let waited = now.duration_since(self.since?);
        Some(if self.is_full(limits) { Duration::ZERO } else { limits.max_wait.saturating_sub(waited) })
    }

    /// Everything that is buffered, as a batch.
    pub fn cut(&mut self, partition: Partition, permit: Permit) -> Batch {
        let records = std::mem::take(&mut self.buffer);
        self.expected = records.size() + records.size() / 8;
        let from = std::mem::replace(&mut self.from, self.next);
        self.since = None;
        Batch { partition, epoch: self.epoch, from, to: self.next, records, permit }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::log::ByteBudget;

    fn push(delivery: &mut Delivery, offset: u64) {
        delivery.push(Offset(offset), Timestamp(0), None, Some(b"{}"), []);
    }

    fn cut(delivery: &mut Delivery) -> (u64, u64, Vec<u64>) {
        let batch = delivery.cut(Partition(0), ByteBudget::new(1, Gauge::default()).try_take(1).unwrap());
        (batch.from.0, batch.to.0, batch.records.iter().map(|record| record.offset.0).collect())
    }

    #[test]
    fn batches_are_contiguous_over_offsets_without_records_and_records_that_come_twice() {
        let mut delivery = Delivery::new(Epoch::fresh(), Offset(5));
        for offset in [3, 4, 7, 7, 8] {
            push(&mut delivery, offset);
        }
        assert_eq!(cut(&mut delivery), (5, 9, vec![7, 8]));
        for offset in [8, 12] {
            push(&mut delivery, offset);
        }
        assert_eq!(cut(&mut delivery), (9, 13, vec![12]));
    }

    #[test]
    fn a_batch_is_due_when_it_is_full_or_has_waited() {
        let limits = BatchConfig { max_records: 2, ..BatchConfig::default() };
        let mut delivery = Delivery::new(Epoch::fresh(), Offset(0));
        let now = Instant::now();
        assert_eq!(delivery.due_in(&limits, now), None);
        push(&mut delivery, 0);
        assert!(delivery.due_in(&limits, now).unwrap() > Duration::ZERO);
        assert_eq!(delivery.due_in(&limits, now + limits.max_wait + Duration::from_secs(1)), Some(Duration::ZERO));
        push(&mut delivery, 1);
        assert_eq!(delivery.due_in(&limits, now), Some(Duration::ZERO));
    }
}
